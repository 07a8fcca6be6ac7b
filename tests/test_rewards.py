"""The four-term reward: hand-worked values, the paper against upstream, and what must not change it."""

from fractions import Fraction
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmduet2kit.dialogue import Dialogue, Gold, Segment, Turn
from mmduet2kit.profile import load_profile
from mmduet2kit.score import NO_REPLY, VARIANTS, Variant, pauc, proactive_reward
from mmduet2kit.train.rollout import reward_of

settings.register_profile("no_deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no_deadline")

GOLD = [(0, 8, "first"), (10, 18, "second")]
LONG = "A red star comes in from the left side and drifts slowly."


def turns_at(replies, times=range(2, 21, 2)):
    return [(time, replies.get(time, NO_REPLY)) for time in times]


def reward(replies, gold=GOLD, **options):
    turns = turns_at(replies) if isinstance(replies, dict) else replies
    judges = dict(similarity=lambda gold, text: 4, covered=lambda history, text: False)
    return proactive_reward(turns, gold, **(judges | options))


def terms(result):
    return (result.pauc, result.rep, result.in_span, result.pfx)


R = {
    "R1": ({}, 0.375),
    "R2": ({4: "good", 14: "fine"}, 2.34375),
    "R3": ({4: "good", 6: "good", 14: "fine"}, 1.677083),
    "R4": ({4: "good", 14: "fine", 20: "novel"}, 1.84375),
}


@pytest.mark.parametrize("name", R)
def test_hand_checked_examples_upstream(name):
    replies, total = R[name]
    assert reward(replies, variant="upstream").total == pytest.approx(total, abs=1e-6)


def test_hand_checked_terms():
    assert terms(reward(R["R1"][0], variant="upstream")) == (0.125, 0, 0, 0)
    assert terms(reward(R["R2"][0], variant="upstream")) == (0.78125, 0, 0, 0)
    assert terms(reward(R["R3"][0], variant="upstream")) == (0.78125, -1 / 3, 0, 0)
    assert terms(reward(R["R4"][0], variant="upstream")) == (0.78125, 0, -1, 0)  # one outside turn, one reply


def test_paper_variant_of_the_examples():
    # omega 0, reply halfway through each span: (0.5 + 4) / 2 / 4
    assert terms(reward(R["R2"][0])) == (0.5625, 0, 0, 0)
    assert terms(reward(R["R4"][0])) == (0.5625, 0, -1 / 3, 0)  # one of three replies
    assert reward(R["R4"][0]).total == pytest.approx(3 * 0.5625 - 0.5 / 3)
    assert reward(R["R1"][0]).total == 0.375


def test_a_boundary_reply_is_inside_only_upstream():
    boundary = {8: "good", 10: "fine"}
    paper, upstream = reward(boundary), reward(boundary, variant="upstream")
    assert terms(paper) == (0.125, 0, -1, 0)
    assert upstream.in_span == 0 and upstream.pauc == (pauc((0, 8), [(8, 4)], 4) + 1) / 2


@pytest.mark.parametrize("length, paper, upstream", [(49, 0, 0), (50, 0, -1 / 10), (51, -1 / 2, -1 / 10)])
def test_prefix_threshold_and_denominator(length, paper, upstream):
    replies = {4: "x" * length + "abc", 14: "x" * length + "y"}
    assert reward(replies).pfx == paper
    assert reward(replies, variant="upstream").pfx == upstream


def test_denominators_alone_change_only_what_is_divided_by():
    """R4: one reply outside, of three replies and, by the paper's strict spans, of four turns outside (8, 10, 18 and 20 s)."""
    assert terms(reward(R["R4"][0], variant="denominators")) == (0.5625, 0, -1 / 4, 0)
    assert reward(R["R3"][0], variant="denominators") == reward(R["R3"][0])
    assert reward({8: "good", 10: "fine"}, variant="denominators").pauc == reward({8: "good", 10: "fine"}).pauc
    same = {4: "x" * 51 + "abc", 14: "x" * 51 + "y"}
    assert reward(same, variant="denominators").pfx == reward(same, variant="upstream").pfx == -1 / 10


def test_prefix_looks_at_any_earlier_text_and_is_literal():
    replies = {2: "other", 4: LONG + " one", 12: "else", 14: LONG + " two"}
    assert reward(replies).pfx == -1 / 4
    assert reward({4: LONG + " one", 14: LONG.lower() + " two"}).pfx == 0
    assert reward({4: LONG + " one"}, history=[NO_REPLY, LONG + " two"]).pfx == -1
    assert reward({4: "short", 14: "short"}).pfx == 0  # an exact repeat that is too short
    assert reward({4: "short", 14: "short"}, prefix_chars=4).pfx == -1 / 2
    assert reward({4: "NO", 14: "NO"}, prefix_chars=1).pfx == -1 / 2  # silent turns do not count


def test_rep_history_distinct_and_order():
    asked = []

    def covered(history, text):
        asked.append((list(history), text))
        return "again" in text

    result = reward({2: "a", 4: "b again", 6: "a", 20: "c"}, covered=covered, history=["h", NO_REPLY, "h"])
    assert asked == [(["h"], "a"), (["h", "a"], "b again"), (["h", "a", "b again"], "c")]
    assert result.rep == -2 / 4 and result.counts["covered"] == 2
    assert reward({2: "h"}, history=["h"]).rep == -1  # the ground truth before the segment counts
    assert reward({2: "a"}, covered=lambda history, text: True).rep == 0  # nothing before it


def test_judge_failures_are_dropped_and_counted():
    result = reward({2: "a", 4: "b", 6: "a"}, covered=lambda history, text: None,
                    similarity=lambda gold, text: None if text == "a" else 2, variant="upstream")
    assert result.rep == -1 / 2  # a, (b dropped), a again
    assert result.counts["dropped_covered"] == 1 and result.counts["dropped_scores"] == 1
    assert result.pauc == (pauc((0, 8), [(4, 2)], 4) + 0.125) / 2


def test_double_count():
    # Span 1 holds a, b (covered), c (not): b and c weigh double; d is the first of span 2; e is outside.
    replies = {2: "a", 4: "b again", 6: "c", 14: "d again", 20: "e again"}
    options = dict(covered=lambda history, text: "again" in text, variant="upstream")
    assert reward(replies, **options).rep == -3 / 5
    assert reward(replies, **options, double_count=True).rep == -4 / 7
    repeat = reward({4: "a", 6: "a"}, **options, double_count=True)
    assert repeat.rep == -1 / 2  # an exact repeat is not judged
    repeat = reward({2: "a", 4: "h"}, history=["h"], **options, double_count=True)
    assert repeat.rep == -1 / 2


def test_repeats_inside_a_span():
    score = {"good": 4, "bad": 0}
    replies = {2: "good", 4: "bad", 6: "good"}
    options = dict(similarity=lambda gold, text: score[text], gold=[(0, 8, "g")])
    assert reward(replies, **options).pauc == pauc((0, 8), [(2, 4), (4, 0), (6, 4)], 4, 0)
    assert reward(replies, **options, variant="upstream").pauc == pauc((0, 8), [(2, 4), (4, 0)], 4)


def test_reply_in_two_spans_is_scored_for_each():
    gold = [(0, 6, "one"), (2, 10, "two")]
    result = reward({4: "x"}, gold, similarity=lambda gold, text: {"one": 4, "two": 0}[gold])
    assert result.pauc == (pauc((0, 6), [(4, 4)], 4, 0) + pauc((2, 10), [(4, 0)], 4, 0)) / 2
    said, judge = {2: "w", 4: "x"}, lambda gold, text: {"one": 4, "two": 0}[gold]  # noqa: E731
    last = reward(said, gold, similarity=judge, variant=Variant(last_span_scores=True))  # "w" is in the first span alone, by 2 s
    assert last.pauc == (pauc((0, 6), [(2, 4), (4, 0)], 4, 0) + pauc((2, 10), [(4, 0)], 4, 0)) / 2 != reward(said, gold, similarity=judge).pauc


def test_gold_after_the_last_turn_is_skipped():
    assert reward(R["R2"][0], [*GOLD, (20.5, 30, "later")]) == reward(R["R2"][0])
    assert reward({}, [*GOLD, (20, 30, "now")]).counts["skipped_gold"] == 0
    assert reward({4: "x"}, [(30, 40, "later")]).total == -0.5  # nothing to score, one reply outside
    assert terms(reward([])) == (0, 0, 0, 0) and reward([]).counts["skipped_gold"] == 2


def test_silence_is_exact_and_stripped():
    assert reward([(4, " NO REPLY\n")]).counts["replies"] == 0
    assert reward([(4, "no reply"), (6, "NO REPLY.")]).counts["replies"] == 2


def test_every_difference_is_an_option():
    replies = {2: LONG, 4: LONG[:50] + "fast", 6: LONG, 8: "on the boundary", 20: "outside"}
    options = dict(covered=lambda history, text: text.startswith("o"))
    assert reward(replies, variant=Variant(), **options) == reward(replies, **options)
    upstream = VARIANTS["upstream"]
    assert reward(replies, variant=upstream, **options) == reward(replies, variant="upstream", **options)
    assert reward(replies, variant=Variant(omega=0.5)).pauc != reward(replies).pauc
    assert reward(replies, variant=Variant(inclusive=True)).in_span == -1 / 5
    assert reward(replies, variant=Variant(outside_over_turns=True)).in_span == -2 / 4  # turns 8, 10, 18, 20
    assert reward(replies, variant=Variant(prefix_over_turns=True)).pfx == -1 / 10
    assert reward(replies, variant=Variant(prefix_at_least=True)).pfx == -2 / 5  # a prefix of exactly 50 too


@pytest.mark.parametrize("options", [
    dict(variant="Paper"), dict(gold=[(4, 4, "x")]), dict(gold=[(50, 40, "x")]), dict(weights=(1, 2, 3)),
    dict(prefix_chars=0), dict(similarity=lambda gold, text: 5),
])  # fmt: skip
def test_errors(options):
    with pytest.raises(ValueError):
        reward({4: "x"}, **options)


texts = st.sampled_from([NO_REPLY, "a", "b", "c", LONG + " 1", LONG + " 2", LONG + " 3"])
rollouts = st.lists(texts, min_size=1, max_size=12).map(
    lambda said: [(2 * k, text) for k, text in enumerate(said, 1)]
)
golds = st.lists(st.tuples(st.integers(0, 24), st.integers(1, 9), st.sampled_from("pqr")), max_size=4).map(
    lambda spans: [(start, start + width, text) for start, width, text in spans]
)
variants = st.sampled_from(sorted(VARIANTS))


def some_similarity(gold, text):
    return (ord(gold) * 3 + len(text) + ord(text[-1])) % 5


def some_covered(history, text):
    return len(history) % 2 == 0


@given(rollouts, golds, variants, st.booleans(), st.randoms(), st.tuples(*[st.floats(0, 5)] * 4))
def test_bounds_and_invariances(turns, gold, variant, double, random, weights):
    options = dict(similarity=some_similarity, covered=some_covered, variant=variant, double_count=double)
    result = reward(turns, gold, weights=weights, **options)
    assert 0 <= result.pauc <= 1 and all(-1 <= term <= 0 for term in terms(result)[1:])
    assert result.total == pytest.approx(sum(w * t for w, t in zip(weights, terms(result))))
    random.shuffle(turns)
    assert reward(turns, gold, weights=weights, **options) == result  # turns carry their times
    random.shuffle(gold)
    again = reward(turns, gold, weights=weights, **options)
    assert again.pauc == pytest.approx(result.pauc) and terms(again)[1:] == terms(result)[1:]


@given(st.integers(1, 12), golds, variants)
def test_silence_earns_the_initial_score(count, gold, variant):
    result = reward([(2 * k, NO_REPLY) for k in range(1, count + 1)], gold, variant=variant)
    begun = any(start <= 2 * count for start, _, _ in gold)
    assert terms(result) == (0.125 if begun else 0, 0, 0, 0)
    assert str(result.total) in ("0.375", "0.0")  # no negative zero in the logs


@given(rollouts, golds)
def test_paper_terms_against_exact_fractions(turns, gold):
    """The paper's Eq. 1 and its three ratios, written out once more in fractions."""
    replies = [turn for turn in turns if turn[1] != NO_REPLY]
    areas = []
    for start, end, text in gold:
        if start > turns[-1][0]:
            continue
        inside = [(t, some_similarity(text, said)) for t, said in replies if start < t < end]
        times = [start, *(t for t, _ in inside), end]
        levels = [Fraction(1, 2), *(s for _, s in inside)]
        area = sum((right - left) * level for left, right, level in zip(times, times[1:], levels))
        areas.append(area / ((end - start) * 4))
    seen, covered, verbose = [], 0, 0
    for _, said in replies:
        covered += said in seen or (bool(seen) and some_covered(list(dict.fromkeys(seen)), said))
        verbose += any(said[:51] == other[:51] and len(said) > 50 < len(other) for other in seen)
        seen.append(said)
    outside = sum(not any(start < t < end for start, end, _ in gold) for t, _ in replies)
    count = max(len(replies), 1)
    result = reward(turns, gold, similarity=some_similarity, covered=some_covered)
    assert result.pauc == pytest.approx(float(sum(areas) / len(areas)) if areas else 0, abs=1e-12)
    assert terms(result)[1:] == (-covered / count, -outside / count, -verbose / count)


def test_two_gold_turns_of_the_same_words_are_judged_by_their_own_questions():
    """Of [0, 6] and [6, 12] the reply at 2 answers the first question only: PAUC (paper) is (.5 * 2 + 4 * 4) / 24 and .125, mean .41666."""
    gold = (Gold(0, 6, "A dog.", "What runs?"), Gold(6, 12, "A dog.", "What sleeps?"))
    dialogue = Dialogue("d", "v.mp4", 2.0, tuple(Turn((k,), None, NO_REPLY) for k in range(6)), gold)
    asked = []
    judge = SimpleNamespace(covered=lambda *_: False, correctness=lambda q, g, said, top: asked.append((q, g)) or (4 if q == "What runs?" else 0))
    rl = load_profile("tiny").rl.model_copy(update={"variant": "paper"})
    found = reward_of([(2, "A dog."), (4, NO_REPLY), (8, NO_REPLY)], Segment(dialogue, 0, 6, gold), judge, rl)
    assert asked == [("What runs?", "A dog.")]
    assert found.pauc == pytest.approx((17 / 24 + 1 / 8) / 2)
    reward_of([(2, "A cat."), (8, "A dog.")], Segment(dialogue, 0, 6, gold), judge, rl)
    assert asked[1:] == [("What runs?", "A dog."), ("What sleeps?", "A dog.")]
