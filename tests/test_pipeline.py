"""`mmduet2 data build`: shards that are made once and whole, parts of several machines, own videos with and without subtitles."""

import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mmduet2kit import cli
from mmduet2kit.corpus import pipeline
from mmduet2kit.corpus.annotate import TemplateAnnotator
from mmduet2kit.corpus.build import Dataset
from mmduet2kit.corpus.films import make_films, write_video
from mmduet2kit.corpus.pipeline import Plan, build_corpus, join, own_videos
from mmduet2kit.corpus.readers import READERS, Bad
from mmduet2kit.dialogue import NO_REPLY, Dialogue, Turn, to_sft_row
from mmduet2kit.files import fingerprint, read_json, read_jsonl
from mmduet2kit.profile import load_profile
from mmduet2kit.score import get_judge

from played import make_tiny
from test_llm_judge import server  # noqa: F401

SHARES = (0.2, 0.1, 0.1)
SETTINGS = """
name: pipeline
extends: tiny
world:
  counts: {base: {clip: 0}, sft: {train_web: 14, train_ego: 2}, rl: {train_web: 4, train_ego: 0}, dev: {WEB: 0, EGO: 0}, test: {WEB: 0, EGO: 0, TV: 0, VAD: 0, PO: 0}}
  domains:
    train_web: {length: 20, scene: [5, 7], gap: [1, 2], onset: [0.05, 0.35]}
    train_ego: {length: 24, scene: [5, 7], gap: [2, 4], onset: [0.05, 0.35]}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Twenty short films of the procedural world, and the profile they were made with."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "mine.yaml").write_text(SETTINGS)
    profile = load_profile(str(folder / "mine.yaml"))
    make_films(profile, folder, 1, lambda *_: None)
    return folder, profile


def build(world, out, part=(0, 1), shard=4):
    folder, profile = world
    out.mkdir(parents=True, exist_ok=True)
    plan, before = Plan(profile, "template", SHARES), pipeline.SHARD
    pipeline.SHARD = shard
    try:
        shards = build_corpus(plan, TemplateAnnotator(), get_judge("exact"), READERS["procedural"].read(folder), folder, out, part=part)
    finally:
        pipeline.SHARD = before
    if all(path.is_dir() for path in shards):
        join(plan, out, shards)
    return shards


def content(folder):
    """{file: bytes} of a dataset, what was only on the way left out."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and "sqlite" not in p.name}


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, build(world, out)


def test_a_dataset_that_training_reads(world, whole):
    out, shards = whole
    assert len(shards) == 5
    dataset = Dataset(out)
    dataset.check(2.0)
    assert dataset.key
    dialogues, segments = dataset.sft(2.0), dataset.rl(2.0)
    assert dialogues and segments and dataset.benchmark("dev") + dataset.benchmark("test")
    for d in dialogues:
        assert dataset.frames(d).shape[0] == len(d.frame_indices()) and any(t.reply not in (None, NO_REPLY) for t in d.turns)
        captions = " ".join(s["caption"] for r in read_jsonl(out / "scenes" / "sft.jsonl") if r["video"] == d.video for s in r["scenes"])
        assert all(g.text in captions or g.text.startswith("So far there was") for g in d.gold)
    splits = {s: {r["video"] for r in read_jsonl(out / "scenes" / f"{s}.jsonl")} for s in ("sft", "rl", "dev", "test")}
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) <= 20
    rules = {row["rule"]: (row["in"], row["out"]) for row in read_json(out / "ledger.json")}
    assert rules["video decodes"] == (20, 20) and rules["answer is supported by its caption"][0] > 20


def test_evaluation_on_videos_without_hidden_onsets(whole, tmp_path, monkeypatch, capsys):
    """As on real videos: PAUC and replies, no latency; what needs onsets or offline questions is NOT RUN."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(f"name: real\nextends: tiny\ndataset: {whole[0]}\nmodel: {{path: {make_tiny(tmp_path / 'model')}}}\n")
    assert cli.main(["evaluate", "--profile", "mine.yaml", "--model", "base", "--domains", "WEB"]) == 0
    found = read_json(tmp_path / "runs" / "real" / "results" / "eval" / "base-seed1.json")["proactive"][0]["pooled"]
    assert found["spans"] > 0 and found["latency_s"] == "" and found["correct"] == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "--profile", "mine.yaml", "--model", "base", "--domains", "WEB", "--extras", "po,offline"]) == 0
    told = capsys.readouterr().out
    assert "po: NOT RUN" in told and "onsets" in told and "offline: NOT RUN" in told


def test_parts_on_several_machines_give_the_same_bytes(world, whole, tmp_path):
    for index in (1, 0, 2):
        build(world, tmp_path / "parts", (index, 3))
    assert content(tmp_path / "parts") == content(whole[0])


def test_a_shard_that_is_there_is_not_made_again(world, whole, monkeypatch):
    monkeypatch.setattr(pipeline, "make_shard", lambda *a: pytest.fail("made again"))
    before = content(whole[0])
    assert build(world, whole[0]) == whole[1] and content(whole[0]) == before


def test_killed_at_any_moment_and_started_again_the_bytes_are_the_same(world, whole, tmp_path):
    out = tmp_path / "killed"
    fork = multiprocessing.get_context("fork")
    for wait in (0.15, 0.4, 0.7):
        child = fork.Process(target=build, args=(world, out))
        child.start()
        time.sleep(wait)
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
        child.join()
    build(world, out)
    made = {name: data for name, data in content(out).items() if ".partial" not in name and "/." not in f"/{name}"}
    assert made == content(whole[0])


def film(path, seconds, seed=0):
    colours = np.random.default_rng(seed).integers(0, 255, (8, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, (np.full((56, 56, 3), colours[k // 24 % 8], np.uint8) for k in range(4 * seconds)), 4)


def test_own_videos_with_a_model_that_annotates(tmp_path, server, monkeypatch, capsys):  # noqa: F811
    """Subtitles where there are any, cuts where not; what is damaged stands in the ledger and stops nothing."""
    def answer(body):
        system, user = body["messages"][:2]
        if "all that is said now" in system["content"].lower():
            texts = json.loads(user["content"])
            return "yes" if texts["said now"] in texts["said earlier"] else "no"
        if "Write" in system["content"]:
            captions = list(json.loads(user["content"]).values())
            return json.dumps({"questions": [{"question": f"What happens ({k})?", "answers": captions} for k in range(2)]})
        if "Sum up" in system["content"]:
            return '{"answer": "Several things."}'
        return json.dumps({"caption": f"Something happens, {len(server.requests)}."})

    server.answer = answer
    videos = tmp_path / "videos"
    for k in range(6):
        film(videos / f"film{k}.mp4", 30, k)
    (videos / "film0.srt").write_text("1\n00:00:02,000 --> 00:00:08,000\nFirst we cut.\n\n2\n00:00:10,000 --> 00:00:17,000\nThen we cook.\n")
    (videos / "cut off.mp4").write_bytes((videos / "film1.mp4").read_bytes()[:900])
    (videos / "empty.webm").touch()
    (videos / "notes.txt").write_text("no video")
    for name, value in {"OPENAI_BASE_URL": server.url, "MMDUET2_ANNOTATOR_MODEL": "m", "MMDUET2_JUDGE_MODEL": "m"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "mine.yaml").write_text("name: own\nextends: tiny\njudge: {name: llm}\n")
    command = ["data", "build", str(videos), "--out", str(tmp_path / "out"), "--profile", str(tmp_path / "mine.yaml"), "--workers", "1"]
    readers, load = set(), np.load  # CPython 3.11.7's ast, which reads numpy's headers, fails by chance in threads
    monkeypatch.setattr(np, "load", lambda *given, **more: (readers.add(threading.current_thread()), load(*given, **more))[1])
    assert cli.main(command) == 0
    assert readers == {threading.main_thread()}
    text = capsys.readouterr().out
    assert "left out by 'video decodes': 2 of 8" in text
    costs = re.search(r"annotator 'llm': asked (\d+), .* prompt_tokens (\d+), questions 6.* tokens/s; 52,000 videos .* so: (\S+) million tokens, ", text)
    assert float(costs[3]) == pytest.approx(int(costs[1]) * 102 / 6 * 0.052, rel=0.01) and f"prompt_tokens {int(costs[1]) * 100}" in text
    assert "judge 'llm': asked " in text
    out = tmp_path / "out"
    scenes = {r["name"]: r["scenes"] for s in ("sft", "rl", "dev", "test") for r in read_jsonl(out / "scenes" / f"{s}.jsonl")}
    assert [(s["start"], s["end"]) for s in scenes["film0"]] == [(2.0, 8.0), (10.0, 17.0)]
    assert all(len(one) >= 2 for one in scenes.values()) and len(scenes) == 6
    asked = len(server.requests)
    shutil.rmtree(out / "shards")
    assert cli.main(command) == 0 and len(server.requests) == asked  # nothing is paid for twice
    capsys.readouterr()


def test_a_large_dataset_is_not_held_in_memory(tmp_path):
    row = to_sft_row(Dialogue("d", "v", 2.0, tuple(Turn((k,), reply=NO_REPLY) for k in range(100))))
    (tmp_path / "sft_2s.jsonl").write_text((json.dumps(row) + "\n") * 1500)
    rows = Dataset(tmp_path).sft(2.0)
    tracemalloc.start()
    assert len(rows) == 1500 and sum(len(dialogue.turns) for dialogue in rows) == 150_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.05 * (tmp_path / "sft_2s.jsonl").stat().st_size and rows[-1].id == rows[:2][1].id == "d"


@pytest.mark.parametrize("wrong", [["--shard", "2/2"], ["--shard", "one"], ["--corpus", "streamingbench"], ["--corpus", "mmduet2-data"], ["--shares", "0.5,0.5,0"], ["--shares", "nan,0,0"],
                                   ["--shares", "0.1,0.1"], []])  # fmt: skip
def test_wrong_use_is_one_sentence(wrong, tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    command = ["data", "build", str(tmp_path / "videos"), "--out", str(tmp_path / "out"), "--annotator", "template", "--profile", "tiny", *wrong]
    assert cli.main(command) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_splits_depend_on_the_name_alone():
    plan = Plan(load_profile("tiny"), "template", SHARES)
    names = [f"video {k}" for k in range(4000)]
    counts = {s: sum(plan.split(n) == s for n in names) / len(names) for s in ("sft", "rl", "dev", "test")}
    assert counts == pytest.approx({"rl": 0.2, "dev": 0.1, "test": 0.1, "sft": 0.6}, abs=0.03)


def test_files_that_are_no_videos_are_passed_over(tmp_path):
    for name in ("a.MP4", "b.txt", "sub/c.mkv", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [c.video for c in own_videos(tmp_path, "web")] == ["a.MP4", str(Path("sub") / "c.mkv")]


def test_a_linked_folder_is_told_and_a_linked_film_is_read(tmp_path):
    for name in ("far/a.mp4", "films/b.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "films" / "all.mp4").symlink_to(tmp_path / "far", target_is_directory=True)
    (tmp_path / "films" / "more").symlink_to(tmp_path / "far", target_is_directory=True)
    (tmp_path / "films" / "z.mp4").symlink_to(tmp_path / "far" / "a.mp4")
    found = list(own_videos(tmp_path / "films", "web"))
    assert found[:3:2] == [Bad(name, "a linked folder: build from it by itself") for name in ("all.mp4", "more")] and [c.video for c in found[1::2]] == ["b.mp4", "z.mp4"]


@pytest.fixture
def told(tmp_path, server, monkeypatch):  # noqa: F811
    """(server, folder of four own videos, the command that builds it); captions name the model that gave them."""
    def answer(body):
        system, user = body["messages"][:2]
        if "Write" in system["content"]:
            captions = list(json.loads(user["content"]).values())
            return json.dumps({"questions": [{"question": f"What happens ({k})?", "answers": captions} for k in range(2)]})
        return json.dumps({"caption" if isinstance(user["content"], list) else "answer": f"{body['model']} saw {len(server.requests)}."})

    server.answer = answer
    for k in range(4):
        film(tmp_path / "videos" / f"film{k}.mp4", 24, k)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("MMDUET2_ANNOTATOR_MODEL", "m")
    return server, tmp_path / "videos", ["data", "build", str(tmp_path / "videos"), "--out", str(tmp_path / "out"), "--profile", "tiny", "--workers", "1"]


def annotated(out):
    """{video: its scenes} of all splits."""
    return {r["name"]: r["scenes"] for s in ("sft", "rl", "dev", "test") for r in read_jsonl(out / "scenes" / f"{s}.jsonl")}


def test_an_endpoint_that_is_down_stops_the_build_which_goes_on_when_it_is_up(told, tmp_path, monkeypatch, capsys):
    server, _, command = told  # noqa: F811
    monkeypatch.setattr("mmduet2kit.endpoint.wait_random_exponential", lambda **_: lambda state: 0)
    answer, server.answer = server.answer, lambda body: (500, b"")
    assert cli.main(command) == 2
    assert "gave the annotator 'llm' no answer to" in capsys.readouterr().err and not list((tmp_path / "out" / "shards").iterdir())
    server.answer = answer
    assert cli.main(command) == 0 and len(annotated(tmp_path / "out")) == 4


def test_another_model_or_other_subtitles_are_another_dataset(told, tmp_path, monkeypatch):
    _, videos, command = told
    seen = []
    for change in (lambda: None, lambda: monkeypatch.setenv("MMDUET2_ANNOTATOR_MODEL", "other"),
                   lambda: (videos / "film1.en.srt").write_text("1\n00:00:02,000 --> 00:00:08,000\nFirst.\n\n2\n00:00:10,000 --> 00:00:17,000\nThen.\n")):  # fmt: skip
        change()
        assert cli.main(command) == 0
        seen.append(annotated(tmp_path / "out"))
    by = [{scene["caption"].split()[0] for scenes in one.values() for scene in scenes} for one in seen]
    assert by == [{"m"}, {"other"}, {"other"}] and read_json(tmp_path / "out" / "about.json")["sources"][0]["model"] == "other"
    assert [(s["start"], s["end"]) for s in seen[2]["film1"]] == [(2.0, 8.0), (10.0, 17.0)] != [(s["start"], s["end"]) for s in seen[1]["film1"]]


def test_a_film_that_was_replaced_is_made_anew_though_its_size_is_the_same(world, tmp_path):
    folder, profile = world
    source = shutil.copytree(folder, tmp_path / "source")
    before = build((source, profile), tmp_path / "out")
    film = sorted((source / "videos" / "sft").iterdir())[0]
    bytes_ = bytearray(film.read_bytes())
    bytes_[-1] ^= 1
    film.write_bytes(bytes_)
    after = [shard for shard in build((source, profile), tmp_path / "again") if shard.name not in {one.name for one in before}]
    assert len(after) == 1 and fingerprint(tmp_path / "nowhere") == ""


def test_shares_of_a_few_videos(told, tmp_path):
    """By the SHA-256 of their names film0 to film3 lie 0.076, 0.487, 0.068 and 0.153 of the way."""
    assert cli.main([*told[2], "--shares", "0.07,0.05,0.1"]) == 0
    found = {s: {r["video"] for r in read_jsonl(tmp_path / "out" / "scenes" / f"{s}.jsonl")} for s in ("sft", "rl", "dev", "test")}
    assert found == {"sft": {"film1.mp4"}, "rl": {"film2.mp4"}, "dev": {"film0.mp4"}, "test": {"film3.mp4"}}
    assert len(read_json(tmp_path / "out" / "dev.json")) == 1 and "film3" in read_json(tmp_path / "out" / "test.json")[0]["question_id"]


def test_two_processes_may_make_the_same_shard(world, whole, tmp_path, monkeypatch):
    make = pipeline.os.replace

    def late(half, folder):  # another one has just put it there
        if Path(folder).parent.name == "shards":
            shutil.copytree(half, folder)
        make(half, folder)

    monkeypatch.setattr(pipeline.os, "replace", late)
    build(world, tmp_path / "out")
    assert content(tmp_path / "out") == content(whole[0])


def test_a_full_disk_is_not_held_against_a_film(tmp_path, monkeypatch):
    """What cannot be written ends the build in one sentence, and nothing is kept of the films that it met; what cannot be read is the film's."""
    film(tmp_path / "films" / "a.mp4", 4)
    (clip,) = own_videos(tmp_path / "films", "web")
    for error, stops in ((OSError(errno.ENOSPC, "No space left on device"), True), (PermissionError(13, "denied", str(tmp_path / "out" / "frames")), True),
                         (PermissionError(13, "denied", str(tmp_path / "films" / "out" / "frames")), True),  # a dataset beside its films
                         (PermissionError(13, "denied", str(tmp_path / "films" / "a.mp4")), False)):  # fmt: skip

        def fails(*_, error=error):
            raise error

        monkeypatch.setattr(pipeline, "cached_frames", fails)
        if stops:
            with pytest.raises(OSError):
                pipeline.look(tmp_path / "films", tmp_path / "out", 1.0, 4, clip)
        else:
            assert "denied" in pipeline.look(tmp_path / "films", tmp_path / "out", 1.0, 4, clip)["error"]


def test_names_that_differ_in_their_endings_and_a_folder_with_something_else(tmp_path, capsys):
    for name in ("a.mp4", "a.mkv", "b.mp4"):
        (tmp_path / name).touch()
    assert [clip.id for clip in own_videos(tmp_path, "web")] == ["a.mkv", "a.mp4", "b"]
    command = ["data", "build", str(tmp_path), "--out", str(tmp_path), "--annotator", "template", "--profile", "tiny"]
    for more in ([], ["--corpus", "mmduet2-data"]):
        assert cli.main(command + more) == 2 and "holds something else" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 3


def test_a_name_that_is_no_utf_8_stands_in_the_ledger_and_stops_nothing(tmp_path):
    for name in (b"caf\xe9.mp4", "café.mp4".encode(), b"good.mp4"):
        (tmp_path / os.fsdecode(name)).touch()
    found = list(own_videos(tmp_path, "web"))
    assert {c.video for c in found if not isinstance(c, Bad)} == {"café.mp4", "good.mp4"}
    assert [c for c in found if isinstance(c, Bad)] == [Bad("caf?.mp4", "its name is not UTF-8: rename it")]
