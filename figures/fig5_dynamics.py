"""Figure 5: reply turns, PAUC and duplicates on held-out videos while RL trains."""

from statistics import mean

from matplotlib.figure import Figure

import drawings
import stages
import style
import tables

METRICS = [("reply_turns", "reply turns a video"), ("pauc", "PAUC, 0 to 100"), ("duplicate", "duplicates, percent")]


@drawings.figure("fig5_dynamics", "Figure 5. Dynamics of the RL training")
def draw(run):
    """Thin lines are seeds, thick ones their mean; dotted: the stage changes by the rule of claims.yaml.

    Duplicates of too few replies are left out by Table 2's rule (`few`); the csv has them all.
    """
    rows = run.need("figure5.csv")
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    figure = Figure(figsize=(style.WIDTH, 2.5), layout="constrained")
    said, gone = [], 0
    for axes, (metric, label) in zip(figure.subplots(1, 3), METRICS):
        for look, domain in zip(style.SERIES, domains):
            curves, every = {}, set()
            for row in tables.select(rows, domain=domain):
                if tables.number(row[metric]) is not None:
                    every.add(float(row["step"]))
                    if metric != "duplicate" or not few(run, row):
                        curves.setdefault(row["seed"], {})[float(row["step"])] = float(row[metric])
            if not curves:
                continue
            for curve in curves.values() if len(curves) > 1 else ():
                axes.plot(*zip(*sorted(curve.items())), color=look["color"], linewidth=0.6, alpha=0.5)
            shared = set.union if metric == "duplicate" else set.intersection  # a mean of the seeds that have a figure, as in the tables
            steps = sorted(shared(*map(set, curves.values())))
            means = [mean(curve[step] for curve in curves.values() if step in curve) for step in steps]
            there = dict(zip(steps, means))
            path = sorted(every | set(steps)) if metric == "duplicate" else steps
            axes.plot(path, [there.get(step, float("nan")) for step in path], label=f"[{domain}]", markersize=3, **look)  # nan: a gap
            gone += len(path) - len(steps)
            said.append(f"{label.partition(',')[0]} on {domain}: {told(steps, means)}")
            if domain == domains[0] and metric != "duplicate" and len(steps) >= 6:
                found = stages.stages(steps, means)
                for knot in (found["first"], found["second"]):
                    axes.axvline(knot, color=style.GREY, linestyle=":", linewidth=1)
        axes.set(title=label, xlabel="RL step", ylim=(0, None))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)  # no curve runs there
    left = (f"Duplicates: {gone} point{'s' * (gone > 1)} left out where fewer than {tables.MIN_MULTI_SPANS} gold spans can have more than one "
            "reply (Table 2's rule); the csv has them.") if gone else ""  # fmt: skip
    theirs = "" if run.smoke else "The paper's: steps 180 and 450 of 489."
    drawings.source(figure, run.line(rows, "thick: mean of those that have a figure, thin: each"), f"Dotted: stage changes on [{domains[0]}].", theirs, left)
    seeds = len({row["seed"] for row in rows})
    return figure, f"Three panels over RL steps, {seeds} seed{'s' if seeds > 1 else ''}: {'; '.join(said)}. {left}".strip(), rows


def few(run, row) -> bool:
    """Have surely fewer gold spans more than one reply than Table 2's rule asks for?

    Where the file does not count such spans, there are at most half as many as replies (gold spans lie apart), and those are known from the videos watched.
    """
    spans = tables.number(row.get("multi_spans"))
    videos = (run.manifest.get("settings") or {}).get("evaluate", {}).get("dev_videos")
    if spans is None and videos:
        spans = float(row["reply_turns"]) * videos // 2
    return spans is not None and spans < tables.MIN_MULTI_SPANS


def told(steps, values) -> str:
    """First and last value of a curve, the lowest and the highest with their steps, in words."""
    low, high = (pick(zip(values, steps), key=lambda pair: pair[0]) for pick in (min, max))
    return (f"from {values[0]:.1f} at step {steps[0]:g} to {values[-1]:.1f} at step {steps[-1]:g}, "
            f"lowest {low[0]:.1f} (step {low[1]:g}), highest {high[0]:.1f} (step {high[1]:g})")  # fmt: skip


if __name__ == "__main__":
    drawings.main(draw)
