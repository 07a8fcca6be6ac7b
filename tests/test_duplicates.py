"""The reply duplicate proportion, and the three forms in which a question of the benchmark is scored."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from mmduet2kit.errors import UserError
from mmduet2kit.score import (
    Form, MemoJudge, duplicate_flags, duplicate_proportion, score_question, spoken, totals,
)  # fmt: skip


class TableJudge:
    """Scores by text (2 if absent, None: failure); covered when the text holds "again". Keeps its calls."""

    name = "table"

    def __init__(self, scores=None):
        self.scores, self.calls = scores or {}, []

    def correctness(self, question, gold, prediction, max_score):
        self.calls.append((question, gold, prediction, max_score))
        return self.scores.get(prediction, 2)

    def covered(self, history, text):
        self.calls.append((tuple(history), text))
        return None if "broken" in text else "again" in text


def test_worked_example_is_a_mean_of_spans():
    result = duplicate_proportion([[False, True, False], [False], [], [False, True]])
    assert (result.percent, result.spans, result.multi_spans, result.total) == (50, 3, 2, 1.5)


def test_table_2_gives_no_figure_for_few_spans_with_several_replies():
    assert duplicate_proportion([[False, True]] * 9 + [[False]] * 50).table is None
    assert duplicate_proportion([[False, True]] * 10).table == 100


def test_nothing_said():
    assert duplicate_proportion([[], []]).percent == 0 and duplicate_proportion([]).spans == 0


def test_a_failed_judgement_leaves_the_ratio():
    assert duplicate_proportion([[False, None, True]]).percent == 100
    failed = duplicate_proportion([[False, None]])
    assert (failed.percent, failed.table, failed.spans, failed.multi_spans, failed.unjudged) == (None, None, 0, 0, 1)
    some = duplicate_proportion([[False, True]] * 9 + [[False, None, None]] + [[False]] * 3)
    assert (some.percent, some.spans, some.multi_spans, some.table) == (75, 12, 9, None)  # 9 of 12; nine spans are too few for Table 2


def test_flags_ask_only_about_new_texts():
    judge = TableJudge()
    flags = duplicate_flags(["again", "b", "again", "c again", "b"], judge.covered)
    assert flags == [False, False, True, True, True]
    assert judge.calls == [(("again",), "b"), (("again", "b"), "c again")]


def test_spoken_sorts_and_drops_exactly_the_silent():
    turns = [(4, "b"), (2, "NO REPLY"), (1, " a\n"), (4, "a"), (3, "NO, REPLY"), (5, "None")]
    assert spoken(turns) == [(1, "a"), (3, "NO, REPLY"), (4, "b"), (4, "a"), (5, "None")]


GOLD = [(0, 10, "g", 5)]
REPLIES = [(2, "x"), (6, "y"), (8, "x")]
SCORES = {"x": 2, "x y": 1, "y": 0}


def one(*arguments, **options):
    (turn,) = score_question(*arguments, **options)
    return turn


def test_benchmark_joins_and_filters():
    judge = TableJudge(SCORES)
    turn = one(GOLD, REPLIES, judge, "benchmark", questions=[(0, "q")])
    assert [reply.score for reply in turn.replies] == [2, 1, 1]  # the repeat copies the score before it
    assert turn.pauc == 0.925  # E7
    assert [call for call in judge.calls if len(call) == 4] == [("q", "g", "x", 2), ("q", "g", "x y", 2)]
    assert turn.flags == [False, False, True]


def test_evaluator_joins_without_the_filter():
    assert one(GOLD, REPLIES, TableJudge(SCORES), "evaluator").pauc == 0.575  # E7


def test_reward_form_judges_each_reply_alone_out_of_four():
    judge = TableJudge({"x": 4, "y": 0})
    turn = one([(0, 10, "g", None)], REPLIES, judge, "reward")
    assert [reply.score for reply in turn.replies] == [4, 0, 0]
    assert {call[3] for call in judge.calls if len(call) == 4} == {4}
    assert one(GOLD, [], judge, "reward").pauc == 0.125


def test_silence_in_each_form():
    judge = TableJudge()
    for form, expected in ("benchmark", 0.25), ("evaluator", 0.25), ("reward", 0.125):
        assert one(GOLD, [(3, "NO REPLY")], judge, form).pauc == expected
    assert judge.calls == []


def test_judge_failures():
    judge = TableJudge({"x": None})
    dropped = one(GOLD, [(4, "x"), (6, "broken")], judge, "benchmark")
    zero = one(GOLD, [(4, "x")], judge, "evaluator")
    assert dropped.replies[0].score is None and dropped.failures == 2 and dropped.flags == [False, None]
    assert {"dup_spans": 0, "multi_spans": 0, "failures": 2}.items() <= totals([dropped]).items()
    assert zero.pauc == 0.05 and zero.failures == 1  # E5


def test_immediate_spans_are_scored_apart_by_the_evaluator():
    gold, questions = [(4.0, 4.3, "now", None), (5, 15, "later", None)], [(0, "q1"), (4.5, "q2")]
    replies = [(4.5, "x"), (4.6, "y")]
    judge = TableJudge({"x": 1})
    now, later = score_question(gold, replies, judge, "evaluator", questions=questions)
    assert (now.start, now.pauc, now.immediate, now.flags) == (4.5, None, 1, [])  # moved to its question
    assert later.pauc == 0.25
    assert judge.calls[0][0] == "q2"  # the last question up to the reply
    silent = score_question(gold, [], judge, "evaluator", questions=questions)
    assert silent[0].immediate == 0.5
    assert one([(4, 4, "now", None)], [(4, "x")], judge, "evaluator").immediate == 1
    assert one([(4, 4, "now", None)], [(4, "x")], judge, "benchmark").pauc == 0  # no width: upstream's guard
    assert one(gold[:1], [(4.3, "z")], judge, "benchmark").pauc == pytest.approx(0.625)


def test_totals_pool_over_questions():
    judge = TableJudge(SCORES)
    turns = score_question([*GOLD, (10, 20, "h", None), (30, 40, "i", None), (50, 50.2, "j", None)],
                           [*REPLIES, (15, "z")], judge, "evaluator")  # fmt: skip
    expected = dict(spans=3, pauc_sum=0.575 + 0.8125 + 0.25, dup_spans=2, dup_sum=0.5, multi_spans=1,
                    immediate=1, immediate_sum=0.5, failures=0)  # fmt: skip
    assert totals(turns) == pytest.approx(expected)
    assert totals([])["spans"] == 0


def test_a_reply_in_two_spans_counts_in_both():
    turns = score_question([(0, 6, "g", None), (4, 10, "h", None)], [(5, "x")], TableJudge(), "evaluator")
    assert [len(turn.replies) for turn in turns] == [1, 1]


def test_memo_judge_asks_once():
    judge = TableJudge()
    memo = MemoJudge(judge)
    for form in ("benchmark", "evaluator", "benchmark"):
        score_question(GOLD, REPLIES, memo, form)
    assert len(judge.calls) == len(set(judge.calls)) == 3 and memo.name == "table"


def test_memo_judge_asks_again_where_the_judge_failed():
    judge, answers = TableJudge(), iter([None, 3.0])
    judge.correctness = lambda *given: next(answers)
    memo = MemoJudge(judge)
    assert [memo.correctness("q", "g", "x", 4) for _ in range(3)] == [None, 3.0, 3.0]


def test_memo_judge_asks_once_for_threads_with_the_same_question():
    """One asks and the others wait, for its failure too; a question of its own waits for nobody."""
    asked, begun = [], Event()

    def slow(question, gold, said, top):
        asked.append(said)
        begun.set()
        time.sleep(0.1)
        return None if said == "bad" else 3.0

    judge = TableJudge()
    judge.correctness = slow
    memo = MemoJudge(judge)
    with ThreadPoolExecutor(8) as pool:
        for said, score in ("same", 3.0), ("bad", None):
            begun.clear()
            first = pool.submit(memo.correctness, "q", "g", said, 4)
            begun.wait()
            assert [*pool.map(lambda _: memo.correctness("q", "g", said, 4), range(7)), first.result()] == [score] * 8  # noqa: B023
        assert asked == ["same", "bad"] and memo.correctness("q", "g", "bad", 4) is None and len(asked) == 3
        started = time.monotonic()
        list(pool.map(lambda k: memo.correctness("q", "g", k, 4), range(8)))
        assert time.monotonic() - started < 0.6


def test_threads_that_ask_a_failed_question_again_do_it_once_for_all():
    asked, judge = [], TableJudge()

    def failing(*given):
        asked.append(given)
        time.sleep(0.1)

    judge.correctness = failing
    memo = MemoJudge(judge)
    memo.correctness("q", "g", "bad", 4)
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(lambda _: memo.correctness("q", "g", "bad", 4), range(8))] == [None] * 8
    assert len(asked) == 2


def test_failures_are_settled_since_the_last_time_and_over_all_ranks():
    """A good first domain does not hide a second one of which nothing was judged; one rank's failures count for all."""
    judge = TableJudge()
    judge.correctness = lambda question, gold, said, top: None if said.startswith("bad") else 3.0
    memo = MemoJudge(judge)
    memo.settle()  # nothing was asked
    for k in range(100):
        memo.correctness("q", "g", f"good {k}", 4)
    memo.settle()
    for said in ("bad 1", "bad 2", "good 1", "good 2", "good 3", "good 4", "good 5"):
        memo.correctness("q", "g", said, 4)
    with pytest.raises(UserError, match="no usable answer to 2 of 7 questions"):
        memo.settle()
    memo.settle()
    memo.correctness("q", "g", "bad 3", 4)
    memo.settle(lambda mine: [*mine, (0, 4)])
    memo.correctness("q", "g", "good 9", 4)
    with pytest.raises(UserError, match="3 of 5"):
        memo.settle(lambda mine: [*mine, (3, 4)])


def test_errors():
    with pytest.raises(ValueError):
        score_question(GOLD, [], TableJudge(), "paper")
    with pytest.raises(ValueError):
        score_question([(5, 4, "g", None)], [], TableJudge(), "benchmark")
    with pytest.raises(ValueError):
        score_question([(5, 5, "g", None)], [], TableJudge(), Form(4, joined=False))
