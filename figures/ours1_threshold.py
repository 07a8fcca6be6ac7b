"""Ours: the whole threshold sweep of the baseline, so that nobody has to believe that it is no straw man."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import drawings
import style
import tables


@drawings.figure(
    "ours1_threshold", "Ours. The threshold baseline: PAUC and duplicates at every threshold tried"
)
def draw(run):
    """A line per domain over the threshold (development videos); a star marks the one that was chosen."""
    rows = run.need("threshold_sweep.csv")
    first = rows[0]["seed"]
    figure = Figure(figsize=(style.WIDTH, 2.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, (metric, label) in zip(
        panels, [("pauc", "PAUC, 0 to 100"), ("duplicate", "duplicates, percent"), ("reply_turns", "reply turns a video")]
    ):
        for look, domain in zip(style.SERIES, dict.fromkeys(row["domain"] for row in rows)):
            points = [
                (float(row["threshold"]), float(row[metric]), row["chosen"])
                for row in tables.select(rows, domain=domain, seed=first)
                if tables.number(row[metric]) is not None
            ]
            points.sort()
            axes.plot(
                [p[0] for p in points], [p[1] for p in points], label=f"[{domain}]", markersize=2.5, **look | {"linewidth": 1}
            )
            for threshold, value, chosen in points:
                if chosen.lower() in ("1", "true", "yes"):
                    axes.plot(threshold, value, marker="*", markersize=11, color=look["color"], markeredgecolor="white", zorder=4)
        axes.set(title=label, xlabel="threshold, probability", xlim=(0, 1), ylim=(0, None))
    star = Line2D([], [], linestyle="", marker="*", markersize=9, color=style.GREY, label="the chosen threshold")
    figure.legend(handles=[*panels[0].get_legend_handles_labels()[0], star], loc="outside upper center", ncols=5)
    chosen = "; ".join(
        f"{row['domain']}: threshold {float(row['threshold']):g}, PAUC {float(row['pauc']):.1f}"
        for row in tables.select(rows, seed=first)
        if row["chosen"].lower() in ("1", "true", "yes")
    )
    drawings.source(figure, run.line([rows[0]]), "Development videos. One threshold serves all domains: that of the highest PAUC over",
                    "all their gold spans. Duplicates stand here without Table 2's rule for few replies.")  # fmt: skip
    return figure, f"Seed {first}. One threshold chosen on the development videos of all domains (star): {chosen or tables.NOT_RUN}.", rows


if __name__ == "__main__":
    drawings.main(draw)
