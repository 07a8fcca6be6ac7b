"""StreamingBench proactive output (Table 5), "when X happens, output Y": three rules for the same replies.

A rule takes (gold time in s, gold output, replies [(time, text), ...]) and says whether the item is correct.
"""

from collections.abc import Callable, Iterable, Sequence

from .duplicates import spoken

NO_REPLY_DELTA = 100.0  # MMDuet2's report gives this error to an item without replies
SLACK = 1e-6  # tolerances are inclusive, and 10.3 - 8.3 is more than 2 in floats

Replies = Sequence[tuple[float, str]]


def time_rule(gold_time: float, gold_output: str, replies: Replies, tolerance: float = 2.0) -> bool:
    """The benchmark's old rule: the last record of the dialogue is within `tolerance` s of the gold time."""
    said = spoken(replies)
    return bool(said) and abs(said[-1][0] - gold_time) <= tolerance + SLACK


def time_content_rule(gold_time: float, gold_output: str, replies: Replies, tolerance: float = 2.0) -> bool:
    """The benchmark's current rule: `time_rule`, and the last text contains the output (case-sensitive)."""
    return time_rule(gold_time, gold_output, replies, tolerance) and gold_output in spoken(replies)[-1][1]


def first_reply_delta(gold_time: float, replies: Replies) -> float:
    """Time of the first reply minus the gold time, s; 100 when there is no reply."""
    said = spoken(replies)
    return said[0][0] - gold_time if said else NO_REPLY_DELTA


def first_reply_rule(gold_time: float, gold_output: str, replies: Replies, tolerance: float = 2.0) -> bool:
    """MMDuet2's own rule: the first reply is within `tolerance` of the gold time, whatever it says."""
    return abs(first_reply_delta(gold_time, replies)) <= tolerance + SLACK


def polled(question_time: float, gold_time: float, replies: Replies) -> list[tuple[float, str]]:
    """The dialogue the official script would have recorded of a model that speaks by itself.

    It polls from the question until 4 s after the gold time and stops at the first trigger: only the first
    reply in that window is left for the two rules that look at the last record.
    """
    return [reply for reply in spoken(replies) if question_time < reply[0] <= gold_time + 4 + SLACK][:1]


def accuracy(items: Iterable[tuple[float, str, Replies]], rule: Callable[..., bool], tolerance: float = 2.0) -> float:
    """Share of correct items in [0, 1]; every item counts, answered or not. ValueError without items."""
    verdicts = [rule(*item, tolerance) for item in items]
    if not verdicts:
        raise ValueError("there are no items to score")
    return sum(verdicts) / len(verdicts)


def all_rules(items: Iterable[tuple[float, float, float, str, Replies]], tolerance: float = 2.0) -> dict[str, float]:
    """Accuracies under the three rules, and n. items: (question time, middle of the reply span, gold time, gold output, replies).

    The first reply is held against the middle of the span (MMDuet2's own report); the official rules, after polling,
    against the gold time.
    """
    items = list(items)
    official = [(moment, output, polled(asked, moment, replies)) for asked, _, moment, output, replies in items]
    own = [(middle, output, replies) for _, middle, _, output, replies in items]
    rules = {"first_reply": (own, first_reply_rule), "time": (official, time_rule), "time_content": (official, time_content_rule)}
    return {f"accuracy_{name}": accuracy(some, rule, tolerance) for name, (some, rule) in rules.items()} | {"n": len(items)}
