"""The change-point rule of the training dynamics: lines of three pieces."""

from collections.abc import Sequence

import numpy as np


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
