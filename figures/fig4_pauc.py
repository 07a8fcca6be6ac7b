"""Figure 4: PAUC is the area under a step line of scores; a better or an earlier reply makes it larger."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

import drawings
import style
from mmduet2kit.score import pauc


SPAN, MOST, INITIAL = (0, 10), 2, 0.5  # an example as in section 4.3.2: two replies in a span of 10 s
REPLIES = [(3, 1), (7, 1.5)]
CASES = {"replies": REPLIES, "higher score": [(3, 1), (7, 2)], "earlier": [(3, 1), (5, 1.5)]}


@drawings.figure("fig4_pauc", "Figure 4. The calculation of PAUC, and two replies that are better")
def draw(run):
    """The area of one list of replies, and what a higher score or an earlier reply adds to it (hatched)."""
    figure = Figure(figsize=(style.WIDTH, 2.3), layout="constrained")
    panels = figure.subplots(1, len(CASES), sharey=True, squeeze=False)[0]
    base, rows = steps(REPLIES), []
    for axes, (name, replies) in zip(panels, CASES.items()):
        corners = steps(replies)
        values = [100 * pauc(SPAN, replies, MOST, omega=omega, initial=INITIAL) for omega in (0, 0.5)]
        if replies is not REPLIES:
            hatched = {"facecolor": "none", "edgecolor": style.ORANGE, "hatch": "////", "linewidth": 0}
            axes.fill_between(*corners, step="post", **hatched)
            axes.fill_between(*base, step="post", color="white", linewidth=0)
        axes.fill_between(*base, step="post", color=style.SKY, alpha=0.45, linewidth=0)
        axes.step(*base, where="post", color=style.GREY, linestyle="--", linewidth=1)
        axes.step(*corners, where="post", color=style.BLUE, linewidth=1.4)
        for k, (time, score) in enumerate(replies, start=1):
            changed = (time, score) not in REPLIES
            mark, color = ("D", style.ORANGE) if changed else ("o", style.BLUE)
            axes.plot(time, score, marker=mark, markersize=5, color=color, zorder=4)
            axes.annotate(f"τ{k}{'′' if changed else ''}", (time, score), (4, 5), textcoords="offset points")
            rows.append({"case": name, "time_s": time, "score": score,
                         **dict(zip(("pauc_omega_0", "pauc_omega_0.5"), (round(v, 3) for v in values)))})
        axes.set_title(f"{name}: PAUC {values[0]:.1f}")
        axes.set(xlim=SPAN, ylim=(0, MOST * 1.15), xlabel="video time, s")
    panels[0].set(ylabel="score, 0 to 2", yticks=range(MOST + 1))
    panels[0].text(0.2, INITIAL - 0.02 * MOST, f"initial\n{INITIAL:g}", fontsize=style.SMALL, va="top")
    figure.legend(handles=[Patch(facecolor=style.SKY, alpha=0.45, label="area of the replies"),
                           Patch(facecolor="none", edgecolor=style.ORANGE, hatch="////", linewidth=0, label="what the better one adds"),
                           Line2D([], [], color=style.BLUE, marker="o", label="a reply and its score"),
                           Line2D([], [], linestyle="", color=style.ORANGE, marker="D", label="a better reply")],
                  loc="outside lower center", ncols=4)  # fmt: skip
    alt = "; ".join(f"{name}: {score:.1f}" for name, score in {r["case"]: r["pauc_omega_0"] for r in rows}.items())
    said = (f"Score over time in a span from {SPAN[0]:g} to {SPAN[1]:g} s. PAUC is the area under the step "
            f"line as a share of the largest (Eq. 1, omega 0), in percent. {alt}.")
    return figure, said, rows


def steps(replies):
    """Corners of the step line: times and scores."""
    times, scores = zip((SPAN[0], INITIAL), *replies)
    return [*times, SPAN[1]], [*scores, scores[-1]]


if __name__ == "__main__":
    drawings.main(draw)
