"""Figure 1: the two kinds of dialogue, one question or many questions with many answers."""

import textwrap

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

import drawings
import style

TITLE = "Figure 1. Proactive dialogues: one question (1QnA), many questions (nQnA)"
MOST_FRAMES, WRAP, LINE = 10, 94, 0.125  # frames; letters a line; inches a line
# By the first letter of an event's label: colour, marker, name, height on the timeline.
KINDS = {
    "Q": (style.ORANGE, "v", "the user asks", 1.72),
    "I": (style.PURPLE, "D", "immediate answer", 1.22),
    "A": (style.FOREST, "s", "gold span of an answer", 0.5),
}


@drawings.figure("fig1_dialogues", TITLE)
def draw(run):
    """Frames over time; below them marks where the user asks or is answered at once, and the gold spans; then all texts."""
    types = run.need("figure1.json")["types"]
    listed = {kind: events(dialogue) for kind, dialogue in types.items()}
    lines = {kind: [line for event in found for line in wrapped(event)] for kind, found in listed.items()}
    heights = [part for kind in types for part in (1.5, LINE * len(lines[kind]) + 0.05)]
    figure = Figure(figsize=(style.WIDTH, sum(heights) + 0.6), layout="constrained")
    grid = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for k, (kind, dialogue) in enumerate(types.items()):
        timeline(grid[2 * k], run.data, kind, dialogue, listed[kind])
        texts = grid[2 * k + 1]
        texts.axis("off")
        texts.set(xlim=(0, 1), ylim=(LINE * len(lines[kind]) + 0.02, 0))
        for place, (label, text, color) in enumerate(lines[kind]):
            texts.text(0, LINE * place, label, color=color, va="top", fontsize=style.SMALL, weight="bold")
            texts.text(0.045, LINE * place, text, color=style.INK, va="top", fontsize=style.SMALL)
    legend(figure, {event["label"][0] for found in listed.values() for event in found})
    rows = [{"type": kind, **event} for kind, found in listed.items() for event in found]
    names = {"Q": "question", "I": "immediate answer", "A": "gold span"}
    alt = " ".join(
        f"{kind}: {', '.join(names[one['label'][0]] + ' ' + one['label'] + ' at ' + span(one) for one in found)}."
        for kind, found in listed.items()
    )
    return figure, f"Timelines of two dialogues over video frames. {alt}", rows


def legend(figure, there):
    """What the marks and the bars mean, above everything; `there`: the first letters of the labels drawn."""
    marks = [
        Patch(facecolor=style.GREEN, alpha=0.35, edgecolor=style.GREEN, label=name)
        if key == "A"
        else Line2D([], [], linestyle="", color=color, marker=marker, label=name)
        for key, (color, marker, name, _) in KINDS.items()
        if key in there
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=3)


def events(dialogue):
    """Questions Q1.., immediate answers I1.. and replies A1.. in order of time."""
    found = [
        {"label": f"Q{k}", "start": q["time"], "end": q["time"], "text": q["text"]}
        for k, q in enumerate(dialogue["questions"], 1)
    ]
    found += [
        {"label": f"I{k}", "start": i["time"], "end": i["time"], "text": i["text"]}
        for k, i in enumerate(dialogue.get("immediate", []), 1)
    ]
    found += [
        {"label": f"A{k}", "start": r["start"], "end": r["end"], "text": r["text"]}
        for k, r in enumerate(dialogue["replies"], 1)
    ]
    return sorted(found, key=lambda event: (event["start"], "QIA".index(event["label"][0])))


def span(event):
    """The event's time in words."""
    return f"{event['start']:.4g} s" if event["start"] == event["end"] else f"{event['start']:.4g}-{event['end']:.4g} s"


def wrapped(event):
    """(label, text, colour) of the lines of an event; a label at the first."""
    lines = textwrap.wrap(f"{span(event)}  {event['text']}", WRAP)
    return [("" if k else event["label"], line, KINDS[event["label"][0]][0]) for k, line in enumerate(lines)]


def timeline(axes, folder, kind, dialogue, found):
    """One dialogue: frames on top, user below them, then the gold spans of the assistant's replies."""
    duration, frames = dialogue["duration"], dialogue["frames"]
    frames = frames[:: -(-len(frames) // MOST_FRAMES)] if frames else []
    width = duration / max(len(frames), 1)
    half = min(0.47 * width, 0.052 * duration)  # about square on the page
    for k, frame in enumerate(frames):
        middle = (k + 0.5) * width
        drawings.picture(axes, folder, frame["image"], (middle - half, middle + half, 2.2, 3.95))
    for event in found:
        start, end, label = event["start"], event["end"], event["label"]
        color, marker, _, height = KINDS[label[0]]
        if label[0] == "A":
            axes.barh(height, end - start, left=start, height=0.7, color=style.GREEN, alpha=0.35, edgecolor=style.GREEN)
            axes.text((start + end) / 2, height, label, ha="center", va="center", color=color, weight="bold")
        else:
            beside = any(other["label"][0] == "Q" and other["start"] == start for other in found) and label[0] == "I"
            axes.plot([start, start], [0, 2], color=color, linestyle="" if beside else ":", linewidth=1)
            axes.plot(start, height, marker=marker, color=color, markersize=5.5, clip_on=False)
            axes.text(start + 0.015 * duration, height, label, color=color, va="center", weight="bold")
    axes.set(
        xlim=(0, duration), ylim=(0, 4), yticks=[0.5, 1.5, 3.1], yticklabels=["gold spans", "asked,\nanswered\nat once", "video"], xlabel="video time, s"
    )
    axes.tick_params(left=False)
    axes.set_title(kind, loc="left", weight="bold")


if __name__ == "__main__":
    drawings.main(draw)
