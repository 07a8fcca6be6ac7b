"""Bad input: one sentence, exit code 2, nothing lost (each case was a finding of a hostile reader)."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import constraints
import pytest

from mmduet2kit import evaluate, model
from mmduet2kit.cli import main
from mmduet2kit.corpus.build import Dataset
from mmduet2kit.errors import UserError
from mmduet2kit.files import made_for, read_jsonl, write_atomic, write_jsonl
from mmduet2kit.manifest import read_manifest
from mmduet2kit.profile import load_profile
from mmduet2kit.report import STUDY, redraw
from mmduet2kit.runner import run_stages
from mmduet2kit.train.common import begin, schedule

from tiny_models import tiny_folder, tiny_model  # noqa: F401

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("lines, says", [
    ("video: {train_interval: 0}", "video.train_interval"), ("video: {train_interval: .nan}", "finite"),
    ("video: {visual_tokens: -1}", "visual_tokens"), ("dialogue: {nqna_share: 7}", "nqna_share"),
    ("dialogue: {offline_share: 1}", "offline_share"), ("dialogue: {questions: [5, 2]}", "first must not be larger"),
    ("world: {fps: 0}", "world.fps"), ("world: {side: 113}", "world.side"), ("world: {noise: -1}", "world.noise"),
    ("world: {counts: {base: {clip: -2}}}", "counts.base.clip"), ("world: {counts: {base: {nope: 2}}}", "'nope'"),
    ("world: {domains: {WEB: {onset: [2, 3]}}}", "domains.web.onset"), ("rl: {segment_turns: [0, 0]}", "segment_turns"),
    ("rl: {micro_batch: 5}", "no multiple of micro_batch"), ("sft: {batch: 0}", "sft.batch"), ("sft: {lr: -1}", "sft.lr"),
    ("model: {layers: 0}", "model.layers"), ("parallel: 0", "parallel"), ("stage_timeout_s: -1", "stage_timeout_s"),
    ("seeds: []", "seeds"), ("seeds: [-1]", "seeds.0"), ("purpose: a\npurpose: b", "a key stands twice"), ("3: 4", "names to values"),
])  # fmt: skip
def test_a_number_that_makes_no_sense_is_named(tmp_path, lines, says):
    path = tmp_path / "wrong.yaml"
    path.write_text(f"name: wrong\nextends: smoke\n{lines}\n")
    with pytest.raises(UserError) as error:
        load_profile(str(path))
    assert says.lower() in str(error.value).lower()


@pytest.mark.parametrize("name", ["/tmp/victim", "..", "a/b", "a b", "*", "''", "x" * 99])
def test_a_name_that_is_no_folder_of_its_own_is_refused(tmp_path, name):
    (tmp_path / "wrong.yaml").write_text(f"name: {name}\nextends: smoke\n")
    with pytest.raises(UserError, match="'name' is wrong|no name of its own|not valid YAML"):
        load_profile(str(tmp_path / "wrong.yaml"))


def test_a_profile_may_not_take_anothers_run_nor_extend_itself(tmp_path):
    texts = {"one": "name: tiny\nextends: smoke\n", "a": "name: a\nextends: b.yaml\n", "b": "name: b\nextends: a.yaml\n",
             "parent": "name: parent\nextends: smoke\n", "child": "name: parent\nextends: parent.yaml\n"}  # fmt: skip
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    for name, says in (("one", "no name of its own"), ("child", "no name of its own"), ("a", "extends itself")):
        with pytest.raises(UserError, match=says):
            load_profile(str(tmp_path / f"{name}.yaml"))
    with pytest.raises(UserError, match="There is no profile|no name of its own"):
        load_profile("../profiles/tiny")


def test_somebody_elses_folder_is_not_emptied(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="was not made by this command"):
        made_for(tmp_path / "data", "key")
    assert (tmp_path / "data" / "thesis.tex").read_text() == "years of work"
    made_for(tmp_path / "new", "key")
    (tmp_path / "new" / "made.txt").write_text("ours")
    assert made_for(tmp_path / "new", "key").joinpath("made.txt").exists()
    assert not made_for(tmp_path / "new", "other").joinpath("made.txt").exists()


def test_only_ordinary_files_are_written_over(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no ordinary file"):
        write_atomic(tmp_path / "pipe", "x")
    assert not (tmp_path / "pipe").is_file()


def test_json_lines_hold_any_text(tmp_path):
    rows = [{"text": "a\u2028b\x85c\x0bd"}, {"text": "lone \ud800"}]
    assert read_jsonl(write_jsonl(tmp_path / "rows.jsonl", rows)) == rows
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf{\"a\": 1}\n")
    assert read_jsonl(tmp_path / "bom.jsonl") == [{"a": 1}]
    (tmp_path / "deep.jsonl").write_text("[" * 200_000)
    with pytest.raises(UserError, match="line 1 is not valid JSON"):
        read_jsonl(tmp_path / "deep.jsonl")


def test_a_finished_model_stays_when_there_is_nothing_to_begin_from(tmp_path, tiny_folder):  # noqa: F811
    profile, out = load_profile("tiny"), tmp_path / "sft-seed1"

    class Data:
        key = "data"

    begun = begin(profile, profile.sft, Data, tiny_folder, out, 1)
    model.save(*begun[2:], out)
    assert begin(profile, profile.sft, Data, tiny_folder, out, 1) is None
    with pytest.raises(UserError, match="No model could be loaded"):
        begin(profile, profile.sft, Data, tmp_path / "gone", out, 1)
    assert (out / "model.safetensors").exists()


def test_nothing_to_train_on_is_said(tmp_path):
    with pytest.raises(UserError, match="nothing to train on"):
        schedule(0, 8, 10, 1)


@pytest.mark.parametrize("damage, says", [
    (lambda f: (f / "config.json").write_text("{}"), "not a Qwen2.5-VL's"),
    (lambda f: (f / "config.json").unlink(), "No model could be loaded"),
    (lambda f: (f / "config.json").write_text("[]"), "No model could be loaded"),
    (lambda f: (f / "model.safetensors").write_bytes(b"short"), "No model could be loaded"),
    (lambda f: (f / "tokenizer.json").unlink(), "No processor could be loaded"),
])  # fmt: skip
def test_a_damaged_model_folder(tmp_path, tiny_folder, damage, says):  # noqa: F811
    shutil.copytree(tiny_folder, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(UserError, match=says):
        model.load(tmp_path / "model")


def test_a_model_that_is_not_made_yet_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="There is no model in runs/x/models/rl-seed1 yet: make it first"):
        model.load("runs/x/models/rl-seed1")
    (tmp_path / "threshold_head.pt").write_bytes(b"garbage")
    with pytest.raises(UserError, match="no threshold model's head"):
        evaluate.load_head(tmp_path, 8)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./models/rl-seed1", "../rl-seed1", "a/b/c", "nowhere", Path("/nowhere/rl")])
def test_a_mistyped_folder_is_said_at_once_and_the_hub_is_not_asked(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model.hub, "file_exists", None)
    with pytest.raises(UserError, match=f"No model could be loaded from {re.escape(str(name))}: that folder does not exist."):
        model.load(name)


def test_a_hub_name_out_of_reach_is_one_sentence_without_retries(tmp_path):
    done = subprocess.run([sys.executable, "-m", "mmduet2kit", "watch", "pipe:0", "--question", "Q", "--model", "m/nowhere"], text=True,
                          capture_output=True, env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path)})  # fmt: skip
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "m/nowhere" in done.stderr and "check the name, and that the hub can be reached" in done.stderr


def test_a_hub_out_of_reach_is_not_tried_again_and_again(tmp_path, monkeypatch):
    def unreachable(*_, **at):
        raise ConnectionError("no route")

    monkeypatch.setattr(model.hub, "file_exists", unreachable)
    with pytest.raises(UserError, match=r"from m/nowhere \(no route\): no such folder is here"):
        model._loaded("model", "m/nowhere", lambda _: pytest.fail("transformers, which tries for half a minute, was asked"))


def test_a_hub_name_on_this_disk_does_not_need_the_hub(monkeypatch):
    def snapshot(name, local_files_only=False, **at):
        if not local_files_only:
            raise ConnectionError("no route")
        return f"/cache/{name}"

    monkeypatch.setattr(model.hub, "try_to_load_from_cache", lambda *_, **at: "/a/config.json")
    monkeypatch.setattr(model.hub, "file_exists", None)
    monkeypatch.setattr(model.hub, "snapshot_download", snapshot)
    assert model._loaded("model", "m/cached", str) == "/cache/m/cached"


@pytest.mark.parametrize("name, text, read", [
    ("test.json", "[{}]", lambda d: d.benchmark("test")), ("test.json", "null", lambda d: d.benchmark("test")),
    ("sft_2s.jsonl", "{}\n", lambda d: d.sft(2.0)[0]), ("rl_2s.jsonl", "3\n", lambda d: d.rl(2.0)[0]),
    ("offline_dev.jsonl", "[]\n", lambda d: d.offline("dev")[0]),
])  # fmt: skip
def test_damaged_data_files_are_named(tmp_path, name, text, read):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name} is damaged .* make the data anew"):
        read(Dataset(tmp_path))


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"stages": null}', '{"stages": {"01": [3]}}', '{"stages": {"01": 3}}'])
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="manifest.json is damaged"):
        read_manifest(tmp_path / "manifest.json")


@pytest.mark.parametrize("option", ["start", "only"])
def test_an_empty_notebook_number_is_no_number(option):
    with pytest.raises(UserError, match="There is no notebook ''"):
        run_stages(load_profile("smoke"), notebooks=ROOT / "notebooks", dry_run=True, **{option: ""})


@pytest.mark.parametrize("words, code", [
    (["score", "--annotations", "{}", "--predictions", "{}", "--judge", "exact"], 2),  # a folder
    (["evaluate", "--profile", "smoke", "--seed", "-1"], 2), (["sft", "--profile", "smoke", "--interval", "0"], 2),
    (["figures", "--data", "/etc"], 2), (["data", "--profile", "x" * 5000], 2),
])  # fmt: skip
def test_no_traceback(tmp_path, capsys, words, code):
    try:
        found = main([word.replace("{}", str(tmp_path)) for word in words])
    except SystemExit as stop:  # argparse
        found = stop.code
    assert found == code
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("damage", [
    lambda text: "", lambda text: "a,b\n1,2\n", lambda text: text[: len(text) // 2], lambda text: text.replace(",", "\0", 3),
    lambda text: text.split("\n")[0] + "\n", lambda text: text.replace("1", "nan"), lambda text: text.replace(".", "x"),
])  # fmt: skip
def test_damaged_results_are_drawn_as_not_run(tmp_path, damage):
    shutil.copytree(STUDY, tmp_path / "results")
    for path in (tmp_path / "results").glob("*.csv"):
        path.write_text(damage(path.read_text()))
    made = redraw(tmp_path / "results", tmp_path / "out")
    assert {"tab2_proactive.md", "fig5_dynamics.svg", "claims.json"} <= {path.name for path in made}
    assert json.loads((tmp_path / "out" / "claims.json").read_text())


@pytest.mark.parametrize("words, says", [
    (["run", "--bogus"], "does not take '--bogus'"), (["run", "run"], "does not take 'run'"), (["--profile"], "needs a value"),
    (["figures", "--force"], "does not take '--force'"), (["test", "x"], "no other argument than --all"),
])  # fmt: skip
def test_usage_errors_show_before_anything_is_installed(tmp_path, words, says):
    constraints.copied(tmp_path)
    done = subprocess.run(["bash", "run_all.sh", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr
    assert not (tmp_path / ".venv").exists()
