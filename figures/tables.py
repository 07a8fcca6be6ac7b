"""Reading results files: the runs' and the paper's rows; what is missing is NOT RUN."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmduet2kit.errors import UserError
from mmduet2kit.files import read_csv, read_json
from mmduet2kit.report import FIGURES, PAPER, SMOKE, STUDY, TEMPLATES  # noqa: F401 - the scripts take them from here
from mmduet2kit.score.duplicates import MIN_MULTI_SPANS

NOT_RUN, FAIL = "NOT RUN", "FAIL"


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
                found = read_json(folder / "manifest.json")
                return found if isinstance(found, dict) else {}
        return {}

    @property
    def profile(self) -> str:
        return self.manifest.get("profile") or self.data.resolve().parent.name

    @cached_property
    def smoke(self) -> bool:
        """True when the numbers mean nothing and may not stand beside the paper's."""
        return self.profile == "smoke" or not (self.manifest.get("settings") or {}).get("meaningful", True)

    @cached_property
    def procedural(self) -> bool:
        """Are its videos the kit's own world, the only one with known onsets and with a best blind guess (illustrate.py)?"""
        path = self.data / "dataset.json"
        return not path.is_file() or bool(read_json(path).get("best_blind_score", True))

    def rows(self, name: str) -> list[dict[str, str]]:
        """Rows of a results CSV; none when it is missing."""
        return read_csv(self.data / name) if (self.data / name).is_file() else []

    def need(self, name: str):
        """Rows of a CSV or content of a JSON file; NotRun where there is nothing."""
        try:
            found = read_json(self.data / name) if name.endswith(".json") else self.rows(name)
        except UserError as error:
            raise NotRun(str(error).replace(f"{self.data}/", "").rstrip(".")) from None  # a drawing names no folder of this machine
        if not found:
            raise NotRun(f"{name} is missing or empty")
        return found

    def line(self, rows: Sequence[Mapping] = (), many_are: str = "mean ± deviation") -> str:
        """Where a drawing comes from: profile and seeds; what it shows of several."""
        seeds = sorted({str(row["seed"]) for row in rows if row.get("seed")}, key=number)
        many = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
        of = f", {many} ({', '.join(seeds)})" if seeds else ""
        return f"Kit: profile {self.profile}{of}" + (f", {many_are}." if len(seeds) > 1 else ".")


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


def advantages(totals: Sequence[float]) -> list[float]:
    """A group's (reward - mean) / (standard deviation + 1e-4), as TRL computes them."""
    mean, spread = statistics.mean(totals), statistics.stdev(totals)
    return [(total - mean) / (spread + 1e-4) for total in totals]
