"""Ours: does the weighted share of NO REPLY turns in the SFT data decide whether the model falls silent?"""

from statistics import mean

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

import drawings
import style
import tables


def odds(row) -> float:
    """NO REPLY turns for one answer in the SFT data, each counted with its weight in the loss."""
    return float(row["no_reply_weight"]) * float(row["silent_turns"]) / float(row["answer_turns"])


@drawings.figure("ours3_silence", "Ours. What makes SFT silent: NO REPLY turns for one answer, times their weight")
def draw(run):
    """Replies a video and PAUC on WEB over the weighted odds; a colour for each frame interval of SFT."""
    rows = [row for row in run.need("silence.csv") if row["status"] == "ok"]
    if not rows:
        raise tables.NotRun("silence.csv holds no evaluation yet")
    figure = Figure(figsize=(style.WIDTH, 2.5), layout="constrained")
    panels, shown = figure.subplots(1, 2), []
    for look, interval in zip(style.SERIES, sorted({float(row["sft_interval"]) for row in rows})):
        mine = tables.select(rows, sft_interval=interval)
        for weight in sorted({float(row["no_reply_weight"]) for row in mine}):
            of = tables.select(mine, no_reply_weight=weight)
            shown.append({"sft_interval": interval, "no_reply_weight": weight, "odds": round(odds(of[0]), 3), "seeds": len(of),
                          **{key: round(mean(float(row[key]) for row in of), 2) for key in ("reply_turns", "pauc")}})  # fmt: skip
        for axes, key in zip(panels, ("reply_turns", "pauc")):
            axes.plot([odds(row) for row in mine], [float(row[key]) for row in mine], look["marker"], color=look["color"],
                      alpha=0.4, markersize=3, clip_on=False)  # fmt: skip
            line = sorted((one["odds"], one[key]) for one in shown if one["sft_interval"] == interval)
            axes.plot(*zip(*line), **look, markersize=5, clip_on=False, label=f"SFT at {interval:g} s")
    for axes, title in zip(panels, ("replies a video, [WEB]", "PAUC, 0 to 100, [WEB]")):
        axes.set(title=title, xlabel="NO REPLY turns an answer,\ntimes their weight (log scale)", xscale="log")
        axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 3, 5, 7)), minor_locator=NullLocator(), major_formatter="{x:g}")  # matplotlib's is mathtext
        axes.margins(y=0.1)
        axes.set_ylim(0, None)
    panels[1].axhline(25, color=style.GREY, linewidth=0.8, linestyle="--", label="PAUC of silence")
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    told = "; ".join(f"{one['sft_interval']:g} s, weight {one['no_reply_weight']:g} (odds {one['odds']:.1f}): {one['reply_turns']:.1f} "
                     f"replies, PAUC {one['pauc']:.1f}" for one in shown)  # fmt: skip
    test = float(rows[0]["test_interval"])
    drawings.source(figure, run.line(rows, "large marks: mean"), f"Tested at {test:g} s a frame; pale marks: each seed.")
    return figure, f"Tested at {test:g} s, mean over seeds (small marks: each seed). {told}.", shown


if __name__ == "__main__":
    drawings.main(draw)
