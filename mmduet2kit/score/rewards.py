"""The four-term reward of multi-turn GRPO (the paper's 4.3.2, Eq. 2), as written and as upstream codes it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .duplicates import Covered, spoken
from .pauc import pauc

MAX_SCORE = 4  # S of the reward: the judge's levels 1..5, minus 1


@dataclass(frozen=True)
class Variant:
    """Every point in which the paper and the released code differ; pass your own to mix them."""

    omega: float = 0.0  # PAUC's
    inclusive: bool = False  # a reply on a span's boundary is inside
    repeats_score: bool = True  # an exact repeat in a span sets PAUC's level again (Eq. 1 counts every reply)
    outside_over_turns: bool = False  # r_in_span divides by the turns outside all spans, not by the replies
    prefix_over_turns: bool = False  # r_pfx divides by all turns, silent ones too, not by the replies
    prefix_at_least: bool = False  # a common prefix of exactly `prefix_chars` counts
    last_span_scores: bool = False  # a reply in two spans has the last one's score in both (upstream keys scores by time); no variant sets it


VARIANTS = {"paper": Variant(), "upstream": Variant(0.5, True, False, True, True, True),
            "denominators": Variant(outside_over_turns=True, prefix_over_turns=True)}  # the paper's but for these two


@dataclass(frozen=True)
class Reward:
    """The unweighted terms (pauc in [0, 1]; the others in [-1, 0]) and their weighted sum.

    counts: turns, replies, covered, outside, prefixed, gold, skipped_gold, judged, dropped_scores, dropped_covered.
    """

    pauc: float
    rep: float
    in_span: float
    pfx: float
    total: float
    counts: Mapping[str, int] = field(default_factory=dict, compare=False)


def proactive_reward(turns: Iterable[tuple[float, str]], gold: Iterable[tuple[float, float, str]], *,
                     similarity: Callable[[str, str], float | None], covered: Covered, history: Sequence[str] = (),
                     variant: str | Variant = "paper", weights: Sequence[float] = (3, 2, 0.5, 2), prefix_chars: int = 50,
                     double_count: bool = False) -> Reward:  # fmt: skip
    """Reward of one rollout.

    turns: (time in s, text) of the rolled-out assistant turns, NO REPLY turns kept. gold: (start, end, text).
    similarity(gold text, reply) -> 0..4; covered(earlier texts, reply) -> does it say nothing new? None from either
    drops that judgement, counted. Exact repeats and a reply with no text before it need no judge. history: assistant
    texts before the segment (ground truth); they count for rep and pfx. variant: of VARIANTS, or a `Variant`.
    weights: of pauc, rep, in_span, pfx. prefix_chars: upstream's value; the paper prints none. double_count: as upstream,
    rep counts a judged reply that is not the first distinct one of its span once more. A gold turn that starts after
    the last turn is skipped; the caller clips the others to its segment (under "paper" a reply on the clipped end is
    outside: clip to one turn after the last). A reply in two spans is scored for each, unless `last_span_scores`. Raises
    ValueError for an unknown variant, start >= end, a score outside 0..4, or a bad option.
    """
    rules = variant if isinstance(variant, Variant) else VARIANTS.get(variant)
    if rules is None:
        raise ValueError(f"unknown reward variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    if len(weights) != 4 or prefix_chars < 1:
        raise ValueError("weights are four numbers (pauc, rep, in_span, pfx) and prefix_chars is at least 1")
    turns, gold = sorted(turns, key=lambda turn: turn[0]), list(gold)
    if not all(start < end for start, end, _ in gold):
        raise ValueError("every gold span must have start < end")
    replies, earlier = spoken(turns), [text for _, text in spoken((0.0, text) for text in history)]

    begun = [span for span in gold if turns and span[0] <= turns[-1][0]]
    value, scored, dropped = _pauc_term(begun, replies, similarity, rules)
    flags, asked = _covered_flags(replies, earlier, covered)
    again = _counted_twice(begun, replies, flags, asked, rules) if double_count else []
    judged = [flag for flag in flags + again if flag is not None]
    outside = [turn for turn in turns if not any(_inside(turn[0], span, rules) for span in gold)]
    outside_replies = len(spoken(outside))
    prefixed = _count_prefixed(replies, earlier, prefix_chars if rules.prefix_at_least else prefix_chars + 1)
    terms = (
        value,
        0.0 - _ratio(sum(judged), len(judged)),  # 0.0 - x: no negative zero
        0.0 - _ratio(outside_replies, len(outside if rules.outside_over_turns else replies)),
        0.0 - _ratio(prefixed, len(turns if rules.prefix_over_turns else replies)),
    )
    counts = dict(turns=len(turns), replies=len(replies), covered=flags.count(True), outside=outside_replies, prefixed=prefixed, gold=len(gold),
                  skipped_gold=len(gold) - len(begun), judged=scored + sum(asked), dropped_scores=dropped, dropped_covered=flags.count(None))  # fmt: skip
    return Reward(*terms, float(sum(w * term for w, term in zip(weights, terms))), counts)


def _pauc_term(begun, replies, similarity, rules: Variant) -> tuple[float, int, int]:
    """Mean PAUC over the gold turns that have begun (0 without any), and the numbers of the judge's questions and failures."""
    spans, scored, dropped = [], 0, 0
    for start, end, text in begun:
        points, scores = [], {}
        for time, reply in replies:
            if not _inside(time, (start, end), rules) or (reply in scores and not rules.repeats_score):
                continue
            if reply not in scores:
                scores[reply] = similarity(text, reply)
                scored, dropped = scored + 1, dropped + (scores[reply] is None)
            if scores[reply] is not None:
                points.append((time, scores[reply]))
        spans.append(((start, end), points))
    last = {time: score for _, points in spans for time, score in points} if rules.last_span_scores else {}
    values = [pauc(span, [(time, last.get(time, score)) for time, score in points], MAX_SCORE, rules.omega) for span, points in spans]
    return _ratio(sum(values), len(values)), scored, dropped


def _covered_flags(replies, earlier, covered: Covered) -> tuple[list[bool | None], list[bool]]:
    """Per reply: do history and earlier replies cover it, and was the judge asked?"""
    heard, flags, asked = list(dict.fromkeys(earlier)), [], []
    for _, text in replies:
        asked.append(bool(heard) and text not in heard)
        answer = covered(list(heard), text) if asked[-1] else text in heard
        flags.append(None if answer is None else bool(answer))
        if text not in heard:
            heard.append(text)
    return flags, asked


def _counted_twice(begun, replies, flags, asked, rules: Variant) -> list[bool | None]:
    """The flags that upstream appends a second time while it walks the spans."""
    again = []
    for span in begun:
        first_at = {}  # text -> index of its first reply in this span
        for index, (time, text) in enumerate(replies):
            if _inside(time, span, rules):
                first_at.setdefault(text, index)
        again += [flags[index] for index in list(first_at.values())[1:] if asked[index]]
    return again


def _count_prefixed(replies, earlier, limit: int) -> int:
    """How many replies share their first `limit` characters with any earlier text."""
    heads, count = {text[:limit] for text in earlier if len(text) >= limit}, 0
    for _, text in replies:
        if len(text) >= limit:
            count += text[:limit] in heads
            heads.add(text[:limit])
    return count


def _inside(time: float, span, rules: Variant) -> bool:
    return span[0] <= time <= span[1] if rules.inclusive else span[0] < time < span[1]


def _ratio(part: float, whole: int) -> float:
    return part / whole if whole else 0.0
