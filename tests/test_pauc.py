"""PAUC: the hand-worked values, and the contract's true properties against an independent exact sum."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmduet2kit.score import pauc

settings.register_profile("no_deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no_deadline")

SPAN = (0, 10)


@pytest.mark.parametrize("name, replies, expected", [
    ("E1", [], (0.25, 0.25, 0.25)),
    ("E2", [(4, 2)], (0.70, 0.85, 1)),
    ("E3", [(0, 2)], (1, 1, 1)),
    ("E4", [(10, 2)], (0.25, 0.625, 1)),
    ("E5", [(4, 0)], (0.10, 0.05, 0)),
    ("E7", [(2, 2), (6, 1)], (0.65, 0.575, 0.5)),
])  # fmt: skip
def test_worked_examples(name, replies, expected):
    assert tuple(pauc(SPAN, replies, 2, omega) for omega in (0, 0.5, 1)) == expected


def test_late_worse_filter():
    assert pauc(SPAN, [(2, 2), (6, 1)], 2, related_end=5) == pauc(SPAN, [(2, 2)], 2) == 0.925  # E7
    # what must stay: a late reply that is as good, a lone one, one with nothing before the event's end
    for replies in ([(2, 1), (6, 1)], [(6, 0)], [(6, 2), (8, 0)]):
        assert pauc(SPAN, replies, 2, related_end=5) == pauc(SPAN, replies, 2)
    # a reply on the related end is inside; the last inside score decides, not the best; equal is not worse
    for replies in ([(2, 2), (5, 0), (6, 1)], [(2, 2), (4, 0), (6, 1)], [(2, 1), (6, 2), (8, 1)]):
        assert pauc(SPAN, replies, 2, related_end=5) == pauc(SPAN, replies, 2)


def test_silence_at_the_rewards_scale():
    assert [pauc(SPAN, [], 4, omega) for omega in (0, 0.5, 1)] == [0.125] * 3  # E9


def test_zero_is_worse_than_silence():
    assert pauc(SPAN, [(4, 0)], 2) < pauc(SPAN, [], 2)


def test_equal_times_later_entry_wins():
    assert pauc(SPAN, [(4, 0), (4, 2)], 2) == pauc(SPAN, [(4, 2)], 2)
    assert pauc(SPAN, [(4, 2), (4, 0)], 2) == pauc(SPAN, [(4, 0)], 2)


def test_replies_outside_the_inclusive_span_are_ignored():
    assert pauc((2, 6), [(1.9, 2), (6.1, 0)], 2) == pauc((2, 6), [], 2)
    assert pauc((2, 6), [(2, 2)], 2) == 1
    assert pauc((2, 6), [(6, 2)], 2, omega=0) == 0.25


@pytest.mark.parametrize("arguments", [
    dict(span=(5, 5)), dict(span=(6, 5)), dict(span=(0, math.inf)), dict(span=(math.nan, 1)),
    dict(replies=[(1, 2.1)]), dict(replies=[(1, -0.1)]), dict(replies=[(1, math.nan)]),
    dict(max_score=0), dict(omega=1.5), dict(omega=-0.1), dict(initial=3),
])  # fmt: skip
def test_errors(arguments):
    with pytest.raises(ValueError):
        pauc(**{"span": SPAN, "replies": [], "max_score": 2} | arguments)


# Times on a grid of tenths of a span's width that need not be binary fractions; scores in quarters.
spans = st.tuples(st.integers(0, 400), st.integers(1, 80)).map(lambda s: (s[0] / 8, (s[0] + s[1]) / 8))
omegas = st.sampled_from([0, 0.25, 0.5, 0.75])
scores = st.integers(0, 16).map(lambda quarters: quarters / 4)
parts = st.lists(st.tuples(st.integers(0, 64), scores), max_size=6, unique_by=lambda reply: reply[0])


def place(span, parts):
    start, end = span
    return [(start + (end - start) * part / 64, score) for part, score in parts]


def exact(span, replies, max_score, omega, initial=Fraction(1, 2)):
    """A sum over replies of what each adds: (score - level before) x the share of time left."""
    start, end = map(Fraction, span)
    value, level = Fraction(initial), Fraction(initial)
    for time, score in sorted(replies):
        left = 1 - (Fraction(time) - start) / (end - start) * (1 - Fraction(omega))
        value, level = value + (Fraction(score) - level) * left, Fraction(score)
    return value / max_score


@given(spans, parts, omegas, st.randoms())
def test_equals_exact_sum_in_any_order(span, parts, omega, random):
    replies = place(span, parts)
    value = float(exact(span, replies, 4, omega))
    random.shuffle(replies)
    assert pauc(span, replies, 4, omega) == value
    assert 0 <= value <= 1


@given(spans, parts.filter(bool), omegas, st.data())
def test_monotone_in_each_score(span, parts, omega, data):
    index = data.draw(st.integers(0, len(parts) - 1))
    better = list(parts)
    better[index] = (parts[index][0], data.draw(st.floats(parts[index][1], 4)))
    assert pauc(span, place(span, better), 4, omega) >= pauc(span, place(span, parts), 4, omega)


@given(spans, parts.filter(bool), omegas, st.data())
def test_earlier_is_better_exactly_when_it_improves_the_level(span, parts, omega, data):
    parts = sorted(parts)
    index = data.draw(st.integers(0, len(parts) - 1))
    before, level = parts[index - 1] if index else (-1, 0.5)
    moved = list(parts)
    moved[index] = (data.draw(st.integers(before + 1, parts[index][0])), parts[index][1])
    change = pauc(span, place(span, moved), 4, omega) - pauc(span, place(span, parts), 4, omega)
    assert (change > 0) == (moved[index][0] < parts[index][0] and parts[index][1] > level)
    assert (change < 0) == (moved[index][0] < parts[index][0] and parts[index][1] < level)


@given(spans, omegas, st.floats(0.5, 100))
def test_silence_is_initial_over_max(span, omega, max_score):
    assert pauc(span, [], max_score, omega) == 0.5 / max_score


@given(spans, parts.filter(bool))
def test_omega_one_keeps_the_last_score_only(span, parts):
    assert pauc(span, place(span, parts), 4, omega=1) == max(parts)[1] / 4


def test_ten_thousand_random_cases_equal_a_recomputation_by_areas():
    """Replies inside and outside the span, at equal times, in any order; three omegas; both scales."""
    rng = np.random.default_rng(0)
    for _ in range(10_000):
        start = rng.uniform(0, 50)
        end, omega, top = start + rng.uniform(0.1, 60), rng.choice([0, 0.5, 1]), int(rng.choice([2, 4]))
        times = rng.choice(np.linspace(start - 5, end + 5, 40), rng.integers(0, 9))
        scores = rng.integers(0, top + 1, len(times))
        kept = [(t, s) for t, s in zip(times, scores) if start <= t <= end]
        order = sorted(range(len(kept)), key=lambda k: (kept[k][0], k))
        edges = np.array([0.0, *((kept[k][0] - start) * (1 - omega) for k in order), end - start])
        levels = np.array([0.5, *(kept[k][1] for k in order)])
        area = float(np.dot(np.diff(edges), levels)) / ((end - start) * top)
        assert abs(pauc((start, end), list(zip(times, scores)), top, omega) - area) < 1e-9
