"""Results files in, tables out (Markdown, LaTeX, CSV): the kit's numbers with the paper's beside them."""

import argparse
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from ..errors import UserError
from ..files import read_csv, read_json, write_atomic, write_csv
from ..profile import load_profile
from ..score.duplicates import MIN_MULTI_SPANS

FIGURES = Path(__file__).resolve().parents[2] / "figures"
PAPER = FIGURES / "data" / "paper"
TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["html"]),
                        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
NOT_RUN, FAIL, NOTHING = "NOT RUN", "FAIL", "-"
SMOKE = "Smoke profile: these numbers mean nothing; they show that the code runs. The paper's are left out."


class NotRun(Exception):
    """A results file that a drawing needs is not there, or cannot be read; its text names it."""


@dataclass(frozen=True)
class Run:
    """A results folder; its manifest stands in it or beside it."""

    data: Path

    @cached_property
    def manifest(self) -> dict:
        for folder in (self.data, self.data.parent):
            if (folder / "manifest.json").is_file():
                return read_json(folder / "manifest.json")
        return {}

    @property
    def profile(self) -> str:
        return self.manifest.get("profile") or self.data.resolve().parent.name

    @cached_property
    def smoke(self) -> bool:
        """True when the numbers mean nothing and may not stand beside the paper's."""
        try:
            return self.profile == "smoke" or not load_profile(self.profile).meaningful
        except UserError:  # the profile file of another machine
            return False

    def rows(self, name: str) -> list[dict[str, str]]:
        """Rows of a results CSV; none when it is missing."""
        return read_csv(self.data / name) if (self.data / name).is_file() else []

    def need(self, name: str):
        """Rows of a CSV or content of a JSON file; NotRun where there is nothing."""
        try:
            found = read_json(self.data / name) if name.endswith(".json") else self.rows(name)
        except UserError as error:
            raise NotRun(f"{name} is missing or damaged: {error}") from None
        if not found:
            raise NotRun(f"{name} is missing or empty")
        return found

    def line(self, rows: Sequence[Mapping] = ()) -> str:
        """Where a drawing comes from: profile and seeds."""
        seeds = sorted({str(row["seed"]) for row in rows if row.get("seed")}, key=number)
        many = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
        of = f", {many} ({', '.join(seeds)})" if seeds else ""
        return f"Kit: profile {self.profile}{of}" + (", mean ± deviation." if len(seeds) > 1 else ".")


def number(text) -> float | None:
    """A cell's value; None for an empty one or a word."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def select(rows: Sequence[Mapping], **filters) -> list[Mapping]:
    """Rows whose columns equal the filters, as texts or as numbers."""
    def same(left, right) -> bool:
        return str(left) == str(right) or (number(left) is not None and number(left) == number(right))

    return [row for row in rows if all(same(row.get(key, ""), value) for key, value in filters.items())]


def figure_of(row: Mapping, metric: str) -> float | None:
    """A row's metric; None also where Table 2's rule of few replies withholds the duplicates."""
    few = number(row.get("multi_spans")) if metric == "duplicate" else None
    return None if few is not None and few < MIN_MULTI_SPANS else number(row.get(metric))


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


def latex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    signs = {"\\": r"\textbackslash{}", "±": r"$\pm$", "<": "$<$", ">": "$>$", "~": r"\textasciitilde{}",
             "^": r"\textasciicircum{}", "†": r"$\dagger$"} | {sign: "\\" + sign for sign in "&%$#_{}"}
    return "".join(signs.get(sign, sign) for sign in text)


TEMPLATES.filters["latex"] = latex


def beside(run: Run, name: str, title: str, lines: Sequence, columns: Sequence, notes: list[str]) -> Table:
    """A table with a paper row and a kit row for every line; tab2_x reads the two table2.csv.

    lines: (label, filters in the paper's file or None, in the kit's or None); columns: (header, metrics,
    filters, digits). A smoke run gets no paper rows.
    """
    file = f"table{name[3]}.csv"
    theirs, ours, rows = Run(PAPER).rows(file), run.rows(file), []
    for label, *both in lines:
        for who, source, filters in zip(("paper", "kit"), (theirs, ours), both):
            if filters is not None and not (run.smoke and who == "paper"):
                cells = [cell(source, what, digits, **filters, **more) for _, what, more, digits in columns]
                none = NOTHING if who == "paper" else NOT_RUN
                rows.append([label, who, *(none if text == NOT_RUN else text for text in cells)])
    last = [SMOKE] if run.smoke else []
    return Table(name, title, ["", "from", *(c[0] for c in columns)], rows, [*notes, run.line(ours), *last])


def drawing(build: Callable[[Run], Table]) -> Callable[[Path, Path], list[Path]]:
    """Make of `build(run) -> Table` the script's `draw(data, out) -> files`; draw.table(data): the Table."""
    @functools.wraps(build)
    def draw(data: Path, out: Path) -> list[Path]:
        return draw.table(data).write(Path(out))

    draw.table = lambda data: build(Run(Path(data)))
    return draw


def main(draw: Callable[[Path, Path], list[Path]]) -> None:
    """The command line of a script in figures/."""
    parser = argparse.ArgumentParser(description=draw.__doc__)
    parser.add_argument("--data", type=Path, default=FIGURES / "data" / "study", help="results folder")
    parser.add_argument("--out", type=Path, default=FIGURES / "out", help="where the files go")
    args = parser.parse_args()
    print(*draw(args.data, args.out), sep="\n")
