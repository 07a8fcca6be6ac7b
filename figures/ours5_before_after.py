"""Ours: one test video as its stream comes in, and what each model says of it; when each first is right, after the hidden onset."""

import textwrap

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.path import Path

import drawings
from said import NAMES, alt, entries, groups, summary
from style import FOREST, GREEN, GREY, INK, ORANGE, RED, SMALL, WIDTH

FRAMES, LISTED, LETTERS = 12, 6, 84  # at most: frames, replies of a model in words, letters a line
LEFT, RIGHT, ROW, LINE, KEY = 0.92, 0.06, 0.3, 0.118, 0.68  # inches: margins, a lane, a line of words, the legend


@drawings.figure("ours5_before_after", "Ours. One test video, and what each model says of it")
def draw(run):
    """Frames along the time, gold spans with their onsets, a lane a model, and what it says. One pair of axes: seconds to the right, inches down."""
    found = run.need("before_after.json")
    gold, every, models, end = found["gold"], found["interval"], found["models"], max(found["decisions"]) + 0.5 * found["interval"]
    frames = [frame for frame in found["frames"] if frame["time"] < max(found["decisions"])]
    frames = frames[:: -(-len(frames) // FRAMES)]
    said = {name: entries(one["replies"], gold) for name, one in models.items()}
    inch = end / (WIDTH - LEFT - RIGHT)  # seconds an inch
    figure = Figure(figsize=(WIDTH, 1))
    axes = figure.add_axes((LEFT / WIDTH, 0, 1 - (LEFT + RIGHT) / WIDTH, 1))
    write = lambda x, y, text, **how: axes.text(x, y, text, **{"fontsize": SMALL, "va": "center", "color": INK} | how)  # noqa: E731
    name_it = lambda y, text, **how: write(-0.1 * inch, y, text, ha="right", **how)  # noqa: E731
    name_it(0.1, "the user asks", color=ORANGE, weight="bold")
    write(0, 0.1, f"“{found['question']}”", fontsize=8.5)
    apart = frames[1]["time"] - frames[0]["time"] if len(frames) > 1 else every
    side, y = min(0.94 * apart / inch, 0.8), 0.26  # inches: square
    for frame in frames:
        drawings.picture(axes, run.data, frame["image"], (frame["time"], frame["time"] + side * inch, y + side, y))
        write(frame["time"], y + side + 0.1, f"{frame['time']:g} s", color=GREY)
    name_it(y := y + side + 0.1, "video time", color=GREY)
    name_it(y := y + 0.24, "gold spans", weight="bold", color=FOREST)
    for k, one in enumerate(gold, start=1):
        bar(axes, one, y, 0.18, alpha=0.35, edgecolor=GREEN)
        write((one["start"] + one["end"]) / 2, y, f"G{k}", ha="center", va="center_baseline", weight="bold", color=FOREST)
        if one["onset"] is not None:
            axes.plot(one["onset"], y, marker="*", color=RED, markersize=8, markeredgecolor="white", markeredgewidth=0.5)
    y += 0.19
    for k, one in enumerate(gold, start=1):
        y = paragraph(write, inch, y, (f"G{k}", f"{one['start']:.1f}-{one['end']:.1f} s", ""), one["text"], FOREST)
    for name, one in models.items():
        axes.plot([-LEFT * inch, end], [y + 0.02] * 2, color="#cccccc", linewidth=0.6, clip_on=False)
        name_it(y := y + 0.06 + ROW / 2, NAMES.get(name, name).replace(" b", "\nb"), weight="bold", fontsize=7.5)
        lane(axes, y, one, gold, found["decisions"])
        for reply in said[name]:
            colors = (FOREST, FOREST) if reply["right"] else (ORANGE, "white")
            axes.plot(reply["time"], y, "o", markersize=8, color=colors[0], markerfacecolor=colors[1], clip_on=False)
            number = "=" if reply["same"] else reply["number"]
            write(reply["time"], y, number, ha="center", va="center_baseline", weight="bold", color="white" if reply["right"] else ORANGE)
        y += ROW / 2 + 0.1
        known, waits = summary(one, gold)
        mean = f",\n+{sum(waits) / len(waits):.1f} s on average" if waits else ""
        name_it(y + LINE / 2, f"right in {len(waits)} of {known}{mean}" if known else "", color=RED, fontsize=6)
        least = y + 2 * LINE
        for reply, again in groups(said[name])[:LISTED]:
            columns = (str(reply["number"]), f"{reply['time']:g} s", reply["judged"])
            y = paragraph(write, inch, y, columns, reply["shown"] + again, FOREST if reply["right"] else ORANGE)
        if (more := len(groups(said[name])) - LISTED) > 0 or not said[name]:
            write(0, y, f"… {more} more, in ours5_before_after.csv" if said[name] else "NO REPLY at every turn", color=GREY)
            y += LINE
        y = max(y, least)
    figure.set_size_inches(WIDTH, y + KEY)
    axes.set(xlim=(0, end), ylim=(y + KEY, 0))
    axes.set_axis_off()
    key(figure, run)
    rows = [{"model": name} | {part: reply[part] for part in ("time", "text", "right", "judged")} for name in models for reply in said[name]]
    return figure, alt(found, said), rows or [{"model": name, "time": "", "text": "", "right": "", "judged": ""} for name in models]


def bar(axes, one, y, high, **look):
    """A gold span at height y."""
    axes.add_patch(Rectangle((one["start"], y - high / 2), one["end"] - one["start"], high, **{"facecolor": GREEN} | look))


def lane(axes, y, one, gold, decisions):
    """A model's lane without its replies: gold spans, onsets, silent turns, and bars from an onset to the first right reply."""
    for span in gold:
        bar(axes, span, y, ROW, alpha=0.13, linewidth=0)
        if span["onset"] is not None:
            axes.plot([span["onset"]] * 2, [y - ROW / 2, y + ROW / 2], color=RED, linewidth=0.8, linestyle=(0, (2, 1.5)))
    for onset, time in one["first_right"]:
        axes.plot([onset, time], [y - ROW / 2 + 0.02] * 2, color=RED, linewidth=2.2, solid_capstyle="butt")
    silent = [time for time in decisions if time not in {reply["time"] for reply in one["replies"]}]
    axes.plot(silent, [y] * len(silent), ".", color=GREY, markersize=3, clip_on=False)


def paragraph(write, inch, y, columns, text, color):
    """Number, time and judgement of a text, and the text beside them; the height below it."""
    for x, (word, how) in zip((0, 0.17, 0.43), zip(columns, ({"weight": "bold", "color": color}, {}, {"color": color}))):
        write(x * inch, y, word, **how)
    lines = textwrap.wrap(text, LETTERS) or [""]
    for k, line in enumerate(lines):
        write(0.83 * inch, y + k * LINE, line, fontsize=6.2)
    return y + len(lines) * LINE


def key(figure, run):
    """What the signs mean, and where the video comes from."""
    dot = {"linestyle": "", "marker": "o", "markersize": 7}
    signs = [Line2D([], [], linestyle="", marker=".", color=GREY, markersize=5, label="NO REPLY"),
             Line2D([], [], **dot, color=FOREST, label="a reply that is right"),
             Line2D([], [], **dot, color=ORANGE, markerfacecolor="white", label="wrong, or outside the gold spans"),
             Line2D([], [], linestyle="", marker=Path([(-1, 0.4), (1, 0.4), (-1, -0.4), (1, -0.4)], [1, 2, 1, 2]), color=ORANGE, markersize=5, markeredgewidth=1.4, label="the same words again"),
             Patch(facecolor=GREEN, alpha=0.35, edgecolor=GREEN, label="gold span"),
             Line2D([], [], linestyle="", marker="*", color=RED, markersize=8, label="onset: really seen from here (ours)"),
             Line2D([], [], color=RED, linewidth=2.2, label="from the onset to the first right reply")]  # fmt: skip
    figure.legend(handles=signs, loc="upper center", bbox_to_anchor=(0.5, (KEY - 0.02) / figure.get_figheight()), ncols=3, columnspacing=1.2, fontsize=SMALL)
    figure.text(0.5, 0.12 / figure.get_figheight(), f"{run.line()} Of the first test videos the one with the most gold spans, whatever was said of it.",
                ha="center", va="top", fontsize=SMALL, color=GREY)  # fmt: skip


if __name__ == "__main__":
    drawings.main(draw)
