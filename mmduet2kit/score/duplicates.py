"""Which replies repeat what was said before: the benchmark's reply duplicate proportion (Table 2)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..dialogue import NO_REPLY

MIN_MULTI_SPANS = 10  # Table 2 gives no figure when fewer gold turns than this have more than one reply

Covered = Callable[[Sequence[str], str], bool | None]  # (earlier texts, text); None: the judge failed


def spoken(turns: Iterable[tuple[float, str]]) -> list[tuple[float, str]]:
    """The (time, stripped text) of the turns that are not exactly NO REPLY, sorted by time (stable)."""
    stripped = ((time, text.strip()) for time, text in turns)
    return sorted((turn for turn in stripped if turn[1] != NO_REPLY), key=lambda turn: turn[0])


def duplicate_flags(texts: Sequence[str], covered: Covered) -> list[bool | None]:
    """For the replies of ONE gold span, in order: does this one say nothing new?

    The first is never a duplicate; an exact repeat always is, without asking; for the others
    `covered(earlier distinct texts, text)` decides, and None keeps the reply out of the ratio.
    """
    flags, earlier = [], []
    for text in texts:
        flags.append(text in earlier or bool(earlier) and covered(list(earlier), text))
        if text not in earlier:
            earlier.append(text)
    return flags


@dataclass(frozen=True)
class Duplicates:
    """total: sum of the spans' proportions; spans: those with a reply; multi_spans: with more than one.

    unjudged: spans that these leave out, as of their replies after the first none was judged.
    """

    total: float
    spans: int
    multi_spans: int
    unjudged: int = 0

    @property
    def percent(self) -> float | None:
        """The unweighted mean over spans with a reply, times 100 (0 when there is none, as upstream); None where all are unjudged."""
        return 100 * self.total / self.spans if self.spans else None if self.unjudged else 0.0

    @property
    def table(self) -> float | None:
        """`percent`, or None by Table 2's rule: too few gold turns have more than one reply."""
        return self.percent if self.multi_spans >= MIN_MULTI_SPANS else None


def duplicate_proportion(spans: Iterable[Sequence[bool | None]]) -> Duplicates:
    """Pool the flags of many gold spans (an empty sequence for a span without replies, which is excluded).

    Per span: duplicates among replies 2..n over n - 1, and 0 for one reply. A mean of these ratios, not one
    ratio over all replies: [0,1,0], [0], [], [0,1] give 50, not 66.7. Repeats across spans are invisible.
    A failed judgement (None) leaves its span, and a span of which it leaves nothing is left out too.
    """
    answered = [flags for flags in spans if flags]
    judged = [[bool(flag) for flag in flags[1:] if flag is not None] for flags in answered if len(flags) > 1]
    several = [flags for flags in judged if flags]
    unjudged = len(judged) - len(several)
    return Duplicates(sum(sum(flags) / len(flags) for flags in several), len(answered) - unjudged, len(several), unjudged)
