"""Table 4's benchmarks by lmms-eval: the adapter, the results as one CSV, the table, and lmms-eval itself on miniature tasks."""

import json
import os
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mmduet2kit import cli, lmms
from mmduet2kit.corpus.films import write_video
from mmduet2kit.dialogue import DEFAULT_SYSTEM, Dialogue, Turn
from mmduet2kit.errors import UserError
from mmduet2kit.files import read_csv, read_jsonl, write_csv, write_json
from mmduet2kit.manifest import pins
from mmduet2kit.model import encoder_for, load, save

import tab4_offline
from played import full_logits, make_tiny
from tiny_models import tiny_folder, tiny_model  # noqa: F401

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".lmms-eval"


def film(path, seconds):
    """A video of 4 pictures a second, each lighter than the one before, 56 x 84 pixels."""
    write_video(path, (np.full((56, 84, 3), 5 * k, np.uint8) for k in range(4 * seconds)), 4)
    return str(path)


def test_frames_are_even_a_second_apart_and_within_their_tokens(tmp_path):
    short, long = film(tmp_path / "short.mp4", 3), film(tmp_path / "long.mp4", 9)
    assert lmms.sampled(short, 64, 256).shape == (3, 56, 84, 3)
    for video, most, shown in ((short, 64, [0, 4, 8]), (long, 4, [0, 9, 18, 27])):  # every 2.25 s
        assert lmms.sampled(video, most, 256).mean((1, 2, 3)) / 5 == pytest.approx(shown, abs=0.6)
    assert lmms.sampled(long, 4, 2).shape == (4, 28, 28, 3)


def test_pictures_and_folders_of_frames(tmp_path):
    shown = [Image.fromarray(np.full((56, 84, 3), 10 * k, np.uint8)) for k in range(9)]
    for k, picture in enumerate(shown):
        picture.save(tmp_path / f"{k:06d}.png")
    for visuals in (shown, [str(tmp_path)]):
        found = lmms.pictures(visuals, 3, 256)
        assert found.shape == (3, 56, 84, 3) and found[:, 0, 0, 0].tolist() == [0, 40, 80]
    assert lmms.pictures([shown[0], Image.new("L", (30, 90))], 64, 256).shape == (2, 56, 84, 3)


def asked(visuals, text="<image>\nWhat is it?", **settings):
    return SimpleNamespace(args=(text, {"max_new_tokens": 4, "temperature": 0} | settings, lambda doc: doc["shows"], visuals, "task", "test"))


@pytest.fixture
def adapter(tiny_folder, tmp_path):  # noqa: F811
    """The adapter, and three questions: about two videos, and about nothing."""
    model = lmms.KitModel(str(tiny_folder), frames=3, batch_size=2, name="rl", seed=1, device="cpu")
    docs = [{"shows": [film(tmp_path / "a.mp4", 5)]}, {"shows": [film(tmp_path / "b.mp4", 2)]}, {"shows": []}]
    model.task_dict = {"task": {"test": docs}}
    return model, docs


def test_the_answer_is_the_models_own_under_qwens_system_prompt(adapter, tiny_folder):  # noqa: F811
    model, docs = adapter
    said = list(model.generate_until([asked(0), asked(1)]))  # side by side, with three frames and two
    reference, processor = load(tiny_folder)
    for doc, answer in zip(docs, said):
        frames = lmms.sampled(doc["shows"][0], 3, 256)
        encoder = encoder_for(processor, frames)
        dialogue = Dialogue("d", "v", 1.0, (Turn(tuple(range(len(frames))), "What is it?"),), (), "", "", DEFAULT_SYSTEM)
        ids = encoder.encode(dialogue).ids + encoder.header
        assert processor.tokenizer.decode(ids).startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>")
        start = len(ids)
        while len(ids) < start + 4 and ids[-1] != encoder.im_end or len(ids) == start:
            logits = full_logits(reference.eval(), processor, ids, frames, encoder.image_pad)[-1]
            logits[encoder.never_sampled] = -torch.inf
            ids.append(int(logits.argmax()))
        assert answer == encoder.decode(ids[start:]).strip()


def test_answers_come_one_by_one_and_stop_where_asked(adapter):
    model, docs = adapter
    whole = next(model.generate_until([asked(0)]))
    (cut,) = model.generate_until([asked(0, until=[whole[2:4], "\n\n"])])
    assert len(whole) > 4 and cut == whole.split(whole[2:4])[0].strip()
    model.batch = 1
    answers = model.generate_until([asked(0), asked(2)])
    assert next(answers) == whole  # kept, whatever comes after
    with pytest.raises(UserError, match="Question 2 of task shows nothing"):
        next(answers)


def results_file(place, date, results, groups=None, args="pretrained=runs/x/models/rl-seed1,name=rl,seed=1,weights=abc,frames=64", left_out=0):
    """A results file as lmms-eval 0.7.3 writes it; three questions a task, of which `left_out` were not asked."""
    tasks = [task for task, values in results.items() if len(values) > 1]
    write_json(place / f"{date}_results.json", {
        "results": results, "group_subtasks": {task: [] for task in tasks} | (groups or {}), "configs": {}, "versions": {},
        "n-samples": {task: {"original": 3, "effective": 3 - left_out} for task in tasks},
        "config": {"model": "mmduet2", "model_args": args, "limit": None}, "lmms_eval_version": "0.7.3",
    })  # fmt: skip


SCORED = {
    "videomme": {"alias": "videomme", "videomme_perception_score,none": 200 / 3, "videomme_perception_score_stderr,none": "N/A"},
    "longvideobench_val_v": {"alias": "longvideobench_val_v", "lvb_acc,none": 0.75, "submission,none": []},
    "mvbench": {" ": " ", "alias": "mvbench"},
    "mvbench_action_antonym": {"alias": " - mvbench_action_antonym", "mvbench_accuracy,none": 100.0},
    "mvbench_moving_count": {"alias": " - mvbench_moving_count", "mvbench_accuracy,none": 50.0},
}
GROUPS = {"mvbench": ["mvbench_action_antonym", "mvbench_moving_count"]}


def test_results_become_percent_a_column_of_the_paper(tmp_path):
    results_file(tmp_path / "rl", "20261122_154411", SCORED, GROUPS)
    assert {row["task"]: (row["accuracy"], row["n"], row["of"], row["status"]) for row in lmms.collect(tmp_path)} == {
        "Video-MME without subtitles": (66.6667, 3, 3, "ok"), "LongVideoBench": (75.0, 3, 3, "ok"), "MVBench": (75.0, 6, 6, "ok"),
    }  # fmt: skip


def test_the_newest_whole_run_counts(tmp_path):
    def scored(value):
        return {"videomme": {"alias": "videomme", "videomme_perception_score,none": value}}

    results_file(tmp_path / "b", "20261122_100000", scored(10.0))
    results_file(tmp_path / "a", "20261123_100000", scored(20.0))
    results_file(tmp_path / "a", "20261124_100000", scored(90.0), left_out=2)  # --limit
    results_file(tmp_path / "a", "20261125_100000", scored(30.0), args="pretrained=m,name=o--m,seed=1,weights=x", left_out=1)
    results_file(tmp_path / "a", "20261126_100000", {key: SCORED[key] for key in ("mvbench", "mvbench_moving_count")}, GROUPS)
    rows = {(row["model"], row["task"][:5]): (row["accuracy"], row["status"]) for row in lmms.collect(tmp_path)}
    assert rows == {("rl", "Video"): (20.0, "ok"), ("o--m", "Video"): (30.0, "PARTIAL"), ("rl", "MVBen"): (50.0, "PARTIAL")}
    write_json(tmp_path / "20261127_results.json", {"results": {"videomme": {}}, "config": {"model_args": "pretrained=x"}})
    with pytest.raises(UserError, match="20261127_results.json is no results file of"):
        lmms.collect(tmp_path)


def test_table_4_shows_what_was_run_beside_the_paper(tmp_path):
    column = "Video-MME without subtitles"
    write_csv(tmp_path / "table4.csv", [{"model": "rl", "seed": 1, "task": "caption", "accuracy": 93.1, "n": 8, "status": "ok"}])
    rows = [("rl", column, 61.24, "ok"), ("rl", "MVBench", 99, "PARTIAL"), ("wangyueqian--MMDuet2", "LongVideoBench", 52.7, "ok")]
    write_csv(tmp_path / "offline_benchmarks.csv", [dict(zip(("model", "task", "accuracy", "status"), row), seed=1) for row in rows])
    table = tab4_offline.draw.table(tmp_path)
    cells = {(row[0], row[1]): dict(zip(table.header[2:], row[2:])) for row in table.rows}
    assert (cells["MMDuet2 rl", "paper"][column], cells["MMDuet2 rl", "kit"][column], cells["MMDuet2 rl", "kit"]["caption"]) == ("58.1", "61.2", "93.1")
    assert cells["MMDuet2 rl", "kit"]["MVBench"] == cells["MMDuet2 sft", "kit"][column] == "NOT RUN"
    assert cells["MMDuet2 rl", "paper"]["caption"] == "-" and cells["wangyueqian--MMDuet2", "kit"]["LongVideoBench"] == "52.7"


@pytest.mark.skipif(bool(find_spec("lmms_eval")), reason="lmms-eval is here")
def test_without_lmms_eval_one_sentence_says_what_to_do(capsys):
    assert cli.main(["lmms", "--profile", "tiny"]) == 2
    assert "needs an environment of its own" in capsys.readouterr().err
    assert cli.main(["lmms", "--frames", "0"]) == 2 and "must be 1 or more" in capsys.readouterr().err


@pytest.fixture(scope="module")
def python():
    """An interpreter with lmms-eval beside this environment's packages, made once in .lmms-eval/."""
    said = next(word for word in (ROOT / "README.md").read_text().split() if word.startswith("lmms_eval=="))
    extra = [f"{name}=={version}" for name, version in pins()["lmms"].items()]
    made, wanted = HOME / "bin" / "python", " ".join([said, *extra, sys.prefix])
    if not (HOME / "made").is_file() or (HOME / "made").read_text() != wanted:
        commands = [sys.executable, "-m", "venv", "--clear", HOME], [made, "-m", "pip", "install", "-qq", *extra], [made, "-m", "pip", "install", "-qq", "--no-deps", said]
        for number, command in enumerate(commands):
            if subprocess.run(list(map(str, command)), stderr=subprocess.DEVNULL).returncode:
                pytest.skip(f"NOT RUN: lmms-eval could not be installed ({' '.join(map(str, command[1:]))[:80]})")
            if number == 0:  # the kit's own packages are seen from here
                Path(sysconfig.get_path("purelib", vars={"base": str(HOME)})).joinpath("kit.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
        (HOME / "made").write_text(wanted)
    return made


def always_a(folder):
    """Teach a tiny model in seconds to answer A, whatever it is shown and asked."""
    model, processor = load(make_tiny(folder))
    encoder, optimizer = encoder_for(processor, np.zeros((1, 56, 84, 3))), torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(40):
        frames, question = 1 + step % 3, "Which one? A. this B. that C. these Answer with the letter."[step % 7 :]
        encoded = encoder.encode(Dialogue("d", "v", 1.0, (Turn(tuple(range(frames)), question, "A."),), (), "", "", DEFAULT_SYSTEM))
        ids, grid = torch.tensor([encoded.ids]), torch.tensor([[1, 4, 6]] * frames)
        loss = model(input_ids=ids, labels=torch.tensor([encoded.labels]), pixel_values=torch.randn(24 * frames, 1176),
                     image_grid_thw=grid, mm_token_type_ids=(ids == encoder.image_pad).int()).loss  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return save(model, processor, folder)


@pytest.mark.all_only
@pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: decord has Linux wheels only")
def test_lmms_eval_scores_the_kits_model_on_miniature_tasks(python, tmp_path):
    """Its own prompts, answer rules and sums over eleven questions about two videos; the model always says A. Then again, from its cache."""
    always_a(tmp_path / "runs/mine/models/rl-seed1")
    for place in ("videomme/data", "mvbench_video/ssv2_video_mp4", "mvbench_video/clevrer/video_validation", "datasets/longvideobench/videos"):
        film(tmp_path / "hub" / place / "short.mp4", 3), film(tmp_path / "hub" / place / "long.mp4", 9)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "mine.yaml").write_text("extends: tiny\nname: mine\n")
    command = [python, "-m", "mmduet2kit", "lmms", "--profile", "mine.yaml", "--tasks", "mini_videomme,mini_mvbench,mini_longvideobench_val_v",
               "--", "--include_path", "tests/lmms_tasks"]  # fmt: skip
    for hits in ("0 hits", "11 hits"):
        done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True,
                              env=os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"})  # fmt: skip
        assert done.returncode == 0 and hits in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    place = tmp_path / "runs/mine/results"
    found = lmms.collect(place / "lmms", {f"mini_{task}": what for task, what in lmms.BENCHMARKS.items()})
    assert {row["task"]: (row["accuracy"], row["n"], row["status"]) for row in found} == {
        "Video-MME without subtitles": (66.6667, 3, "ok"), "MVBench": (75.0, 4, "ok"), "LongVideoBench": (75.0, 4, "ok"),
    }  # fmt: skip
    assert {(row["model"], row["seed"]) for row in found} == {("rl", "1")} and read_csv(place / "offline_benchmarks.csv") == []
    (samples,) = {*place.rglob("*samples_mini_videomme.jsonl")} - {sorted(place.rglob("*samples_mini_videomme.jsonl"))[0]}
    assert [row["filtered_resps"] for row in read_jsonl(samples)] == ["A."] * 3 and "Select the best answer" in json.dumps(read_jsonl(samples))
