"""Figure 5: reply turns, PAUC and duplicates on held-out videos while RL trains."""

from statistics import mean

from matplotlib.figure import Figure

import drawings
import stages
import style
import tables

METRICS = [("reply_turns", "reply turns"), ("pauc", "PAUC"), ("duplicate", "duplicates, percent")]


@drawings.figure("fig5_dynamics", "Figure 5. Dynamics of the RL training")
def draw(run):
    """Thin lines are seeds, thick ones their mean; dotted: the stage changes by the rule of claims.yaml."""
    rows = run.need("figure5.csv")
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    figure = Figure(figsize=(7.5, 3.0), layout="constrained")
    said = []
    for axes, (metric, label) in zip(figure.subplots(1, 3), METRICS):
        for look, domain in zip(style.SERIES, domains):
            curves = {}
            for row in tables.select(rows, domain=domain):
                if tables.number(row[metric]) is not None:
                    curves.setdefault(row["seed"], {})[float(row["step"])] = float(row[metric])
            if not curves:
                continue
            for curve in curves.values() if len(curves) > 1 else ():
                axes.plot(*zip(*sorted(curve.items())), color=look["color"], linewidth=0.6, alpha=0.5)
            steps = sorted(set.intersection(*map(set, curves.values())))
            means = [mean(curve[step] for curve in curves.values()) for step in steps]
            axes.plot(steps, means, label=f"[{domain}]", markersize=3.5, linewidth=1.7, **look)
            said.append(f"{label} on {domain} from {means[0]:.1f} to {means[-1]:.1f}")
            if domain == domains[0] and metric != "duplicate" and len(steps) >= 6:
                found = stages.stages(steps, means)
                for knot in (found["first"], found["second"]):
                    axes.axvline(knot, color=style.GREY, linestyle=":", linewidth=1)
        axes.set(title=label, xlabel="RL step", ylim=(0, None))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)  # no curve runs there
    seeds = len({row["seed"] for row in rows})
    note = f"{run.line(rows)} Dotted: stage changes on [{domains[0]}]."
    if not run.smoke:
        note += " The paper's: steps 180 and 450 of 489."
    figure.supxlabel(note, fontsize=7.5, color=style.GREY)
    return (
        figure,
        f"Three panels over RL steps, {seeds} seed{'s' if seeds > 1 else ''}: {'; '.join(said)}.",
        rows,
    )


if __name__ == "__main__":
    drawings.main(draw)
