"""Intervals of the claims: a two-level paired bootstrap over seeds and videos."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from tables import select

RESAMPLES = 10_000
KEYS = ["experiment", "model", "sft_interval", "rl_interval", "test_interval", "domain", "seed"]  # of per_video.csv
# column of a table -> factor, numerator and denominator in per_video.csv ("rows" counts rows)
RATIOS = {"pauc": (100, "pauc_sum", "spans"), "duplicate": (100, "dup_sum", "dup_spans"),
          "latency_s": (1, "latency_sum", "latency_n"), "lucky_percent": (100, "lucky", "correct"),
          "reply_turns": (1, "reply_turns", "rows")}


class Resampler:
    """The same draws for every cell of a claim, which makes comparisons paired.

    In a resample seeds are drawn with replacement and, in each domain, the questions of the test videos. That
    draw is shared by all models, settings and seeds, because all of them saw the same videos.
    """

    def __init__(self, per_video: Sequence[Mapping], resamples: int = RESAMPLES) -> None:
        self.resamples, self._cells, self._ids, self._counts = resamples, {}, {}, {}
        if per_video:
            frame = pd.DataFrame(per_video).assign(rows=1)
            for _, top, bottom in RATIOS.values():
                for name in frame.columns.intersection([top, bottom]):
                    frame[name] = pd.to_numeric(frame[name], errors="coerce").fillna(0)
            self._cells = dict(list(frame.astype(dict.fromkeys(KEYS, str)).groupby(KEYS)))
            self._ids = frame.groupby("domain")["question_id"].unique().map(sorted).to_dict()

    def _rows(self, table: int, column: str, filters: Mapping, seed: str) -> pd.DataFrame | None:
        """The rows of per_video.csv behind a table's value at a seed; None when there are none."""
        keys = select([dict(zip(KEYS, key)) for key in self._cells], experiment=f"T{table}", seed=seed, **filters)
        found = [self._cells[tuple(key.values())] for key in keys]
        return pd.concat(found) if found and column in RATIOS else None

    def per_seed(self, table: int, column: str, filters: Mapping, seed: str) -> float | None:
        """A table's value computed from per_video.csv; None when it has no such rows."""
        rows = self._rows(table, column, filters, seed)
        if rows is None:
            return None
        factor, top, bottom = RATIOS[column]
        return factor * rows[top].sum() / rows[bottom].sum() if rows[bottom].sum() else None

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
        places = np.random.default_rng([7, len(seeds)]).integers(len(seeds), size=(self.resamples, len(seeds)))
        per_seed = np.broadcast_to(np.array([values[seed] for seed in seeds], float), places.shape)
        rows = [self._rows(table, column, filters, seed) for seed in seeds]
        if all(of_seed is not None for of_seed in rows):
            factor, top, bottom = RATIOS[column]
            order, weights = self._ids[filters["domain"]], self._weights(filters["domain"])
            by_question = [of_seed.groupby("question_id")[[top, bottom]].sum() for of_seed in rows]
            sums = [found.reindex(order, fill_value=0) for found in by_question]
            above, under = (weights @ np.stack([one[name] for one in sums], axis=1) for name in (top, bottom))
            with np.errstate(invalid="ignore", divide="ignore"):
                per_seed, below = factor * above / under, "videos"
        elif filters.get("n") and column.startswith("accuracy"):
            n, key = int(filters["n"]), zlib.crc32(repr(filters).encode())
            share = np.clip(per_seed / 100, 0, 1)
            per_seed, below = 100 * np.random.default_rng([13, key]).binomial(n, share) / n, "items"
        return np.take_along_axis(per_seed, places, axis=1).mean(axis=1), below
