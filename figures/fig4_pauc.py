"""Figure 4: PAUC is the area under a step line of scores; a better or an earlier reply makes it larger."""

from matplotlib.figure import Figure

from mmduet2kit.report import style, tables
from mmduet2kit.score import pauc


@style.drawing("fig4_pauc", "Figure 4. The calculation of PAUC, and two replies that are better")
def draw(run):
    """The area of one list of replies, and what a higher score or an earlier reply adds to it (hatched)."""
    given = run.need("figure4.json")
    span, most, initial = given["span"], given["max_score"], given["initial"]
    cases = [{"name": "replies", "replies": given["replies"]}, *given["alternatives"]]
    figure = Figure(figsize=(7.5, 2.9), layout="constrained")
    panels = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    base, rows = steps(span, given["replies"], initial), []
    for axes, case in zip(panels, cases):
        times, scores = steps(span, case["replies"], initial)
        values = [pauc(span, case["replies"], most, omega=omega, initial=initial) for omega in (0, 0.5)]
        if case is not cases[0]:
            axes.fill_between(
                times,
                scores,
                step="post",
                facecolor="none",
                edgecolor=style.ORANGE,
                hatch="////",
                linewidth=0,
            )
            axes.fill_between(*base, step="post", color="white", linewidth=0)
        lower = base if case is not cases[0] else (times, scores)
        axes.fill_between(*lower, step="post", color=style.SKY, alpha=0.45, linewidth=0)
        axes.step(*base, where="post", color=style.GREY, linestyle="--", linewidth=1)
        axes.step(times, scores, where="post", color=style.BLUE, linewidth=1.6)
        for k, (time, score) in enumerate(sorted(case["replies"]), start=1):
            changed = [time, score] not in [list(one) for one in given["replies"]]
            axes.plot(
                time,
                score,
                marker="D" if changed else "o",
                color=style.ORANGE if changed else style.BLUE,
                zorder=4,
            )
            axes.annotate(f"τ{k}{'′' if changed else ''}", (time, score), (4, 5), textcoords="offset points")
        axes.set_title(f"{case['name']}: PAUC {100 * values[0]:.1f}")
        axes.set(xlim=span, ylim=(0, most * 1.15), xlabel="video time, s")
        rows += [
            {
                "case": case["name"],
                "time_s": time,
                "score": score,
                "pauc_omega_0": round(100 * values[0], 3),
                "pauc_omega_0.5": round(100 * values[1], 3),
            }
            for time, score in case["replies"]
        ]
    panels[0].set(ylabel="score", yticks=range(int(most) + 1))
    panels[0].text(
        span[0] + 0.02 * (span[1] - span[0]),
        initial - 0.02 * most,
        f"initial\n{initial:g}",
        fontsize=8,
        va="top",
    )
    alt = "; ".join(
        f"{row['case']}: {row['pauc_omega_0']:.1f}" for row in {row["case"]: row for row in rows}.values()
    )
    return (
        figure,
        (
            f"Score over time in a span from {span[0]:g} to {span[1]:g} s. PAUC is the area under the step "
            f"line as a share of the largest (Eq. 1, omega 0), in percent. {alt}."
        ),
        rows,
    )


def steps(span, replies, initial):
    """Corners of the step line: times and scores."""
    points = [
        (span[0], initial),
        *sorted((time, score) for time, score in replies if span[0] <= time <= span[1]),
    ]
    return [time for time, _ in points] + [span[1]], [score for _, score in points] + [points[-1][1]]


if __name__ == "__main__":
    tables.main(draw)
