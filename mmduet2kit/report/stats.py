"""Intervals and change points: two-level paired bootstrap over seeds and videos, lines of three pieces."""

import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from .tables import number

RESAMPLES = 10_000
# column of a table -> factor, numerator and denominator in per_video.csv ("" counts rows)
RATIOS = {"pauc": (100, "pauc_sum", "spans"), "duplicate": (100, "dup_sum", "dup_spans"),
          "latency_s": (1, "latency_sum", "latency_n"), "lucky_percent": (100, "lucky", "correct"),
          "reply_turns": (1, "reply_turns", "")}


class Resampler:
    """The same draws for every cell of a claim, which makes comparisons paired.

    In a resample seeds are drawn with replacement and, in each domain, the questions of the test videos. That
    draw is shared by all models, settings and seeds, because all of them saw the same videos.
    """

    def __init__(self, per_video: Sequence[Mapping], resamples: int = RESAMPLES) -> None:
        self.resamples, self._rows, self._counts = resamples, per_video, {}

    @cached_property
    def _ids(self) -> dict[str, dict[str, int]]:
        ids: dict[str, set] = {}
        for row in self._rows:
            ids.setdefault(row["domain"], set()).add(row["question_id"])
        return {domain: {one: k for k, one in enumerate(sorted(found))} for domain, found in ids.items()}

    @cached_property
    def _cells(self) -> dict[tuple, list[Mapping]]:
        cells: dict[tuple, list] = {}
        for row in self._rows:
            setting = number(row["setting"].rstrip("s")) if row["experiment"] == "T7" else None
            key = (row["experiment"], row["model"], setting, row["domain"], str(row["seed"]))
            cells.setdefault(key, []).append(row)
        return cells

    def _rows_of(self, table: int, filters: Mapping, seed: str) -> list[Mapping]:
        if table == 7:  # per_video.csv names the intervals: model "sft2s-rl1s" or "sft1s", setting "1s"
            model = f"sft{float(filters['sft_interval']):g}s"
            if number(filters["rl_interval"]) is not None:
                model += f"-rl{float(filters['rl_interval']):g}s"
            setting = number(filters["test_interval"])
            return self._cells.get(("T7", model, setting, filters["domain"], seed), [])
        key = (filters.get("model"), None, filters.get("domain"), seed)
        return self._cells.get((f"T{table}", *key), [])

    def per_seed(self, table: int, column: str, filters: Mapping, seed: str) -> float | None:
        """A table's value computed from per_video.csv; None when it has no such rows."""
        rows = self._rows_of(table, filters, seed) if column in RATIOS else []
        if not rows:
            return None
        factor, top, bottom = RATIOS[column]
        below = sum(number(row[bottom]) or 0 for row in rows) if bottom else len(rows)
        return factor * sum(number(row[top]) or 0 for row in rows) / below if below else None

    def draws(self, seeds: int) -> np.ndarray:
        """(resamples, seeds): which seed stands in each place."""
        return np.random.default_rng([7, seeds]).integers(seeds, size=(self.resamples, seeds))

    def _weights(self, domain: str) -> np.ndarray:
        """(resamples, questions): how often each is drawn."""
        if domain not in self._counts:
            count = len(self._ids[domain])
            generator = np.random.default_rng([11, zlib.crc32(domain.encode())])
            drawn = generator.multinomial(count, [1 / count] * count, size=self.resamples)
            self._counts[domain] = drawn.astype(float)
        return self._counts[domain]

    def cell(self, table, column: str, filters: Mapping, values: Mapping) -> tuple[np.ndarray, str]:
        """Resampled mean over seeds of one table value, and what was resampled below the seeds.

        values: the point value of each seed. Returns ((resamples,), "videos" | "items" | ""): items are the
        accuracies' binomial draws (unpaired, n in filters as `n`); "" means that only seeds could be drawn.
        """
        seeds, below = list(values), ""
        places = self.draws(len(seeds))
        per_seed = np.broadcast_to(np.array([values[seed] for seed in seeds], float), places.shape)
        rows = [self._rows_of(table, filters, seed) for seed in seeds] if column in RATIOS else []
        if rows and all(rows):
            factor, top, bottom = RATIOS[column]
            order, weights = self._ids[filters["domain"]], self._weights(filters["domain"])
            sums = np.zeros((2, len(order), len(seeds)))
            for k, of_seed in enumerate(rows):
                for row in of_seed:
                    place = order[row["question_id"]]
                    sums[0, place, k] += number(row[top]) or 0
                    sums[1, place, k] += (number(row[bottom]) or 0) if bottom else 1
            with np.errstate(invalid="ignore", divide="ignore"):
                per_seed, below = factor * (weights @ sums[0]) / (weights @ sums[1]), "videos"
        elif filters.get("n") and column.startswith("accuracy"):
            n, key = int(filters["n"]), zlib.crc32(repr(filters).encode())
            share = np.clip(per_seed / 100, 0, 1)
            per_seed, below = 100 * np.random.default_rng([13, key]).binomial(n, share) / n, "items"
        return np.take_along_axis(per_seed, places, axis=1).mean(axis=1), below


def stages(steps: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Dip, growth, plateau of a curve by its best line of three joined pieces; ValueError below six points.

    Knots lie on evaluated steps, chosen by least squares over all pairs. dip: fall over the first piece;
    growth: rise over the second; plateau: size of the last piece's change over the growth (inf without
    growth); first, second: the knots.
    """
    x, y = np.asarray(steps, float), np.asarray(values, float)
    if len(x) < 6:
        raise ValueError(f"three stages need six evaluated steps, there are {len(x)}")
    best = None
    for i in range(1, len(x) - 2):
        for j in range(i + 1, len(x) - 1):
            basis = np.stack([x**0, x, np.maximum(x - x[i], 0), np.maximum(x - x[j], 0)], axis=1)
            fit = basis @ np.linalg.lstsq(basis, y, rcond=None)[0]
            error = float(((fit - y) ** 2).sum())
            if best is None or error < best[0] - 1e-9:
                best = error, i, j, fit
    _, i, j, fit = best
    growth, last = float(fit[j] - fit[i]), abs(float(fit[-1] - fit[j]))
    return {"dip": float(fit[0] - fit[i]), "growth": growth, "first": float(x[i]), "second": float(x[j]),
            "plateau": last / growth if growth > 0 else float("inf")}
