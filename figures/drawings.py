"""What the scripts of this folder share: one look, files with the same bytes at every drawing, the paper's rows beside ours."""

import argparse
import functools
import io
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox

from mmduet2kit.errors import UserError
from mmduet2kit.files import write_atomic, write_csv
from tables import FAIL, FIGURES, NOT_RUN, PAPER, SMOKE, STUDY, NotRun, Run, figure_of, select
from tex import caption, columns, label, latex
from style import GREY, PRINT, RED, SMALL, WIDTH

TEMPLATES = Environment(loader=FileSystemLoader(FIGURES), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
NOTHING = "-"
RULE = "“-”: fewer than 10 gold turns have more than one reply (Table 2's rule). FAIL: a reply at almost every turn."
FEW = ("Table 2's rule for few replies (“-” below 10 gold turns with more than one reply) is not applied here, since this table's file does "
       "not count such turns: duplicates of the kit stand on however few replies there are, and are 0.0 where there are none.")  # fmt: skip
# What there is no number for, and what damaged data raises.
UNDRAWN = (NotRun, UserError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)
FIXED = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None},
         "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}


def why(error: Exception) -> str:
    """Why something could not be drawn or judged (one of UNDRAWN), for the reader."""
    return str(error) if isinstance(error, (NotRun, UserError)) else f"its data is damaged ({error!r})"


def figure(name: str, title: str) -> Callable:
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
                matplotlib.rcParams.update(PRINT)
                try:
                    return _finish(run, Path(out), name, title, *build(run))
                except UNDRAWN as error:
                    return _finish(run, Path(out), name, title, *_not_run(title, why(error)))

        draw.title = title
        return draw

    return decorate


def _finish(run: Run, out: Path, name: str, title: str, made: Figure, alt: str, rows: Sequence[dict]) -> list[Path]:
    if run.smoke:
        made.text(0.5, 0.0, SMOKE, ha="center", va="top", fontsize=SMALL, color=RED)
    return _save(made, out, name, f"{title}. {alt}" + (f" {SMOKE}" if run.smoke else ""), rows)


def _not_run(title: str, why: str) -> tuple[Figure, str, list[dict]]:
    figure = Figure(figsize=(WIDTH, 1.2))
    figure.text(0.5, 0.62, NOT_RUN, ha="center", fontsize=16, color=GREY, weight="bold")
    told = textwrap.fill(f"{title}: {why}", 85)
    figure.text(0.5, 0.2, told, ha="center", va="center", color=GREY)
    return figure, f"{NOT_RUN}: {why}.", [{"status": NOT_RUN, "reason": why}]


def _save(figure: Figure, out: Path, name: str, alt: str, rows: Sequence[dict]) -> list[Path]:
    paths = []
    figure.draw_without_rendering()
    tall = figure.get_tightbbox()
    box = Bbox.from_extents(0, tall.y0 - 0.06, WIDTH, tall.y1 + 0.06)  # cut above and below only: all have a paper's text width
    for kind, metadata in FIXED.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=metadata, bbox_inches=box)
        paths.append(write_atomic(out / f"{name}.{kind}", buffer.getvalue()))
    paths.append(write_atomic(out / f"{name}.txt", alt + "\n"))
    return [*paths, write_csv(out / f"{name}.csv", rows, None if rows else ["status"])]


def source(figure: Figure, *sentences: str) -> None:
    """A grey line under the figure: where its numbers come from, and how to read its signs."""
    figure.supxlabel(textwrap.fill(" ".join(sentences), 108), fontsize=SMALL, color=GREY)


def picture(axes, folder: Path, image: str, extent: Sequence[float], edge=GREY, width: float = 0.8) -> None:
    """The image file folder/image in `extent` (x0, x1, y0, y1) framed; a grey field if it is missing."""
    x0, x1, y0, y1 = extent
    there = (folder / image).is_file()
    if there:
        axes.imshow(imread(folder / image), extent=extent, aspect="auto", interpolation="nearest", zorder=1)
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, edgecolor=edge, linewidth=width, zorder=2,
                             facecolor="none" if there else "#dddddd"))


def cell(rows: Sequence[Mapping], metrics: str | Sequence[str], digits: int = 1, **filters) -> str:
    """Metrics of the rows that match, mean over seeds, joined by slashes; or NOT RUN, FAIL, -."""
    found = [row for row in select(rows, **filters) if row.get("status", "ok") != NOT_RUN]
    good = [row for row in found if row.get("status", "ok") != FAIL]
    if not good:
        return FAIL if found else NOT_RUN

    def text(metric: str) -> str:
        values = [value for row in good if (value := figure_of(row, metric)) is not None]
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(set(values)) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{spread}" if values else NOTHING

    partly = f" ({FAIL}: {len(found) - len(good)} of {len(found)} seeds)" if len(found) > len(good) else ""
    return " / ".join(map(text, [metrics] if isinstance(metrics, str) else metrics)) + partly


@dataclass
class Table:
    """Cells as text, one list a row; notes stand below."""

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def write(self, out: Path) -> list[Path]:
        """<out>/<name>.md, .tex and .csv."""
        made = {kind: TEMPLATES.get_template(f"table.{kind}.jinja").render(table=self) for kind in ("md", "tex")}
        paths = [write_atomic(out / f"{self.name}.{kind}", text) for kind, text in made.items()]
        rows = [dict(zip(self.header, row, strict=True)) for row in self.rows]
        return [*paths, write_csv(out / f"{self.name}.csv", rows, self.header)]


TEMPLATES.filters |= {"latex": latex, "caption": caption, "label": label}
TEMPLATES.globals["columns"] = columns


def strangers(rows: Sequence[Mapping]) -> list[str]:
    """Models of these rows that the run has not trained: anybody's checkpoints, named owner--name."""
    return sorted({row["model"] for row in rows if "--" in row["model"] and not row["model"].endswith(":poll")})


def beside(run: Run, name: str, title: str, lines: Sequence, columns: Sequence, notes: list[str], file: str = "") -> Table:
    """A table with a paper row and a kit row for every line; tab2_x reads the two table2.csv, unless another `file` is given.

    lines: (label, filters in the paper's file or None, in the kit's or None); columns: (header, metrics,
    filters, digits). A smoke run gets no paper rows.
    """
    file = file or f"table{name[3]}.csv"
    theirs, ours, rows = Run(PAPER).rows(file), run.rows(file), []
    for label, *both in lines:
        for who, source, filters in zip(("paper", "kit"), (theirs, ours), both):
            if filters is not None and not (run.smoke and who == "paper"):
                cells = [cell(source, what, digits, **filters, **more) for _, what, more, digits in columns]
                none = NOTHING if who == "paper" else NOT_RUN
                rows.append([label, who, *(none if text == NOT_RUN else text for text in cells)])
    last = [SMOKE] if run.smoke else []
    return Table(name, title, ["", "from", *(c[0] for c in columns)], rows, [*notes, run.line(ours), *last])


def table(build: Callable[[Run], Table]) -> Callable[[Path, Path], list[Path]]:
    """Make of `build(run) -> Table` the script's `draw(data, out) -> files`; draw.table(data): the Table."""
    @functools.wraps(build)
    def draw(data: Path, out: Path) -> list[Path]:
        return draw.table(data).write(Path(out))

    def made(data: Path) -> Table:
        try:
            return build(Run(Path(data)))
        except UNDRAWN as error:
            return Table(build.__module__, (build.__doc__ or "").split(".")[0], ["", "why"], [[NOT_RUN, why(error)]])

    draw.table = made
    return draw


def main(draw: Callable[[Path, Path], list[Path]]) -> None:
    """The command line of a script in figures/."""
    parser = argparse.ArgumentParser(description=draw.__doc__)
    parser.add_argument("--data", type=Path, default=STUDY, help="results folder")
    parser.add_argument("--out", type=Path, default=FIGURES / "out", help="where the files go")
    args = parser.parse_args()
    print(*draw(args.data, args.out), sep="\n")
