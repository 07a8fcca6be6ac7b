"""Evaluation: clocks, latency after the hidden onset, lucky guesses apart, FAIL, and tables that print NOT RUN."""

from types import SimpleNamespace

import numpy as np
import pytest
import results
import tab2_proactive
import tab5_proactive_output
from results import Tables

from mmduet2kit import evaluate, evaluation, progress
from mmduet2kit import model as models
from mmduet2kit.corpus.dialogues import benchmark_record, from_benchmark
from mmduet2kit.corpus.films import annotate
from mmduet2kit.corpus.world import plan
from mmduet2kit.files import read_csv, write_json
from mmduet2kit.profile import load_profile

PROFILE = load_profile("tiny")


@pytest.fixture
def case():
    video = plan(PROFILE.world, "test", "WEB", 0)
    record = benchmark_record(annotate(video, "test"), np.random.default_rng(0), ("all",))
    onsets = {(record["video"], scene.start): scene.onset for scene in video.scenes}
    evaluator = evaluate.Evaluator(PROFILE, None, None, None)
    return evaluator, record, onsets


def watched(record, replies):
    return evaluate.Watched(record, replies, len(from_benchmark(record, 1.0, 1).turns) - 1)


def row_of(case, replies):
    evaluator, record, onsets = case
    (row,) = evaluator.score([watched(record, replies)], onsets)
    return row


def test_silence_is_the_floor(case):
    row = row_of(case, [])
    found = evaluate.pooled([row])
    assert found["pauc"] == pytest.approx(25.0)  # upstream_facts: 0.5 of 2, the never-speaks floor
    assert (row["correct"], row["lucky"], found["latency_s"], found["duplicate"]) == (0, 0, "", 0.0)


def test_latency_counts_from_the_onset_and_guesses_are_apart(case):
    _, record, onsets = case
    answer = record["answer"][0]
    start, end = answer["reply_timespan"]
    onset = onsets[record["video"], start]
    late = row_of(case, [(end - 0.1, answer["content"])])
    soon = row_of(case, [(onset + 0.4, answer["content"])])
    assert late["latency_sum"] == pytest.approx(end - 0.1 - onset)
    assert soon["latency_sum"] == pytest.approx(0.4)
    assert soon["pauc_sum"] > late["pauc_sum"]
    lucky = row_of(case, [((start + onset) / 2, answer["content"])])
    assert (lucky["correct"], lucky["lucky"], lucky["latency_n"]) == (1, 1, 0)
    assert row_of(case, [(onset + 0.4, "A red circle.")])["correct"] == 0


def test_repeating_oneself_is_a_duplicate_and_speaking_always_fails(case):
    _, record, _ = case
    answer = record["answer"][0]
    start, end = answer["reply_timespan"]
    row = row_of(case, [(start + 1, answer["content"]), (start + 2, answer["content"])])
    assert (row["dup_sum"], row["multi_spans"], row["correct"]) == (1.0, 1, 1)
    always = row_of(case, [(float(t), "A red circle.") for t in range(1, int(record["duration"]) + 2)])
    assert evaluate.pooled([always], budget=0.9)["status"] == "FAIL"
    assert evaluate.pooled([row], budget=0.9)["status"] == "ok"


def test_the_benchmarks_clock():
    """Frame k shows (k - 1) dt and is consumed at k dt; text-only turns stand at their own time (contract, Time)."""
    record = {
        "question_id": "q", "video": "v", "domain": "TV", "duration": 5.0,
        "conversation": [{"role": "user", "content": "Q", "time": 0.0}, {"role": "user", "content": "Subtitle: x", "time": 2.4}],
        "answer": [],
    }  # fmt: skip
    dialogue = from_benchmark(record, 1.0, 2)
    assert [(t.frames, t.text) for t in dialogue.turns] == [
        ((), "Q"), ((0, 1), None), ((2, 3), None), ((), "Subtitle: x"), ((4,), None),
    ]  # fmt: skip
    assert dialogue.times() == [0.0, 2.0, 4.0, 4.0, 5.0]


def test_predictions_follow_the_upstream_schema(case):
    _, record, _ = case
    line = evaluate.to_prediction(watched(record, [(3.0, "A red circle.")]))
    assert line["question_id"] == record["question_id"]
    assert line["model_response_list"][0]["role"] == "user"
    assert {"role": "assistant", "content": "A red circle.", "time": 3.0} in line["model_response_list"]


def test_missing_runs_are_not_run(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    row = row_of(case, [])
    part = {"domain": "WEB", "interval": 1.0, "rows": [row], "pooled": evaluate.pooled([row]) | {"quantum_s": 1.0}}
    write_json(PROFILE.results / "eval" / "rl-seed1.json", {"model": "rl", "seed": 1, "proactive": [part]})
    Tables(PROFILE).write()
    table = read_csv(PROFILE.results / "table2.csv")
    assert {(r["model"], r["domain"]): r["status"] for r in table}["rl", "WEB"] == "ok"
    assert [r["status"] for r in table].count("NOT RUN") == len(table) - 1
    for name in ("table3", "table4", "table5", "table6", "table7"):
        assert {r["status"] for r in read_csv(PROFILE.results / f"{name}.csv")} <= {"NOT RUN", "ok"}
    assert len(read_csv(PROFILE.results / "per_video.csv")) >= 1
    assert not (PROFILE.results / "silence.csv").exists()  # tiny does not ask


def test_anybodys_checkpoint_and_the_official_poll_have_rows_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    part = {"domain": "WEB", "interval": 1.0, "rows": [], "pooled": {"pauc": 53.0, "duplicate": 6.0, "reply_turns": 1.5, "multi_spans": 20, "status": "ok"}}
    rules = {"accuracy_first_reply": 0.25, "accuracy_time": 0.5, "accuracy_time_content": 0.125, "n": 8}
    found = {"proactive": [part], "po": rules, "po_poll": rules | {"accuracy_time": 0.75}}
    write_json(PROFILE.results / "eval" / "owner--name-seed1.json", found)
    Tables(PROFILE).write()
    drawn = {path.name: path.read_text() for path in tab2_proactive.draw(PROFILE.results, tmp_path) + tab5_proactive_output.draw(PROFILE.results, tmp_path)}
    (line,) = (line for line in drawn["tab2_proactive.md"].splitlines() if line.startswith("| owner--name | kit"))
    assert "53.0 / 6.0" in line and "NOT RUN" in line
    rows = {r["model"]: r["accuracy_time"] for r in read_csv(PROFILE.results / "table5.csv") if r["status"] == "ok"}
    assert rows == {"owner--name": "50.0", "owner--name:poll": "75.0"}
    assert "| owner--name:poll | kit | 25.00 | 75.00 | 12.50 | 8 |" in drawn["tab5_proactive_output.md"]


def test_arms_of_silence_stand_with_their_datas_turns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = load_profile("study@1")
    turns = {2.0: ["NO REPLY", "NO REPLY", "A red circle.", None], 1.0: ["NO REPLY"] * 4 + ["A red circle."]}
    data = SimpleNamespace(sft=lambda interval: [SimpleNamespace(turns=[SimpleNamespace(reply=r) for r in turns[interval]])])
    monkeypatch.setattr(results, "Dataset", lambda folder: data)
    pooled = {"pauc": 31.0, "reply_turns": 1.5, "status": "ok"}
    part = {"domain": "WEB", "interval": 1.0, "rows": [], "pooled": pooled}
    write_json(study.results / "eval" / "sft-1s-w1-seed1.json", {"proactive": [part]})
    results.Tables(study).write()
    rows = {(float(r["sft_interval"]), float(r["no_reply_weight"])): r for r in read_csv(study.results / "silence.csv")}
    assert set(rows) == {(interval, weight) for interval in (1.0, 2.0) for weight in (0.5, 1.0)}
    assert [r["status"] for r in rows.values()].count("ok") == 1 and rows[1.0, 1.0]["pauc"] == "31.0"
    assert (rows[1.0, 1.0]["silent_turns"], rows[2.0, 1.0]["silent_turns"], rows[2.0, 0.5]["answer_turns"]) == ("4", "2", "1")


def test_the_chat_formats_are_compared_seed_by_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pooled = {"pauc": 31.0, "reply_turns": 1.5, "status": "ok", "tokens_per_min": 480.0}
    parts = [{"domain": domain, "interval": 1.0, "rows": [], "pooled": pooled} for domain in ("WEB", "EGO")]
    found = {"proactive": parts, "speed": {"wall_s": 3.0, "decisions": 100}, "ahead": {"wall_s": 1.0, "decisions": 100}}
    write_json(PROFILE.results / "eval" / "sft-frames-seed1.json", found)
    Tables(PROFILE).write()
    rows = {(r["chat_form"], r["domain"]): r for r in read_csv(PROFILE.results / "formats.csv")}
    assert [rows["turns", domain]["status"] for domain in ("WEB", "EGO")] == ["NOT RUN"] * 2
    assert (rows["frames", "WEB"]["ms_per_turn"], rows["frames", "WEB"]["ms_per_turn_ahead"]) == ("30.0", "10.0")
    assert rows["frames", "EGO"]["tokens_per_min"] == "480.0" and rows["frames", "EGO"]["ms_per_turn"] == ""


def test_a_base_model_that_the_profile_names_is_used(monkeypatch):
    model = PROFILE.model.model_copy(update={"path": "somewhere/base-3B"})
    named, asked = PROFILE.model_copy(update={"model": model}), []
    monkeypatch.setattr(evaluation, "load_profile", lambda name: named)
    records = [{"domain": "WEB", "answer": []}]
    monkeypatch.setattr(evaluation, "Dataset", lambda folder: SimpleNamespace(interval=1.0, benchmark=lambda split: records, has=lambda name: True))
    monkeypatch.setattr(evaluation, "load_to_play", lambda profile, folder: asked.append(str(folder)) or 1 / 0)
    for name in ("base", "sft"):
        with pytest.raises(ZeroDivisionError):
            evaluation.run(SimpleNamespace(profile="any", seed=1, model=name, domains="WEB", intervals="", extras="", protocol="push", shard=(0, 1), parallel=1))
    assert asked == ["somewhere/base-3B", "runs/tiny/models/sft-seed1"]
    assert str(PROFILE.model_dir("base", 1)) == "runs/tiny/models/base-seed1"


def test_a_model_is_played_on_the_gpu_of_its_process(monkeypatch):
    places = []
    one = SimpleNamespace(eval=lambda: SimpleNamespace(to=lambda place: places.append(place)))
    monkeypatch.setattr(models, "load", lambda folder, dtype, attention: (one, (folder, dtype)))
    for there in (False, True):
        monkeypatch.setattr(models.torch.cuda, "is_available", lambda there=there: there)
        assert models.load_to_play(PROFILE, "somewhere")[1] == ("somewhere", PROFILE.model.dtype)
    monkeypatch.setenv("LOCAL_RANK", "3")
    models.load_to_play(PROFILE, "somewhere")
    assert places == ["cpu", "cuda:0", "cuda:3"]


def test_what_takes_long_says_how_far_it_is_and_what_is_short_says_nothing(capsys, monkeypatch):
    now = iter(range(0, 1000, 4))  # 4 s an item
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    assert list(progress.telling("judged", "abcdefgh", 8)) == list("abcdefgh")
    assert capsys.readouterr().out == "judged: 2 of 8, 24 s left\njudged: 6 of 8, 8 s left\n"
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    assert list(progress.telling("judged", "ab", 2)) == ["a", "b"] and not capsys.readouterr().out
