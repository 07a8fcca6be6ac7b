"""Ours: one test video as its stream comes in, and what each model says of it; when each first is right, after the hidden onset."""

import textwrap

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import drawings
import style

NAMES = {"threshold": "threshold\nbaseline", "sft": "SFT", "rl": "SFT +\nGRPO"}
INCHES, LINES, LETTER = 9.0, 4, 0.055  # width of the figure; lines of a reply; width of a letter (inches)


@drawings.figure("ours5_before_after", "Ours. One test video, and what each model says of it")
def draw(run):
    """Frames along the time; below them the gold spans with their onsets; a lane a model: a dot where it is silent, its words where it speaks."""
    found = run.need("before_after.json")
    frames, gold, every, models = found["frames"], found["gold"], found["interval"], found["models"]
    end = max(found["decisions"])
    figure = Figure(figsize=(INCHES, 1.9 + 0.95 * len(models)), layout="constrained")
    strip, spans, *lanes = figure.subplots(2 + len(models), 1, sharex=True, height_ratios=[0.55, 0.45, *[0.9] * len(models)])
    for frame in frames:
        drawings.picture(strip, run.data, frame["image"], (frame["time"] + 0.04 * every, frame["time"] + 0.96 * every, 0, 1))
    strip.set_title(f"The user asks: “{found['question']}”", loc="left")
    for k, one in enumerate(gold):
        top = 0.5 * (k % 2)
        spans.add_patch(Rectangle((one["start"], top), one["end"] - one["start"], 0.42, facecolor=style.GREEN, alpha=0.3, edgecolor=style.GREEN))
        if one["onset"] is not None:
            spans.plot(one["onset"], top + 0.21, marker="*", color=style.RED, markersize=9)
    onsets = "gold span,\n★ its onset" if any(one["onset"] is not None for one in gold) else "gold span"
    for axes, name in zip((spans, *lanes), (onsets, *(NAMES.get(name, name) for name in models))):
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    rows = []
    for axes, (name, said) in zip(lanes, models.items()):
        times = [reply["time"] for reply in said["replies"]]
        silent = [time for time in found["decisions"] if time not in times]
        axes.plot(silent, [0.8] * len(silent), ".", color=style.GREY, markersize=3)
        for reply, until in zip(said["replies"], [*times[1:], end + 2.5 * every]):
            colour, face = (style.GREEN, style.GREEN) if reply["right"] else (style.ORANGE, "white")
            axes.plot(reply["time"], 0.8, "o", color=colour, markerfacecolor=face, markersize=6)
            letters = max(6, int((until - reply["time"]) * 0.86 * INCHES / (end + every) / LETTER))
            words = textwrap.wrap(reply["text"], letters, max_lines=LINES, placeholder=" …")
            axes.text(reply["time"] - 0.15 * every, 0.62, "\n".join(words), fontsize=6, va="top", color="#222222")
            rows.append({"model": name} | reply)
        for onset, time in said["first_right"]:
            axes.plot([onset, time], [0.95, 0.95], color=style.RED, linewidth=2, solid_capstyle="butt")
    for axes in (strip, spans, *lanes):
        axes.set(ylim=(0, 1.05), yticks=[], xlim=(0, end + 1.5 * every))
        axes.spines["left"].set_visible(False)
        axes.tick_params(bottom=axes is lanes[-1])
        axes.spines["bottom"].set_visible(axes is lanes[-1])
    lanes[-1].set_xlabel("video time, s. Grey dot: NO REPLY; green, filled: right; orange, hollow: wrong or beside a span. Red: from the onset to the first right reply.",
                         fontsize=7.5)  # fmt: skip
    told = [f"{name} speaks at {len(said['replies'])} of {len(found['decisions'])} turns" + (
        f" and is right {sum(t - o for o, t in said['first_right']) / len(said['first_right']):.1f} s after the onset" if said["first_right"] else "")
        for name, said in models.items()]  # fmt: skip
    alt = f"{len(frames)} frames of a test video, {len(gold)} gold spans, and the turns of {len(models)} models. {'; '.join(told)}."
    return figure, alt, rows or [{"model": name, "time": "", "text": "", "right": ""} for name in models]


if __name__ == "__main__":
    drawings.main(draw)
