"""PAUC, the area under the curve of correctness over a reply span (the paper's Eq. 1 and Figure 4)."""

import math
from collections.abc import Iterable
from fractions import Fraction


def pauc(span: tuple[float, float], replies: Iterable[tuple[float, float]], max_score: float, omega: float = 0.5,
         initial: float = 0.5, related_end: float | None = None) -> float:  # fmt: skip
    """Area under the step function of scores over one gold span, divided by the largest area; in [0, 1].

    span: (start, end) in s. replies: (time in s, score in 0..max_score) in any order; those outside the inclusive
    span are ignored; at equal times the later entry wins. omega in [0, 1] pulls the replies towards the span's start:
    0 is Eq. 1, 0.5 is Table 2's, at 1 only the last score counts. initial: the level before the first reply, in score
    units; silence gives initial / max_score. related_end: when given, the benchmark's late-worse filter is on:
    replies after it that score lower than the last reply up to it are left out (they probably answer the next event);
    of replies at one time, the later one of those that are left wins.
    Exact fractions are rounded once, so that equal areas are equal floats. Raises ValueError for start >= end, a
    score outside [0, max_score], or an option out of range.
    """
    start, end = map(float, span)
    if not (start < end and math.isfinite(end - start)):
        raise ValueError(f"the span ({start}, {end}) must have start < end, both finite")
    if not (0 < max_score < math.inf and 0 <= omega <= 1 and 0 <= initial <= max_score):
        raise ValueError(f"out of range: max_score {max_score}, omega {omega}, initial {initial}")
    points = sorted(((float(t), s) for t, s in replies if start <= t <= end), key=lambda point: point[0])
    for time, score in points:
        if not 0 <= score <= max_score:
            raise ValueError(f"the score {score} at {time} s is outside [0, {max_score}]")
    points = points if related_end is None else not_late_worse(points, related_end)
    exact = lambda value: Fraction(float(value))  # noqa: E731
    left, level, area, width = Fraction(0), exact(initial), Fraction(0), exact(end) - exact(start)
    for time, score in points:
        right = (exact(time) - exact(start)) * (1 - exact(omega))
        area += (right - left) * level
        left, level = right, exact(score)
    return float((area + (width - left) * level) / (width * exact(max_score)))


def not_late_worse(points: list[tuple[float, float]], related_end: float) -> list[tuple[float, float]]:
    """The benchmark's filter: without what comes after `related_end` (s) and scores lower than the last reply up to it."""
    before = [score for time, score in points if time <= related_end]
    return [p for p in points if p[0] <= related_end or not before or p[1] >= before[-1]]
