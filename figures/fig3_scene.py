"""Figure 3: a scene's span is coarse; when the thing is really seen only the kit's own world knows (real videos: no onset)."""

import textwrap

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import drawings
import style

ACROSS = 8  # frames a row


@drawings.figure("fig3_scene", "Figure 3. A scene of a video, its caption, and the hidden onset (ours)")
def draw(run):
    """Frames of a video, those of the scene framed in green; below, its span and the hidden onset."""
    scene = run.need("figure3.json")
    frames, (start, end), onset = scene["frames"], scene["span"], scene["onset"]
    down = -(-len(frames) // ACROSS)
    figure = Figure(figsize=(style.WIDTH, 0.74 * down + 1.15), layout="constrained")
    strip, line = figure.subplots(2, 1, height_ratios=[0.74 * down, 0.6])
    strip.axis("off")
    strip.set(xlim=(-0.05, min(len(frames), ACROSS) + 0.05), ylim=(1.1 * down + 0.02, 0))
    for k, frame in enumerate(frames):
        row, column = divmod(k, ACROSS)
        edge, width = (style.GREEN, 2.5) if frame["in_scene"] else (style.GREY, 0.6)
        top = 1.1 * row + 0.2
        drawings.picture(
            strip, run.data, frame["image"], (column + 0.08, column + 0.92, top + 0.84, top), edge, width
        )
        strip.text(
            column + 0.5,
            top - 0.11,
            f"{frame['time']:g} s",
            ha="center",
            va="center",
            fontsize=style.SMALL,
            color=style.GREY,
        )
    strip.set_aspect("equal")
    times = [frame["time"] for frame in frames]
    line.add_patch(
        Rectangle((start, 0.15), end - start, 0.5, facecolor=style.GREEN, alpha=0.3, edgecolor=style.GREEN)
    )
    late = end > max(times) * 0.75
    line.text(
        start if late else end,
        0.4,
        f"  scene {start:g}-{end:g} s  ",
        ha="right" if late else "left",
        va="center",
    )
    if onset is not None:
        line.plot([onset] * 2, [0, 0.85], color=style.RED, linestyle="--")
        line.plot(onset, 0.95, marker="*", color=style.RED, markersize=8, clip_on=False)
        line.text(
            onset,
            0.95,
            f"  hidden onset {onset:g} s (ours, not in the paper)  ",
            color=style.RED,
            va="center",
            ha="left" if onset < (min(times) + max(times)) / 2 else "right",
        )
    caption = textwrap.fill(f"Caption: “{scene['caption']}”", 90)
    line.set(
        xlim=(min(times), max(max(times), end)),
        ylim=(0, 1),
        yticks=[],
        xlabel=f"video time, s\n{caption}",
    )
    line.spines["left"].set_visible(False)
    alt = (
        f"{len(frames)} frames; those from {start:g} to {end:g} s belong to the scene, framed in green. "
        f"Caption: {scene['caption']} "
        + (
            "Onset: NOT RUN, real videos have none."
            if onset is None
            else f"The hidden onset, known to the kit only, is at {onset:g} s."
        )
    )
    return figure, alt, frames


if __name__ == "__main__":
    drawings.main(draw)
