"""Judges: how correct a reply is, and whether it says anything new. One small interface, several answers."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Protocol

from ..errors import UserError

MOST_DROPPED = 0.2  # of judgements: a dropped one counts like silence, so with more the numbers tell of the judge, not the replies
Fact = tuple[str, str, str | None]  # (colour, shape, motion); motion None: not stated


class Judge(Protocol):
    """Sees texts only: never times, onsets or files. None: the judge failed."""

    name: str

    def correctness(self, question: str, gold: str, prediction: str, max_score: float) -> float | None:
        """Score in 0..max_score of `prediction` against `gold`."""

    def covered(self, history: Sequence[str], text: str) -> bool | None:
        """Is everything in `text` already said in `history`?"""


class ExactJudge:
    """Compares the facts that two texts of the procedural world state; partial credit is sparing.

    facts(text) parses one sentence or several into a frozenset of `Fact`.
    """

    name = "exact"

    def __init__(self, facts: Callable[[str], frozenset[Fact]]):
        self.facts = lru_cache(maxsize=65536)(facts)

    def correctness(self, question: str, gold: str, prediction: str, max_score: float) -> float | None:
        """Score out of 4 (one reply) or 2 (a span's replies joined); another `max_score` raises ValueError.

        A stated fact is wrong when no gold fact matches it; a gold fact without motion matches any motion.
        4 of 4: the same facts. 2 of 4: at most one wrong, and the (colour, shape) of the gold fact stated
        (one gold fact) or at least half of the gold facts right (several).
        2 of 2: all gold facts, at most one wrong. 1 of 2: every gold (colour, shape), at most two wrong.
        A text without facts scores 0, unless the gold has none either and the texts are equal.
        """
        if max_score not in (2, 4):
            raise ValueError(f"the exact judge scores out of 2 or 4, not {max_score}")
        wanted, stated = self.facts(gold), self.facts(prediction)
        if not wanted:
            return float(max_score) if gold.strip() == prediction.strip() else 0.0
        right = sum(any(_matches(fact, other) for other in stated) for fact in wanted)
        wrong = sum(not any(_matches(fact, other) for fact in wanted) for other in stated)
        pairs = {fact[:2] for fact in wanted} <= {fact[:2] for fact in stated}
        if max_score == 2:
            return 2.0 if right == len(wanted) and wrong <= 1 else 1.0 if pairs and wrong <= 2 else 0.0
        if right == len(wanted) and not wrong:
            return 4.0
        partly = pairs if len(wanted) == 1 else 2 * right >= len(wanted)
        return 2.0 if partly and wrong <= 1 else 0.0

    def covered(self, history: Sequence[str], text: str) -> bool | None:
        """Is every fact of `text`, motion included, among those of `history`? Without facts: is the text?"""
        stated = self.facts(text)
        if not stated:
            return text.strip() in {earlier.strip() for earlier in history}
        return stated <= frozenset().union(*map(self.facts, history))


def _matches(gold: Fact, stated: Fact) -> bool:
    return gold[:2] == stated[:2] and gold[2] in (None, stated[2])


class MemoJudge:
    """Asks the judge it wraps once per distinct input, and again where that failed; `parallel` is how many questions it takes at a time.

    Of threads with the same question at the same time one asks, and the others wait for what it gets.
    """

    def __init__(self, judge: Judge):
        self.judge, self.name, self.parallel, self._known, self._asking = judge, judge.name, getattr(judge, "parallel", 1), {}, {}
        self._heard: dict[tuple, bool] = {}
        self.correctness = partial(self._once, judge.correctness)

    def covered(self, history: Sequence[str], text: str) -> bool | None:
        """As `Judge.covered`; `judge` gets the history as a tuple."""
        return self._once(self.judge.covered, tuple(history), text)

    def settle(self, gather: Callable = list) -> None:
        """UserError where more than MOST_DROPPED of the distinct inputs since the last call have no answer. gather: the counts of all ranks, for all."""
        mine, self._heard = [self._known[one][0] for one in self._heard], {}
        failed, asked = map(sum, zip(*gather([(mine.count(None), len(mine))])))
        if failed > MOST_DROPPED * asked:
            raise UserError(f"The judge gave no usable answer to {failed} of {asked} questions: see that its endpoint works and start again; answers are kept.")

    def _once(self, ask: Callable, *given):
        self._heard[given], before = True, self._known.get(given)
        with self._asking.setdefault(given, Lock()):
            if self._known.get(given) is before and (before is None or before[0] is None):  # nobody asked while this waited
                self._known[given] = (ask(*given),)
        return self._known[given][0]


def of_the_world(name: str, gold: Sequence[str]) -> bool:
    """Are at least half of these gold answers sentences of the procedural world? UserError where not, and the judge knows no others."""
    found = 2 * sum(map(bool, map(get_judge("exact").facts, gold))) >= len(gold)
    if name == "exact" and not found:
        raise UserError("The judge exact knows the procedural world's sentences only: take embedding or llm (--judge; in a profile `judge: {name: llm}`).")
    return found


def judge_of(profile, cache: Path | str | None = None) -> MemoJudge:
    """The judge that a profile names; an LLM's answers are kept in `cache` (default: in the run's folder)."""
    wanted = profile.judge
    options = {"url": wanted.url, "model": wanted.model, "cache": cache or profile.run_dir / "judge_cache.sqlite"}
    return MemoJudge(get_judge(wanted.name, **(options if wanted.name == "llm" else {})))


def get_judge(name: str, **options) -> Judge:
    """The judge of that name: exact, embedding or llm; UserError for another. options: of the LLM judge."""
    if name == "exact":
        from ..corpus.world import facts

        return ExactJudge(facts)
    if name == "embedding":
        from .embedding import EmbeddingJudge

        return EmbeddingJudge()
    if name == "llm":
        from .llm import LLMJudge

        return LLMJudge(**options)
    raise UserError(f"There is no judge '{name}': choose exact, embedding or llm.")
