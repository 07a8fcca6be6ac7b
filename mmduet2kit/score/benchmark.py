"""Scoring one question of the benchmark, in the three forms that must not be mixed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..dialogue import SUBTITLE
from .duplicates import duplicate_flags, duplicate_proportion, spoken
from .judges import Judge
from .pauc import pauc

NO_ANSWER = 0.5  # the immediate score of a question without a reply, in the judge's units
ASKED = ("last", "upstream")


@dataclass(frozen=True)
class Form:
    """How replies are scored."""

    max_score: float
    joined: bool  # judge the distinct in-span replies so far, joined by spaces; else this reply alone
    late_worse: bool = False  # PAUC's filter
    immediate_under: float = 0.0  # spans shorter than this (s) are scored apart
    failed_score: float | None = None  # of a reply on which the judge fails; None: its point is dropped


FORMS = {
    "benchmark": Form(2, joined=True, late_worse=True),
    "evaluator": Form(2, joined=True, immediate_under=0.5, failed_score=0.0),
    "reward": Form(4, joined=False),
}


@dataclass(frozen=True)
class ReplyScore:
    """A reply in a gold span; None where the judge failed (a score only if the form drops failures)."""

    time: float
    text: str
    score: float | None
    duplicate: bool | None


@dataclass(frozen=True)
class TurnScore:
    """One gold turn: pauc in [0, 1], or None for an immediate turn, which has `immediate` in 0..S instead.

    start, end: s, as scored (an immediate span is moved). failures: judge calls without an answer.
    """

    start: float
    end: float
    text: str
    replies: tuple[ReplyScore, ...]
    pauc: float | None
    immediate: float | None
    failures: int

    @property
    def flags(self) -> list[bool | None]:
        """Duplicate flags of the replies; none for an immediate turn, which the proportion leaves out."""
        return [] if self.pauc is None else [reply.duplicate for reply in self.replies]


def score_question(gold: Iterable[tuple[float, float, str, float | None]], replies: Iterable[tuple[float, str]],
                   judge: Judge, form: str | Form = "benchmark", *, questions: Sequence[tuple[float, str]] = (),
                   asked: str = "last", omega: float = 0.5) -> list[TurnScore]:  # fmt: skip
    """Score the replies to one dialogue against its gold turns, in the order of the gold turns.

    gold: (reply start, reply end, text, end of the related span or None), s. replies: (time, text); silent
    ones are ignored. questions: (time, text) of the user turns, subtitles among them. The judge sees, by
    `asked`: the "last" question up to the reply; or, "upstream", what the released evaluator shows it: the
    first user turn at or after the span's end, else the last one (on TV mostly a subtitle).
    An exact repeat inside a span copies the score before it. A reply in two spans counts in both. In the form
    `evaluator` spans under 0.5 s move to the question nearest in time and are scored by their first reply.
    In the form `benchmark` a span of no width scores 0, as upstream guards it.
    Raises ValueError for an unknown form or a span that ends before it starts (`reward`: or has no width).
    """
    rules = form if isinstance(form, Form) else FORMS.get(form)
    if rules is None or asked not in ASKED:
        raise ValueError(f"form {form!r}, asked {asked!r}: choose one of {', '.join(FORMS)} and of {', '.join(ASKED)}")
    replies, said = spoken(replies), sorted(questions, key=lambda turn: turn[0])
    questions = [turn for turn in said if not turn[1].startswith(SUBTITLE)]
    turns = []
    for start, end, text, related_end in gold:
        if not start <= end:
            raise ValueError(f"the gold span ({start}, {end}) ends before it starts")
        immediate = end - start < rules.immediate_under
        if immediate and questions:
            nearest = min((time for time, _ in questions), key=lambda time: abs(time - start))
            start, end = nearest, nearest + (end - start)
        inside = [reply for reply in replies if start <= reply[0] <= end]
        shown = [next((turn for turn in said if turn[0] >= end), said[-1])] if asked == "upstream" and said else questions
        scores, failures = _score_replies(text, inside, judge, rules, shown)
        flags = duplicate_flags([reply for _, reply in inside], judge.covered)
        scored = tuple(ReplyScore(*reply, *rest) for reply, *rest in zip(inside, scores, flags))
        first, value = None, 0.0  # 0: a span of no width, under the benchmark's guard
        if immediate:
            first, value = scores[0] if scores and scores[0] is not None else NO_ANSWER, None
        elif start < end or not rules.late_worse:
            points = [(reply.time, reply.score) for reply in scored if reply.score is not None]
            value = pauc((start, end), points, rules.max_score, omega, related_end=related_end if rules.late_worse else None)
        turns.append(TurnScore(start, end, text, scored, value, first, failures + flags.count(None)))
    return turns


def _score_replies(gold: str, inside, judge: Judge, rules: Form, questions) -> tuple[list[float | None], int]:
    """The score of each in-span reply, in order, and the number of judge failures."""
    scores, distinct, failures = [], [], 0
    for time, reply in inside:
        if reply in distinct:
            scores.append(scores[-1])
            continue
        distinct.append(reply)
        before = [text for when, text in questions if when <= time] or [questions[0][1] if questions else ""]
        prediction = " ".join(distinct) if rules.joined else reply
        score = judge.correctness(before[-1], gold, prediction, rules.max_score)
        failures += score is None
        scores.append(rules.failed_score if score is None else score)
    return scores, failures


def totals(turns: Iterable[TurnScore]) -> dict[str, float]:
    """Sums to pool over questions: PAUC is 100 * pauc_sum / spans, duplicates 100 * dup_sum / dup_spans."""
    turns = list(turns)
    values = [turn.pauc for turn in turns if turn.pauc is not None]
    duplicates = duplicate_proportion(turn.flags for turn in turns)
    return dict(spans=len(values), pauc_sum=sum(values), dup_spans=duplicates.spans, dup_sum=duplicates.total, multi_spans=duplicates.multi_spans,
                immediate=len(turns) - len(values), immediate_sum=sum(t.immediate or 0.0 for t in turns), failures=sum(t.failures for t in turns))  # fmt: skip
