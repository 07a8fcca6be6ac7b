"""One look for every figure, and files with the same bytes at every drawing."""

import functools
import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from ..files import write_atomic, write_csv
from .tables import NOT_RUN, SMOKE, NotRun, Run

# After Okabe and Ito, darkened for contrast: told apart by colour-blind readers.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#B85C00", "#009E73", "#C03000"
PURPLE, SKY, GREY = "#9A4F7E", "#56B4E9", "#666666"
SERIES = [{"color": c, "linestyle": s, "marker": m} for c, s, m in
          zip((BLUE, ORANGE, GREEN, PURPLE), ("-", "--", "-.", ":"), "osD^")]
LOOK = {"font.family": "DejaVu Sans", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
        "legend.frameon": False, "svg.hashsalt": "mmduet2kit", "svg.fonttype": "path",
        "text.parse_math": False, "savefig.dpi": 150, "path.simplify": False, "axes.titlesize": 10}
FIXED = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None},
         "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}


def drawing(name: str, title: str) -> Callable:
    """Make of `build(run) -> (figure, alt text, rows)` the script's `draw(data, out) -> files`.

    rows: the figure's data, dicts with the same keys. Files: svg, pdf, png, alt text as .txt, rows as .csv.
    Input that is missing or damaged gives a figure that says NOT RUN and why.
    """
    def decorate(build: Callable[[Run], tuple[Figure, str, Sequence[dict]]]) -> Callable:
        @functools.wraps(build)
        def draw(data: Path, out: Path) -> list[Path]:
            run = Run(Path(data))
            with matplotlib.rc_context():
                matplotlib.rcdefaults()  # a user's own settings must not change a byte
                matplotlib.rcParams.update(LOOK)
                try:
                    figure, alt, rows = build(run)
                except (NotRun, AttributeError, IndexError, KeyError, TypeError, ValueError) as reason:
                    why = str(reason) if isinstance(reason, NotRun) else f"its data is damaged ({reason!r})"
                    figure, alt, rows = _not_run(title, why)
                alt = f"{title}. {alt}" + (f" {SMOKE}" if run.smoke else "")
                if run.smoke:
                    figure.text(0.5, 0.0, SMOKE, ha="center", va="top", fontsize=8, color=RED)
                return _save(figure, Path(out), name, alt, rows)

        draw.title = title
        return draw

    return decorate


def _not_run(title: str, why: str) -> tuple[Figure, str, list[dict]]:
    figure = Figure(figsize=(7, 1.6))
    figure.text(0.5, 0.62, NOT_RUN, ha="center", fontsize=20, color=GREY, weight="bold")
    told = textwrap.fill(f"{title}: {why}", 90)
    figure.text(0.5, 0.2, told, ha="center", va="center", color=GREY)
    return figure, f"{NOT_RUN}: {why}.", [{"status": NOT_RUN, "reason": why}]


def _save(figure: Figure, out: Path, name: str, alt: str, rows: Sequence[dict]) -> list[Path]:
    paths = []
    for kind, metadata in FIXED.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=metadata, bbox_inches="tight", pad_inches=0.08)
        paths.append(write_atomic(out / f"{name}.{kind}", buffer.getvalue()))
    paths.append(write_atomic(out / f"{name}.txt", alt + "\n"))
    return [*paths, write_csv(out / f"{name}.csv", rows, None if rows else ["status"])]


def picture(axes, folder: Path, image: str, extent: Sequence[float], edge=GREY, width: float = 0.8) -> None:
    """The image file folder/image in `extent` (x0, x1, y0, y1) framed; a grey field if it is missing."""
    x0, x1, y0, y1 = extent
    there = (folder / image).is_file()
    if there:
        axes.imshow(imread(folder / image), extent=extent, aspect="auto", interpolation="nearest", zorder=1)
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, edgecolor=edge, linewidth=width, zorder=2,
                             facecolor="none" if there else "#dddddd"))
