"""StreamingBench proactive output: three rules on the same replies."""

import pytest

from mmduet2kit.score.streamingbench import (
    accuracy, first_reply_delta, first_reply_rule, polled, time_content_rule, time_rule,
)  # fmt: skip

RULES = (first_reply_rule, time_rule, time_content_rule)


@pytest.mark.parametrize("replies, verdicts", [
    ([(10, 'It says "GO" now.')], (True, True, True)),
    ([(12, "GO")], (True, True, True)),  # the tolerance is inclusive, after
    ([(8, "GO")], (True, True, True)),  # and before
    ([(12.01, "GO")], (False, False, False)),
    ([(10, "go")], (True, True, False)),  # content is case-sensitive
    ([(10, "STOP")], (True, True, False)),
    ([(5, "GO"), (10, "GO")], (False, True, True)),  # the first reply against the last record
    ([(10, "GO"), (20, "GO")], (True, False, False)),
    ([(10, "GO"), (11, "STOP")], (True, True, False)),  # the last text is what counts
    ([(11, "STOP"), (10, "GO")], (True, True, False)),  # whatever the order of the list
    ([(3, "NO REPLY"), (10, "GO"), (30, "NO REPLY")], (True, True, True)),
    ([], (False, False, False)),
    ([(10, "NO REPLY")], (False, False, False)),
])  # fmt: skip
def test_rules(replies, verdicts):
    assert tuple(rule(10, "GO", replies) for rule in RULES) == verdicts


def test_tolerances():
    replies = [(13, "GO")]
    assert [first_reply_rule(10, "GO", replies, seconds) for seconds in (0, 1, 2, 3)] == [False] * 3 + [True]
    assert first_reply_rule(10, "GO", [(10, "GO")], 0)
    assert time_rule(8.3, "GO", [(10.3, "GO")])  # 2 s, though not in floats


def test_first_reply_delta():
    assert first_reply_delta(10, [(7, "a"), (12, "b")]) == -3
    assert first_reply_delta(10, []) == 100
    assert not first_reply_rule(10, "GO", [], 3)


def test_polled_keeps_what_the_official_script_would_have_seen():
    replies = [(2, "early"), (5, "first"), (10, "GO")]
    assert polled(2, 10, replies) == [(5, "first")]
    assert polled(5, 10, replies) == [(10, "GO")]
    assert polled(0, 10, [(14, "in time")]) == [(14, "in time")]
    assert polled(0, 10, [(14.5, "too late")]) == []


def test_accuracy_counts_every_item():
    items = [(10, "GO", [(10, "GO")]), (10, "GO", [(10, "go")]), (10, "GO", []), (10, "GO", [(13, "GO")])]
    assert [accuracy(items, rule) for rule in RULES] == [0.5, 0.5, 0.25]
    assert accuracy(items, first_reply_rule, 3) == 0.75
    with pytest.raises(ValueError):
        accuracy([], time_rule)
