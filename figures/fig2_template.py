"""Figure 2: the chat template, user turns orange, assistant turns blue, what is said underlined."""

import re

from matplotlib.figure import Figure

import drawings
import style

COLORS = {"system": "#333333", "user": style.ORANGE, "assistant": style.BLUE}
WIDTH, MOST, ROW = 104, 44, 0.13  # characters a line, lines, inches a line
POINTS = 6.2  # font size; a character of DejaVu Sans Mono is 0.602 of it wide
SPECIAL = re.compile(r"(<\|[^|]*\|>(?:×\d+)?|<image>)")
FRAME = re.compile(r"<\|vision_start\|>.*?<\|vision_end\|>|<image>")


@drawings.figure("fig2_template", "Figure 2. The chat template of MMDuet2")
def draw(run):
    """The encoded text of one dialogue with its special tokens; runs of one token are written token×count."""
    segments = run.need("figure2.json")["segments"]
    lines = layout(segments)
    shown = lines[:MOST]
    figure = Figure(figsize=(style.WIDTH, ROW * (len(shown) + 3)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set(xlim=(-0.5, style.WIDTH * 72 / (POINTS * 0.602) - 0.5), ylim=(len(shown) + 3, 0))
    for k, (role, color) in enumerate(COLORS.items()):
        axes.text(16 * k, 0.8, f"■ {role}", color=color, va="center", weight="bold")
    for row, pieces in enumerate(shown, start=2):
        column = 0
        for role, text, said in pieces:
            axes.text(
                column, row, text, color=COLORS[role], family="DejaVu Sans Mono", fontsize=POINTS, va="center"
            )
            if said:
                axes.plot([column, column + len(text)], [row + 0.45] * 2, color=COLORS[role], linewidth=0.6)
            column += len(text)
    if len(lines) > MOST:
        axes.text(
            0,
            len(shown) + 2,
            f"... {len(lines) - MOST} more lines, in fig2_template.csv",
            color=style.GREY,
            va="center",
        )
    heard = [SPECIAL.sub("", FRAME.sub("[a frame] ", s["text"])).strip().removeprefix(s["role"]).strip() for s in segments[:8]]
    said = "; ".join(f"{s['role']}: {text}" for s, text in zip(segments, heard))
    return (
        figure,
        f"The text the model reads. User turns are orange, assistant turns blue. It begins: {said}",
        segments,
    )


def short(text):
    """Runs of one special token as token×count."""
    return re.sub(r"(<\|[^|]*\|>)\1+", lambda run: f"{run[1]}×{len(run[0]) // len(run[1])}", text)


def layout(segments):
    """Lines of (role, text, is it said) pieces, WIDTH characters at most; a new turn begins a new line."""
    lines, column = [], 0
    for segment in segments:
        lines, column = [*lines, []], 0
        role = segment["role"]
        for k, part in enumerate(short(segment["text"]).rstrip("\n").split("\n")):
            if k:
                lines, column = [*lines, []], 0
            for piece in SPECIAL.split(part):
                said = (
                    bool(piece)
                    and not SPECIAL.fullmatch(piece)
                    and not (role in piece and len(piece.strip()) == len(role))
                )
                for word in re.findall(r"\S+\s*|\s+", piece) if said else [piece] if piece else []:
                    if column + len(word.rstrip()) > WIDTH and column:
                        lines, column = [*lines, []], 0
                    lines[-1].append((role, word, said and role != "system"))
                    column += len(word)
    return lines


if __name__ == "__main__":
    drawings.main(draw)
