"""Quality gates: each rule drops what it should, counts it, and leaves the rest."""

import pytest

from mmduet2kit.corpus.gates import Limits, gate
from mmduet2kit.corpus.video import FilterLedger
from mmduet2kit.corpus.world import MOTIONS, sentence
from mmduet2kit.dialogue import NO_REPLY
from mmduet2kit.score import get_judge

FIRST, *_ = MOTIONS
RED, BLUE, MOON = (sentence(c, s, FIRST) for c, s in (("red", "circle"), ("blue", "ring"), ("white", "moon")))


def record(questions, lengths=(8, 8, 8)):
    scenes, at = [], 0.0
    for length, caption in zip(lengths, (RED, BLUE, MOON)):
        scenes.append({"start": at, "end": at + length, "caption": caption})
        at += length
    return {"name": "v", "video": "v.mp4", "domain": "web", "duration": at, "scenes": scenes, "subtitles": [],
            "questions": [{"question": q, "answers": a} for q, a in questions]}  # fmt: skip


def passed(questions, **change):
    ledger = FilterLedger()
    lengths = change.pop("lengths", (8, 8, 8))
    found = gate(record(questions, lengths), ledger, get_judge("exact"), Limits(**change))
    return found, {row["rule"]: (row["in"], row["out"]) for row in ledger.rows()}


def test_what_is_right_passes_unchanged():
    found, rules = passed([("What shows up?", [RED, BLUE, NO_REPLY]), ("And what is white?", [NO_REPLY, NO_REPLY, MOON])])
    assert found == record([("What shows up?", [RED, BLUE, NO_REPLY]), ("And what is white?", [NO_REPLY, NO_REPLY, MOON])])
    assert all(into == out for into, out in rules.values()) and len(rules) == 7


@pytest.mark.parametrize("questions, rule", [
    ([("What shows up?", [BLUE, NO_REPLY, NO_REPLY])], "answer is supported by its caption"),
    ([("What shows up?", [NO_REPLY] * 3)], "question has an answer"),
    ([(f"Is it true that {RED}", [RED, NO_REPLY, NO_REPLY])], "question does not give its answer away"),
])  # fmt: skip
def test_what_is_wrong_is_dropped_with_its_rule(questions, rule):
    found, rules = passed(questions)
    assert found is None and rules[rule][0] > rules[rule][1] and rules["video has a question"] == (1, 0)


def test_repeated_answers_become_silence():
    again = record([("What shows up?", [RED, RED, MOON])])
    again["scenes"][1]["caption"] = f"{BLUE} {RED}"
    ledger = FilterLedger()
    found = gate(again, ledger, get_judge("exact"))
    assert found["questions"][0]["answers"] == [RED, NO_REPLY, MOON]
    assert {row["rule"]: row["in"] - row["out"] for row in ledger.rows()}["answer says something new"] == 1


def test_scenes_shorter_than_a_turn_go_with_their_answers():
    found, rules = passed([("What shows up?", [RED, BLUE, MOON])], lengths=(8, 2, 8))
    assert [s["caption"] for s in found["scenes"]] == [RED, MOON] and found["questions"][0]["answers"] == [RED, MOON]
    assert rules["scene is as long as a turn"] == (3, 2)


def test_the_share_of_silence_has_limits():
    found, rules = passed([("What shows up?", [RED, NO_REPLY, NO_REPLY])], most_silence=0.5)
    assert found is None and rules["share of NO REPLY is within its limits"] == (1, 0)


def test_a_judge_that_fails_supports_nothing():
    class Silent:
        def covered(self, history, text):
            return None

    ledger = FilterLedger()
    assert gate(record([("What shows up?", [RED, BLUE, MOON])]), ledger, Silent()) is None
    reasons = [example["reason"] for row in ledger.rows() for example in row["examples"]]
    assert "judge failed" in reasons
