"""Benchmarks: their videos to a dataset, joined with training data, evaluated by push and by poll, killed, resumed and in shards."""

import json
import os
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mmduet2kit import cli, evaluate, evaluation, joined
from mmduet2kit.corpus.build import Dataset, build, read_index
from mmduet2kit.corpus.films import write_video
from mmduet2kit.corpus.readers import READERS
from mmduet2kit.dialogue import DEFAULT_SYSTEM, NO_REPLY, PROACTIVE_SYSTEM
from mmduet2kit.errors import UserError
from mmduet2kit.files import read_json, read_jsonl
from mmduet2kit.profile import load_profile
from mmduet2kit.protocols import poll, push
from mmduet2kit.score import MemoJudge

from played import make_tiny
from test_honesty import quiet, small_profile

MINIATURES = Path(__file__).parent / "miniatures"


def film(path, seconds, seed):
    shades = np.random.default_rng(seed).integers(0, 255, (64, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, (np.full((56, 56, 3), shades[k // 8 % 64], np.uint8) for k in range(4 * seconds)), 4)


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def bench(folder, out, corpus):
    return cli.main(["data", "build", str(folder), "--corpus", corpus, "--out", str(out), "--profile", "tiny", "--workers", "1"])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Both benchmarks in miniature with films, built; a procedural dataset; all of them joined; a model."""
    at = tmp_path_factory.mktemp("bench")
    for name in ("proactivevideoqa", "streamingbench"):
        shutil.copytree(MINIATURES / name, at / name)
    film(at / "proactivevideoqa" / "WEB" / "videos" / "clip.mp4", 12, 1)  # 12.5 s are stated
    rows = read_json(at / "proactivevideoqa" / "WEB" / "anno.json")
    late = rows[0] | {"question_id": "late", "conversation": [rows[0]["conversation"][0] | {"time": 40}]}
    more = [rows[0] | {"question_id": f"again {k}"} for k in range(2)]
    (at / "proactivevideoqa" / "WEB" / "anno.json").write_text(json.dumps([*rows, *more, late, rows[0] | {"question_id": "gone", "video": "gone.mp4"}]))
    film(at / "streamingbench" / "src" / "videos" / "sample_17_proactive.mp4", 188, 2)  # its scripts are run in src
    assert bench(at / "proactivevideoqa", at / "pvqa", "proactivevideoqa") == bench(at / "streamingbench", at / "sb", "streamingbench") == 0
    build(small_profile(), at / "trained", quiet)
    assert cli.main(["data", "join", str(at / "all"), str(at / "trained"), str(at / "pvqa"), str(at / "sb")]) == 0
    make_tiny(at / "model")
    return at


def test_a_benchmark_becomes_a_dataset(world):
    (web, *_), rules = Dataset(world / "pvqa").benchmark("test"), {r["rule"]: r for r in read_json(world / "pvqa" / "ledger.json")}
    assert (web["question_id"], web["duration"]) == ("clip.mp4", 12.0)  # no longer than what is there
    assert len(Dataset(world / "pvqa").frames(push(web, 1.0, 1))) == 12
    assert [(rule, r["in"] - r["out"]) for rule, r in rules.items()] == [
        ("record can be read", 1), ("video decodes", 2), ("question is asked within its video", 1)]  # fmt: skip
    assert {e["item"] for e in rules["video decodes"]["examples"]} == {"gone", "frames=s05_1.mp4%Q1"}  # no film was made for TV
    (po,) = Dataset(world / "sb").benchmark("test")
    assert (po["duration"], po["video"], po["ground_truth_output"]) == (188.0, "src/videos/sample_17_proactive.mp4", "40")


def test_replies_that_stand_in_a_conversation_are_not_shown(tmp_path):
    (row,) = read_json(MINIATURES / "proactivevideoqa" / "WEB" / "anno.json")[:1]
    told = row | {"conversation": [*row["conversation"], {"role": "assistant", "content": "THE ANSWER", "time": 3.0}]}
    (tmp_path / "anno.json").write_text(json.dumps([told]))
    (found,) = READERS["proactivevideoqa"].read(tmp_path)
    assert found["domain"] == tmp_path.name and "THE ANSWER" not in str(push(found, 1.0, 1).turns)


@pytest.mark.parametrize("wrong", [{"duration": None}, {"conversation": [{"role": "user", "content": "?", "time": "x"}]}, {"duration": 900.0, "answer": []}])
def test_a_damaged_test_file_is_one_sentence(world, tmp_path, wrong, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world / "pvqa", "data")
    Path("data/test.json").write_text(json.dumps([Dataset(world / "pvqa").benchmark("test")[0] | wrong]))
    Path("mine.yaml").write_text(f"name: bench\nextends: tiny\nmodel: {{path: {world / 'model'}}}\ndataset: data\n")
    assert cli.main(["evaluate", "--profile", "mine.yaml", "--model", str(world / "model")]) == 2
    assert ".json is damaged" in capsys.readouterr().err.strip().splitlines()[-1]


def test_frames_that_are_too_sparse_for_the_profile_are_not_shown_twice(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(f"name: bench\nextends: tiny\nvideo: {{test_interval: 0.5}}\nmodel: {{path: {world / 'model'}}}\ndataset: {world / 'sb'}\n")
    assert cli.main(["evaluate", "--profile", "mine.yaml", "--model", str(world / "model")]) == 2
    assert "--intervals 0.5: give multiples of 1 s" in capsys.readouterr().err


def test_shards_of_a_model_whose_name_has_spaces_and_one_that_fails(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(f"name: bench\nextends: tiny\nmodel: {{path: {world / 'model'}}}\ndataset: {world / 'sb'}\n")
    given = []
    monkeypatch.setattr(evaluation, "run_commands", lambda profile, chains, parallel: given.extend(shlex.split(one) for (one,) in chains))
    command = ["evaluate", "--profile", "mine.yaml", "--model", "./my model", "--parallel", "2"]
    assert cli.main(command) == 0 and [(one[one.index("--model") + 1], one[-1]) for one in given] == [("./my model", "0/2"), ("./my model", "1/2")]
    monkeypatch.undo(), monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 2 and "that folder does not exist" in capsys.readouterr().err


def test_a_join_holds_what_its_parts_hold(world):
    whole, trained = Dataset(world / "all"), Dataset(world / "trained")
    whole.check(2.0)
    assert [d.video for d in whole.sft(2.0)] == [f"trained/{d.video}" for d in trained.sft(2.0)]
    assert [s.dialogue.gold for s in whole.rl(2.0)] == [s.dialogue.gold for s in trained.rl(2.0)]
    for mine, theirs in ((whole.sft(2.0)[0], trained.sft(2.0)[0]), (whole.rl(2.0)[0].dialogue, trained.rl(2.0)[0].dialogue)):
        assert np.array_equal(whole.frames(mine), trained.frames(theirs))
    assert [r["domain"] for r in whole.benchmark("test")] == ["TV", "WEB", "WEB", "WEB", "PO"] and len(whole.benchmark("dev")) == 1
    assert not whole.has("onsets/test.json") and trained.has("onsets/test.json")
    assert {r["video"].split("/")[0] for r in read_jsonl(world / "all" / "scenes" / "rl.jsonl")} == {"trained"}
    some = next((world / "all" / "frames").iterdir())
    assert some.stat().st_nlink > 1  # linked, not copied
    rules = {r["rule"]: r["in"] for r in read_json(world / "all" / "ledger.json")}
    assert rules["video decodes"] == sum(r["in"] for p in ("trained", "pvqa", "sb") for r in read_json(world / p / "ledger.json") if r["rule"] == "video decodes")


def test_a_join_that_was_killed_gives_the_same_bytes(world, tmp_path, monkeypatch):
    parts = [world / "trained", world / "pvqa", world / "sb"]
    monkeypatch.setattr(joined, "_link", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        joined.join_datasets(tmp_path / "all", parts)
    assert not (tmp_path / "all").exists()
    monkeypatch.undo()
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no hard links here")))
    joined.join_datasets(tmp_path / "all", parts)
    assert content(tmp_path / "all") == content(world / "all") and next((tmp_path / "all" / "frames").iterdir()).is_symlink()


def test_joins_that_cannot_be(world, tmp_path, capsys):
    (tmp_path / "x" / "pvqa").mkdir(parents=True)
    other = shutil.copytree(world / "pvqa", tmp_path / "x" / "pvqa", dirs_exist_ok=True)
    assert cli.main(["data", "join", str(tmp_path / "twins"), str(world / "pvqa"), str(other)]) == 0
    records = read_json(tmp_path / "twins" / "test.json")
    assert len({r["question_id"] for r in records}) == 6 and {r["video"].split("/")[0] for r in records} == {"1-pvqa", "2-pvqa"}
    (other / "frames.json").write_text(json.dumps(read_json(other / "frames.json") | {"interval": 0.5}))
    capsys.readouterr()
    for wrong, told in (
        ([tmp_path / "out", world / "pvqa", other], "another every 0.5 s"),
        ([tmp_path / "out", world / "pvqa", world / "pvqa"], "twice"),
        ([tmp_path / "out", tmp_path], "no built dataset"),
        ([tmp_path / "out"], "none"),
        ([tmp_path, world / "pvqa"], "something else"),
        ([], "give the new dataset's folder"),
    ):
        assert cli.main(["data", "join", *map(str, wrong)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert told in line
    (other / "frames.json").write_text((world / "pvqa" / "frames.json").read_text())
    (other / "offline_sft.jsonl").write_text('{"images": [], "metadata": {}}\n')
    assert cli.main(["data", "join", str(tmp_path / "out"), str(other)]) == 2
    assert "row 1" in capsys.readouterr().err and not (tmp_path / "out").exists()


RECORD = {"question_id": "q", "video": "v", "domain": "PO", "duration": 60.0, "time_stamp": 10.0, "ground_truth_time_stamp": 13.0,
          "ground_truth_output": "40", "conversation": [{"role": "user", "content": 'When it scores, output "40".', "time": 10.0}],
          "answer": [{"role": "assistant", "content": "40", "related_timespan": [13.0, 13.0], "reply_timespan": [13.0, 13.0]}]}  # fmt: skip


def test_push_shows_the_frames_of_the_poll_and_no_word_of_the_gold():
    record = RECORD | {"conversation": [{"role": "user", "content": "Say when it scores.", "time": 10.0}]}
    dialogue = push(record, 1.0, 1)
    assert dialogue.turns[0].text == "Say when it scores." and dialogue.system == PROACTIVE_SYSTEM
    assert dialogue.frame_indices() == list(range(10, 17)) and dialogue.times() == [10.0, *(float(t) for t in range(11, 18))]
    assert all(turn.text is None and len(turn.frames) == 1 for turn in dialogue.turns[1:])
    assert not any("40" in (turn.text or "") for turn in dialogue.turns)
    assert push(record | {"duration": 12.5}, 1.0, 2).times() == [10.0, 12.0, 13.0]  # two a turn, to the video's end
    assert push(record | {"duration": 10.0}, 1.0, 1).frame_indices() == [9]


def test_the_official_poll_second_by_second():
    """Asked at 10, gold at 13: polls at 11 to 17, each of all frames since the question; the first yes ends them."""
    seen = []

    def ask(dialogues):
        seen.extend(dialogues)
        return [script[d.id].pop(0) for d in dialogues]

    records = [RECORD | {"question_id": name} for name in "abc"]
    script = {"a": ["No.", "no", "Oh YES, it is", "It is 40."], "b": ["No"] * 7, "c": ["yes", NO_REPLY]}
    found = poll(records, 1.0, ask)
    assert found == [([(13.0, "It is 40.")], 3), ([], 7), ([(11.0, "")], 1)] and not any(script.values())
    mine = [d for d in seen if d.id == "a"]
    assert [d.frame_indices() for d in mine] == [[10], [10, 11], [10, 11, 12], [10, 11, 12]]
    assert 'the right time to output "40"? You can only answer yes or no.' in mine[2].turns[0].text
    assert "right time" not in mine[3].turns[0].text and {d.system for d in seen} == {DEFAULT_SYSTEM}
    watched = [evaluate.Watched(r, *f) for r, f in zip(records, found)]
    rules = evaluate.Evaluator(load_profile("tiny"), None, None, None).proactive_output(watched, None)
    assert rules == {"accuracy_first_reply": pytest.approx(2 / 3), "accuracy_time": pytest.approx(2 / 3), "accuracy_time_content": pytest.approx(1 / 3), "n": 3}


@pytest.fixture
def run(world, tmp_path, monkeypatch):
    """evaluate(*options): `mmduet2 evaluate` of the base model on the joined dataset, one question a batch."""
    monkeypatch.chdir(tmp_path)
    read_index.cache_clear()
    (tmp_path / "mine.yaml").write_text(
        f"name: bench\nextends: tiny\ndataset: {world / 'all'}\njudge: {{name: embedding}}\nmodel: {{path: {world / 'model'}}}\nevaluate: {{batch: 1, max_new_tokens: 6}}\n")
    judge = SimpleNamespace(name="short", parallel=2, correctness=lambda question, gold, said, most: float(len(said) % (most + 1)), covered=lambda before, said: said in before)
    monkeypatch.setattr(evaluate, "judge_of", lambda profile: MemoJudge(judge))
    return lambda *options: cli.main(["evaluate", "--profile", "mine.yaml", "--model", "base", *options])


def outcome(folder=Path("runs/bench/results/eval")):
    return read_json(folder / "base-seed1.json"), {p.name: p.read_text() for p in sorted((folder / "predictions").iterdir())}


def test_killed_and_in_shards_the_result_is_the_same(run, monkeypatch, capsys):
    assert run("--extras", "po,offline") == 0
    whole, play, played = outcome(), evaluation.Part.play, []
    assert {p["domain"]: p["pooled"]["spans"] for p in whole[0]["proactive"]} == {"TV": 1, "WEB": 6}
    assert whole[0]["po"]["n"] == 1 and whole[0]["engine"]["decisions"] > 3 * 12 and whole[0]["offline"]
    assert len(whole[1]["base-seed1-WEB-1s.jsonl"].splitlines()) == 3

    def dies(part, name):
        if len(played) == 3:
            raise KeyboardInterrupt
        played.append(name)
        return play(part, name)

    shutil.rmtree("runs")
    monkeypatch.setattr(evaluation.Part, "play", dies)
    assert run("--extras", "po,offline") == 130
    kept = read_json(Path("runs/bench/results/eval/base-seed1.json"))
    assert [p["domain"] for p in kept["proactive"]] == ["TV"] and len(played) == 3  # a finished part is there already
    monkeypatch.setattr(evaluation.Part, "play", lambda part, name: played.append(name) or play(part, name))
    assert run("--extras", "po,offline") == 0 and outcome() == whole
    assert len(played) == len(set(played)) == 5  # none twice: TV 1, WEB 3, PO 1

    shutil.rmtree("runs")
    played.clear()
    for index in (2, 0):
        assert run("--extras", "po,offline", "--shard", f"{index}/3") == 0
        assert not Path("runs/bench/results/eval/base-seed1.json").exists()
    assert "batches are there" in capsys.readouterr().out
    assert run("--extras", "po,offline", "--shard", "1/3") == 0
    assert outcome() == whole and len(played) == 5


def test_other_weights_or_settings_begin_anew(run, tmp_path, monkeypatch):
    play, played = evaluation.Part.play, []
    monkeypatch.setattr(evaluation.Part, "play", lambda part, name: played.append(name) or play(part, name))
    for tokens, wanted in ((6, 3), (6, 3), (5, 6)):
        profile = Path("mine.yaml").read_text().replace("max_new_tokens: 6", f"max_new_tokens: {tokens}")
        Path("mine.yaml").write_text(profile)
        assert run("--domains", "WEB") == 0 and len(played) == wanted
    assert len(list(Path("runs/bench/results/eval/pieces/base-seed1").iterdir())) == 1


def test_the_poll_stands_beside_the_push(run, capsys):
    assert run("--protocol", "poll") == 0
    assert run("--domains", "TV", "--extras", "po") == 0
    found, predictions = outcome()
    assert found["po_poll"]["n"] == found["po"]["n"] == 1 and set(predictions) == {f"base-seed1-{name}.jsonl" for name in ("TV-1s", "PO-1s", "PO-1s-poll")}
    replies = read_jsonl(Path("runs/bench/results/eval/predictions/base-seed1-PO-1s.jsonl"))[0]["model_response_list"]
    assert all(174 < r["time"] <= 186 for r in replies if r["role"] == "assistant")  # asked at 174, gold at 182
    assert "evaluated PO by poll" in capsys.readouterr().out


def test_what_cannot_be_evaluated_is_one_sentence(run, world, capsys, monkeypatch):
    text, pure = Path("mine.yaml").read_text(), {str(world / "all"): str(world / "pvqa")}
    monkeypatch.setattr(evaluation, "load_to_play", lambda *_: pytest.fail("nothing is loaded before it is refused"))
    for change, options, told in (
        (pure | {"name: embedding": "name: exact"}, [], "The judge exact knows"),
        (pure, ["--protocol", "poll"], "no question of StreamingBench"),
        ({}, ["--shard", "3/3"], "from 0/4 to 3/4"),
        ({}, ["--shard", "0/2", "--extras", "speed"], "speed is measured"),
    ):
        changed = text
        for old, new in change.items():
            changed = changed.replace(old, new)
        Path("mine.yaml").write_text(changed)
        assert run(*options) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert told in line


def test_questions_domains_and_development_videos_that_are_not_there(world, tmp_path, capsys):
    profile, tests = load_profile("tiny"), [RECORD | {"domain": "MAGQA"}]
    dataset = SimpleNamespace(folder="datasets/mine", interval=1.0, benchmark=lambda split: tests, has=lambda name: False, domains=lambda split: [])
    args = SimpleNamespace(model="rl", domains="", intervals="", extras="po", protocol="push", shard=(0, 1), parallel=1)
    with pytest.raises(UserError, match="How many frames a turn of 'MAGQA'"):
        evaluation.wanted(args, profile, dataset)
    tests[:] = [RECORD | {"domain": "WEB"}]
    assert evaluation.wanted(SimpleNamespace(**{**vars(args), "model": "threshold"}), profile, dataset) is None
    assert capsys.readouterr().out.startswith("threshold: NOT RUN, as datasets/mine has no development videos")
    tests.clear()
    assert evaluation.wanted(args, profile, dataset) is None and "rl: NOT RUN, as datasets/mine has no test questions" in capsys.readouterr().out
    with pytest.raises(UserError, match="no development videos"):
        evaluate.choose_threshold(evaluate.Evaluator(profile, Dataset(world / "pvqa"), None, None), tmp_path / "sweep.csv", 1)


def test_a_judge_that_never_answers_stops_and_keeps_what_was_said():
    judge = SimpleNamespace(name="gone", correctness=lambda *_: None, covered=lambda *_: None)
    evaluator = evaluate.Evaluator(load_profile("tiny"), None, None, None)
    evaluator.judge = MemoJudge(judge)
    record = {"question_id": "q", "conversation": [{"time": 0.0, "content": "Q"}], "answer": [{"content": "A", "reply_timespan": [0, 9], "related_timespan": [0, 8]}]}
    assert len(evaluator.score([evaluate.Watched(record, [(1.0, "B")], 9)])) == 1  # ranks of a training settle together
    with pytest.raises(UserError, match="no usable answer to 1 of 1 questions"):
        evaluator.judge.settle()
