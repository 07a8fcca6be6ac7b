"""Ours: the whole threshold sweep of the baseline, so that nobody has to believe that it is no straw man."""

from matplotlib.figure import Figure

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
    figure = Figure(figsize=(7.5, 2.8), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, (metric, label) in zip(
        panels, [("pauc", "PAUC"), ("duplicate", "duplicates, percent"), ("reply_turns", "reply turns")]
    ):
        for look, domain in zip(style.SERIES, dict.fromkeys(row["domain"] for row in rows)):
            points = [
                (float(row["threshold"]), float(row[metric]), row["chosen"])
                for row in tables.select(rows, domain=domain, seed=first)
                if tables.number(row[metric]) is not None
            ]
            points.sort()
            axes.plot(
                [p[0] for p in points], [p[1] for p in points], label=f"[{domain}]", markersize=3, **look
            )
            for threshold, value, chosen in points:
                if chosen.lower() in ("1", "true", "yes"):
                    axes.plot(threshold, value, marker="*", markersize=12, color=look["color"], zorder=4)
        axes.set(title=label, xlabel="threshold", ylim=(0, None))
    panels[0].legend()
    chosen = "; ".join(
        f"{row['domain']}: threshold {float(row['threshold']):g}, PAUC {float(row['pauc']):.1f}"
        for row in tables.select(rows, seed=first)
        if row["chosen"].lower() in ("1", "true", "yes")
    )
    return figure, f"Seed {first}. Chosen on development videos (star): {chosen or tables.NOT_RUN}.", rows


if __name__ == "__main__":
    drawings.main(draw)
