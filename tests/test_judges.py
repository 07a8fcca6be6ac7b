"""The exact judge: its scoring rules on a small language of its own, and what guessing would earn."""

import itertools
import re

import pytest
from illustrate import best_blind_score

from mmduet2kit.errors import UserError
from mmduet2kit.score import ExactJudge, get_judge

COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "white", "cyan"]
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring"]
MOTIONS = {"left": "comes in from the left", "top": "drops from the top", "still": "stays in the middle"}
FACT = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?: ({'|'.join(MOTIONS.values())}))?")


def facts(text):
    names = {phrase: name for name, phrase in MOTIONS.items()}
    return frozenset((colour, shape, names.get(motion)) for colour, shape, motion in FACT.findall(text))


def say(*things):
    return " ".join(f"A {thing} {MOTIONS[motion]}." if motion else f"A {thing}." for thing, motion in things)


RED, BLUE, RING = "red star", "blue circle", "white ring"
JUDGE = ExactJudge(facts)
ONE = say((RED, "left"))
BARE = say((RED, None))
THREE = say((RED, None), (BLUE, None), (RING, None))


@pytest.mark.parametrize("gold, prediction, four, two", [
    (ONE, ONE, 4, 2),
    (ONE, "Look! " + ONE + " " + ONE, 4, 2),  # a set of facts: repetition changes nothing
    (ONE, say((RED, "top")), 2, 1),  # the wrong motion is one wrong fact
    (ONE, say((RED, None)), 2, 1),  # an unstated motion is not the right one
    (ONE, say((RED, "left"), (BLUE, "top")), 2, 2),
    (ONE, say((RED, "top"), (BLUE, "top")), 0, 1),
    (ONE, say((RED, "left"), (BLUE, "top"), (RING, "top")), 0, 1),
    (ONE, say((RED, "top"), (BLUE, "top"), (RING, "top")), 0, 0),
    (ONE, say((BLUE, "left")), 0, 0),
    (ONE, say(("red circle", "left")), 0, 0),
    (ONE, "Something moves.", 0, 0),
    (ONE, "", 0, 0),
    (BARE, say((RED, "top")), 4, 2),  # a gold fact without motion matches any
    (THREE, say((RED, "left"), (BLUE, "top"), (RING, "still")), 4, 2),
    (THREE, say((RED, None), (BLUE, None)), 2, 0),  # two of three right
    (THREE, say((RED, None)), 0, 0),
    (say((RED, "left"), (BLUE, "top")), ONE, 2, 0),  # half
    (THREE, say((RED, None), (BLUE, None), ("green cross", None)), 2, 0),
    (THREE, say((RED, None), (BLUE, None), ("green cross", None), ("cyan ring", None)), 0, 0),
    (THREE, THREE + say(("green cross", None)), 2, 2),
    (THREE, THREE + say(("green cross", None), ("cyan ring", None)), 0, 1),
    ("Nothing happens.", "Nothing happens.", 4, 2),
    ("Nothing happens.", ONE, 0, 0),
])  # fmt: skip
def test_correctness(gold, prediction, four, two):
    assert JUDGE.correctness("q", gold, prediction, 4) == four
    assert JUDGE.correctness("q", gold, prediction, 2) == two


def test_covered_compares_whole_facts():
    history = [ONE, say((BLUE, "top"))]
    assert JUDGE.covered(history, say((BLUE, "top"), (RED, "left")))
    assert not JUDGE.covered(history, say((BLUE, "left")))
    assert not JUDGE.covered(history, say((BLUE, "top"), (RING, "top")))
    assert not JUDGE.covered([], ONE)


def test_covered_without_facts_compares_the_text():
    assert JUDGE.covered(["Hm. ", ONE], "Hm.")
    assert not JUDGE.covered([ONE], "Hm.")


def test_other_scales_are_refused():
    with pytest.raises(ValueError):
        JUDGE.correctness("q", ONE, ONE, 5)


def test_best_blind_score_stays_under_the_initial_score():
    golds = [say((f"{c} {s}", m)) for c, s, m in itertools.product(COLOURS, SHAPES, MOTIONS)]
    hedges = [one + " " + other for one, other in itertools.combinations(golds[::5], 2)]
    best = best_blind_score(golds, golds + hedges, JUDGE)
    assert best == (4 + 2 + 2) / len(golds)  # its own gold, and the two with another motion
    assert best < 0.5
    assert best_blind_score([ONE, ONE, BARE], [say((BLUE, "top")), ONE], JUDGE) == 4


def test_best_blind_score_needs_something_to_guess():
    for golds, candidates in ([], [ONE]), ([ONE], []):
        with pytest.raises(ValueError):
            best_blind_score(golds, candidates, JUDGE)


def test_get_judge():
    assert get_judge("exact").name == "exact"
    with pytest.raises(UserError, match="oracle"):
        get_judge("oracle")
