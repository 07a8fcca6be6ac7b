"""The reward, PAUC and the duplicates against a second implementation, written from the paper and the notes on the released code alone.

It is plain, in exact fractions, and shares nothing with the kit's: whoever changes one of the two has to say which sentence changed.
"""

import hashlib
import os
import random
from fractions import Fraction as F

import pytest

from mmduet2kit.score import duplicate_flags, duplicate_proportion, pauc, proactive_reward, score_question

SILENT = "NO REPLY"
CASES = int(os.environ.get("MMDUET2_CASES", 500))  # of each kind; more by hand


def area(span, points, top, omega, initial=F(1, 2), related=None):
    """PAUC: x = (t - start)(1 - omega), a step function, over (end - start) S; a point after `related` and worse than the last before is none."""
    start, end = span
    latest = {}
    for time, value in points:
        if start <= time <= end:
            latest[time] = value
    points = sorted(latest.items())
    if related is not None:
        before = [value for time, value in points if time <= related]
        points = [(t, v) for t, v in points if t <= related or not before or v >= before[-1]]
    total, level, x = F(0), F(initial), F(0)
    for time, value in points:
        step = (time - start) * (1 - omega)
        total, level, x = total + (step - x) * level, F(value), step
    return (total + (end - start - x) * level) / ((end - start) * top)


def common(a, b):
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def reward(turns, gold, similarity, covered, history, variant, weights, twice=False, chars=50):
    upstream, over_turns = variant == "upstream", variant in ("upstream", "denominators")
    inside = (lambda t, g: g[0] <= t <= g[1]) if upstream else (lambda t, g: g[0] < t < g[1])
    replies = [(t, text) for t, text in turns if text != SILENT]
    values = []
    for g in gold:
        if g[0] > max(t for t, _ in turns):
            continue
        points, said = [], set()
        for t, text in replies:
            if inside(t, g) and not (upstream and text in said):
                said.add(text)
                if (value := similarity(g[2], text)) is not None:
                    points.append((t, value))
        values.append(area(g[:2], points, 4, F(1, 2) if upstream else F(0)))
    r_pauc = sum(values) / len(values) if values else F(0)
    seen, flags, prefixed = list(history), [], 0
    for _, text in replies:
        flags.append(True if text in seen else covered(list(seen), text))
        long = max((common(text, s) for s in seen), default=0)
        prefixed += long >= chars if upstream else long > chars
        if text not in seen:
            seen.append(text)
    for g in gold if twice else []:  # the released code appends a judged reply that is not its span's first distinct one again
        said = []
        for k, (t, text) in enumerate(replies):
            before = [*history, *(text for _, text in replies[:k])]
            if inside(t, g) and text not in said:
                said.append(text)
                flags += [flags[k]] if len(said) > 1 and text not in before else []
    known = [f for f in flags if f is not None]
    rep = F(sum(known), len(known)) if known else F(0)
    out = [text for t, text in turns if not any(inside(t, g) for g in gold)]
    loud = sum(text != SILENT for text in out)
    whole = len(out) if over_turns else len(replies)
    r_out = F(loud, whole) if whole else F(0)
    whole = len(turns) if over_turns else len(replies)
    pfx = F(prefixed, whole) if whole else F(0)
    terms = (r_pauc, -rep, -r_out, -pfx)
    return (*terms, sum(F(w) * term for w, term in zip(weights, terms, strict=True)))


def drawn(*texts, of):
    """A whole number under `of` that depends on the texts' words alone: a judge without a mind."""
    return hashlib.sha256("|".join(" ".join(t.split()) for t in texts).encode()).digest()[0] % of


class Coin:
    """A judge by `drawn`; every `fails`-th pair of texts fails. Where nothing was said, nothing is covered."""

    name, fails = "coin", 7

    def correctness(self, question, gold, prediction, max_score):
        return None if not drawn("fail", gold, prediction, of=self.fails) else drawn(question, gold, prediction, of=int(max_score) + 1)

    def covered(self, history, text):
        if not history:
            return False
        return None if not drawn("none", text, *sorted(set(history)), of=self.fails) else bool(drawn(text, *sorted(set(history)), of=2))


P = "p" * 48
TEXTS = [SILENT, "a cup falls", "a dog", "No reply", "NO REPLY.", "", P, P + "x", P + "xy", P + "xyz", P + "xyw", P + "xyzzy", "é" * 51, "é" * 50 + "z"]


def dialogue(rng):
    turns, now = [], F(0)
    for _ in range(rng.randint(1, 14)):
        now += F(rng.randint(1, 4), 2)
        turns.append((now, rng.choice(TEXTS) if rng.random() < 0.6 else SILENT))
    gold = []
    for k in range(rng.choice([0, 1, 1, 2, 3])):
        start = F(rng.randint(0, 60 if rng.random() < 0.1 else 20), 2)
        gold.append((start, start + F(rng.randint(1, 16), 2), f"gold {k}"))
    return turns, gold, [t for t in rng.sample(TEXTS[1:], rng.choice([0, 0, 1, 3]))]


def floats(rows):
    return [tuple(float(x) if isinstance(x, F) else x for x in row) for row in rows]


def test_pauc_is_the_second_implementations():
    rng = random.Random(3)
    for case in range(CASES):
        start, top = F(rng.randint(0, 40), 4), rng.choice([2, 4])
        span = start, start + F(rng.randint(1, 60), 4)
        points = [(F(rng.randint(0, 100), 4), rng.randint(0, top)) for _ in range(rng.randint(0, 6))]
        omega, initial = F(rng.randint(0, 4), 4), F(rng.choice([0, 1, 2]), 2)
        related = rng.choice([None, start + (span[1] - start) * F(rng.randint(0, 4), 4)])
        got = pauc(floats([span])[0], floats(points), top, float(omega), float(initial), None if related is None else float(related))
        assert abs(got - float(area(span, points, top, omega, initial, related))) < 1e-12, (case, span, points, top, omega, initial, related)


@pytest.mark.parametrize("variant", ["paper", "upstream", "denominators"])
def test_the_reward_is_the_second_implementations(variant):
    rng, judge = random.Random(variant), Coin()
    for case in range(CASES):
        turns, gold, history = dialogue(rng)
        weights = rng.choice([(3, 2, 0.5, 2), (0, 2, 0.5, 2), (3, 0, 0.5, 2), (3, 2, 0, 2), (3, 2, 0.5, 0)])
        similar = lambda g, text: judge.correctness("q", g, text, 4)  # noqa: E731
        given = dict(history=history, variant=variant, weights=weights)
        twice = rng.random() < 0.2
        got = proactive_reward(floats(turns), floats(gold), similarity=similar, covered=judge.covered, double_count=twice, **given)
        want = reward(turns, gold, similar, judge.covered, twice=twice, **given)
        assert [got.pauc, got.rep, got.in_span, got.pfx, got.total] == pytest.approx(list(map(float, want)), abs=1e-12), (case, turns, gold, history)


RULES = {"benchmark": (2, True, True, None), "evaluator": (2, True, False, 0), "reward": (4, False, False, None)}  # S, joined, filter, failed


def benchmark_turn(gold, replies, judge, form, questions, omega):
    start, end, text, related = gold
    top, joined, filtered, failed = RULES[form]
    inside, points, flags, seen = [r for r in replies if start <= r[0] <= end], [], [], []
    for time, said in inside:
        if said in seen:  # a duplicate without a judge; the score before it stays
            flags.append(True)
            continue
        flags.append(judge.covered(list(seen), said))
        seen.append(said)
        question = [q for t, q in questions if t <= time][-1]
        value = judge.correctness(question, text, " ".join(seen) if joined else said, top)
        value = failed if value is None else value
        points += [] if value is None else [(time, value)]
    return area((start, end), points, top, omega, related=related if filtered else None), flags


@pytest.mark.parametrize("form", RULES)
def test_the_benchmarks_scores_are_the_second_implementations(form):
    rng, judge = random.Random(form), Coin()
    for case in range(CASES):
        turns, gold, _ = dialogue(rng)
        gold = [(*g, None if rng.random() < 0.3 else g[0] + (g[1] - g[0]) * F(rng.randint(0, 4), 4)) for g in gold]
        questions = [(F(0), "what falls?"), (F(rng.randint(1, 40), 2), "and then?")]
        replies, omega = [(t, text) for t, text in turns if text != SILENT], rng.choice([F(0), F(1, 2), F(1)])
        got = score_question(floats(gold), floats(replies), judge, form, questions=floats(questions), omega=float(omega))
        want = [benchmark_turn(g, replies, judge, form, questions, omega) for g in gold]
        for one, (value, flags) in zip(got, want, strict=True):
            assert one.pauc == pytest.approx(float(value), abs=1e-12), (case, turns, gold)
            assert [r.duplicate for r in one.replies] == flags, (case, turns, gold)


def proportion(spans):
    """Section 4: a span's value is its duplicates among the replies after the first, the mean is over the spans with replies."""
    values = [F(sum(map(bool, s[1:])), max(1, len(s) - 1)) for s in spans if s]
    return 100 * sum(values) / len(values) if values else F(0)


def test_the_duplicate_proportion_is_the_second_implementations():
    rng = random.Random(4)
    assert proportion([[0, 1, 0], [0], [], [0, 1]]) == 50
    for _ in range(CASES):
        spans = [[i and rng.random() < 0.5 for i in range(rng.choice([0, 1, 2, 3, 5]))] for _ in range(rng.randint(0, 6))]
        assert duplicate_proportion(spans).percent == pytest.approx(float(proportion(spans)), abs=1e-12), spans
