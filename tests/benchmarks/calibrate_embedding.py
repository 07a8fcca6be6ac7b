"""Calibrate the embedding judge against the exact one: `python tests/benchmarks/calibrate_embedding.py` (the extra `embedding`).

Writes mmduet2kit/score/embedding.json; a minute on two cores.
"""

import numpy as np

from mmduet2kit.corpus.world import COLOURS, MOTIONS, SHAPES, sentence
from mmduet2kit.files import write_json
from mmduet2kit.score import get_judge
from mmduet2kit.score.embedding import CALIBRATION, EmbeddingJudge

MOST = 0.999  # of a limit, and all are rounded down: of the world's texts no two different ones are nearer, and 1 is more than float32 gives to equal ones


def calibrate(pairs: int = 4000, seed: int = 7) -> dict:
    """Choose the limits on half of random pairs of the world's texts, measure the agreement on the other half."""
    rng, exact = np.random.default_rng(seed), get_judge("exact")
    judge = EmbeddingJudge({"2": (0, 0), "4": (0, 0), "covered": 0})

    def near_by(words: list[str]) -> list[str]:  # each of the three words stays as it is half of the time
        return [w if rng.random() < 0.5 else str(rng.choice(list(some))) for w, some in zip(words, (COLOURS, SHAPES, MOTIONS))]

    made = []
    for _ in range(pairs):
        gold = [str(rng.choice(list(some))) for some in (COLOURS, SHAPES, MOTIONS)]
        said = [sentence(*near_by(gold)) for _ in range(rng.integers(1, 3))]
        made.append((sentence(*gold), " ".join(said)))
    judge.prepare(text for pair in made for text in pair)
    limits, agreement = {}, {}
    for name in ("2", "4", "covered"):
        if name == "covered":  # does the second text say what the first has not said?
            value = np.array([judge.near(said, [gold]) for gold, said in made])
            truth = np.array([2.0 * exact.covered([gold], said) for gold, said in made])
        else:
            value = np.array([judge.near(gold, [said]) for gold, said in made])
            if name == "4":
                value = np.minimum(value, [judge.near(said, [gold]) for gold, said in made])
            truth = np.array([exact.correctness("", *pair, int(name)) * 2 / int(name) for pair in made])
        grid = np.unique(np.minimum(np.floor(np.quantile(value, np.linspace(0, 1, 101)) * 1e4) / 1e4, MOST)).tolist()
        first, second = np.arange(pairs) % 2 == 0, np.arange(pairs) % 2 == 1

        def share(low: float, high: float, chosen: np.ndarray) -> float:
            return float(((value >= low) * 1 + (value >= high) == truth)[chosen].mean())

        choices = [(low, high) for low in grid for high in grid if low == high or name != "covered" and low < high]
        best = max(choices, key=lambda choice: share(*choice, first))
        limits[name] = best[0] if name == "covered" else list(best)
        agreement[name] = round(share(*best, second), 4)
    return {"limits": limits, "agreement_with_exact": agreement, "pairs": pairs, "seed": seed}


if __name__ == "__main__":
    print(write_json(CALIBRATION, calibrate()))
