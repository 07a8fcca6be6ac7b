"""Figure 1: the two kinds of dialogue, one question or many questions with many answers."""

import textwrap

from matplotlib.figure import Figure

import drawings
import style

TITLE = "Figure 1. Proactive dialogues: one question (1QnA), many questions (nQnA)"
MOST_FRAMES, WRAP = 10, 100


@drawings.figure("fig1_dialogues", TITLE)
def draw(run):
    """Frames over time, question marks where the user asks, bars where a reply is expected, texts below."""
    types = run.need("figure1.json")["types"]
    listed = {kind: events(dialogue) for kind, dialogue in types.items()}
    lines = {kind: [line for event in found for line in wrapped(event)] for kind, found in listed.items()}
    heights = [part for kind in types for part in (2.0, 0.16 * len(lines[kind]) + 0.1)]
    figure = Figure(figsize=(7.5, sum(heights) + 0.4), layout="constrained")
    grid = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for k, (kind, dialogue) in enumerate(types.items()):
        timeline(grid[2 * k], run.data, kind, dialogue, listed[kind])
        grid[2 * k + 1].axis("off")
        for place, (text, color) in enumerate(lines[kind]):
            grid[2 * k + 1].text(
                0,
                1 - place / max(len(lines[kind]), 1),
                text,
                color=color,
                va="top",
                fontsize=7.5,
                transform=grid[2 * k + 1].transAxes,
            )
    rows = [{"type": kind, **event} for kind, found in listed.items() for event in found]
    alt = " ".join(
        f"{kind}: {', '.join(one['label'] + ' at ' + span(one) for one in found)}."
        for kind, found in listed.items()
    )
    return figure, f"Timelines of two dialogues over video frames. {alt}", rows


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
    return (
        f"{event['start']:g} s"
        if event["start"] == event["end"]
        else f"{event['start']:g}-{event['end']:g} s"
    )


def wrapped(event):
    """(line, colour) pairs of an event's text."""
    color = {"Q": style.ORANGE, "I": style.PURPLE, "A": style.BLUE}[event["label"][0]]
    return [
        (line, color)
        for line in textwrap.wrap(
            f"{event['label']}  {span(event)}  {event['text']}", WRAP, subsequent_indent="        "
        )
    ]


def timeline(axes, folder, kind, dialogue, found):
    """One dialogue: frames on top, user below them, then the spans of the assistant's replies."""
    duration, frames = dialogue["duration"], dialogue["frames"]
    frames = frames[:: -(-len(frames) // MOST_FRAMES)] if frames else []
    width = duration / max(len(frames), 1)
    half = min(0.47 * width, 0.048 * duration)  # about square on the page
    for k, frame in enumerate(frames):
        middle = (k + 0.5) * width
        drawings.picture(axes, folder, frame["image"], (middle - half, middle + half, 2.1, 3.9))
    for event in found:
        start, end, label = event["start"], event["end"], event["label"]
        if label[0] == "A":
            axes.barh(
                0.45, end - start, left=start, height=0.7, color=style.BLUE, alpha=0.25, edgecolor=style.BLUE
            )
            axes.text(
                (start + end) / 2, 0.45, label, ha="center", va="center", color=style.BLUE, weight="bold"
            )
        else:
            mark, color, height = ("v", style.ORANGE, 1.4) if label[0] == "Q" else ("D", style.PURPLE, 0.45)
            axes.plot([start, start], [0, 2], color=color, linestyle=":", linewidth=1)
            axes.plot(start, height, marker=mark, color=color, markersize=7, clip_on=False)
            axes.text(start + 0.012 * duration, height + 0.3, label, color=color, va="center", weight="bold")
    axes.set(
        xlim=(0, duration),
        ylim=(0, 4),
        yticks=[0.45, 1.4, 3.0],
        yticklabels=["replies", "user asks", "video"],
        xlabel="video time, s",
    )
    axes.set_title(kind, loc="left", weight="bold")


if __name__ == "__main__":
    drawings.main(draw)
