"""`doctor` and the cost model: counted parameters are the models', plans shrink, and what is missing is said with what to do."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from mmduet2kit import cli, doctor
from mmduet2kit.corpus import dialogues
from mmduet2kit.corpus.films import annotate
from mmduet2kit.corpus.world import plan
from mmduet2kit.dialogue import to_rl_row, to_sft_row
from mmduet2kit.files import read_json, write_json, write_jsonl
from mmduet2kit.model import freeze_vision, make_model
from mmduet2kit.profile import load_profile

import cost
import scaling
from artifact import artifact_table
from tiny_models import tiny_folder, tiny_model  # noqa: F401


class FewWords(dict):
    """A tokenizer of no words, for models whose weights nobody asks."""

    pad_token_id = 0

    def __len__(self):
        return 10

    def convert_tokens_to_ids(self, name):
        return 1


@pytest.mark.parametrize("name", ["tiny", "paper"])
def test_parameters_are_those_of_the_model(name):
    spec = load_profile(name).model
    spec = spec.model_copy(update={"attention": "sdpa"})
    with torch.device("meta"):
        model = make_model(spec, FewWords(), 0)
    found, visual = cost.parameters(spec), model.model.visual
    assert sum(found.values()) == sum(p.numel() for p in model.parameters())
    assert found["merger"] == sum(p.numel() for p in visual.merger.parameters())
    freeze_vision(model)
    assert found["vision"] == sum(p.numel() for p in model.parameters() if not p.requires_grad)
    if name == "paper":
        assert sum(found.values()) == 3_754_622_976  # Qwen2.5-VL-3B


def test_work_is_what_the_rules_of_thumb_say():
    profile = load_profile("paper")
    size, tokens, frames = cost.parameters(profile.model), 10_000, 68
    work = cost.flops(profile, tokens, frames, frozen=True)
    linear = 6 * size["language"] * tokens
    assert linear < work["useful"] < 1.6 * linear  # attention, head and vision on top
    assert 1.2 < work["done"] / work["useful"] < 1.34  # checkpointing: one forward more of what trains
    assert cost.flops(profile, tokens, frames, frozen=False)["useful"] > work["useful"]


def test_memory_plans_are_ordered_and_the_stated_cards_hold_them():
    profile = load_profile("single_gpu")
    for what, sample in cost.longest(profile, 1).items():
        one = cost.plans(profile, **sample)
        assert one["8-bit Adam"] < one["plain"] and one["ZeRO-2, offloaded"] < 76  # the profile says: 141 GB as it is, 80 GB with offloading
        assert cost.plans(profile, card=141, **sample)["plain"] < 136 and (one["8-bit Adam"] < 76) == (what != "RL at 1 s")
        eight = cost.plans(load_profile("paper"), **(sample | {"gpus": 8}))
        assert eight["ZeRO-3"] < eight["ZeRO-2"] < one["ZeRO-2"] and eight["ZeRO-2"] < 76
    parts = cost.memory_gb(profile, profile.launch, 1, 10_000, True)
    assert parts["optimizer"] == pytest.approx(8e-9 * (3_754_622_976 - cost.parameters(profile.model)["vision"]))


def test_memory_counts_a_tower_that_trains_and_vllm_while_it_is_awake():
    profile, tokens = load_profile("paper"), 25_650
    take = lambda **more: cost.memory_gb(profile, profile.launch, 8, tokens, **more)  # noqa: E731
    seen = 32 * 2 * 1280 * 4 * 128 * tokens / cost.frame_tokens(profile) / 1e9  # what 32 layers keep of all frames, in bfloat16
    assert take(frozen=False)["activations"] - take(frozen=True)["activations"] == pytest.approx(seen)
    awake = take(frozen=False, shared=0.25, card=80)
    assert awake["vllm"] == 20 and awake["sum"] == take(frozen=False)["sum"]  # activations are larger, and never beside it
    assert take(frozen=False, shared=0.9, card=80)["sum"] == pytest.approx(
        72 + cost.CONTEXT_GB + cost.SPARE * sum(awake[name] for name in ("weights", "gradients", "optimizer")))  # fmt: skip


def test_memory_counts_the_streams_cache_where_that_rolls_out():
    """Counted kernel by kernel (results/paper_size.json): the rollouts of 8 prompts x 4, with the optimizer's states there."""
    profile, found = load_profile("single_gpu"), read_json(Path("tests/benchmarks/results/paper_size.json"))["grpo_step"]
    take = lambda tokens, rows: cost.memory_gb(profile, profile.launch, 1, tokens, False, rows=rows)  # noqa: E731
    ours = take(found["tokens"], 40)
    assert ours["stream"] == pytest.approx(40 * 1.25 * found["tokens"] * 36_864 / 1e9)
    assert 0.7 < found["rolling_out"]["peak_gb"] / ours["sum"] < 1 and ours["sum"] > take(found["tokens"], 0)["sum"]
    streamed = profile.model_copy(update={"rl": profile.rl.model_copy(update={"engine": "stream"})})
    assert cost.longest(streamed, 2)["RL at 2 s"]["rows"] == 20 and cost.longest(profile, 2)["RL at 2 s"]["rows"] == 0


@pytest.mark.parametrize("name", ["paper", "single_gpu"])
def test_what_is_counted_is_what_the_notebooks_train(name):
    """Their cells that start commands are run with a recorder in place of `run_commands`."""
    profile, commands = load_profile(name), []
    known = {"PROFILE": name, "profile": profile, "seeds": profile.seeds, "arms": profile.ablation.arms, "full": "rl",
             "coarse": profile.video.train_interval, "fine": profile.video.test_interval, "Tables": MagicMock(), "show": MagicMock(),
             "run_commands": lambda profile, chains, **_: commands.extend(one.split() for chain in chains for one in chain)}  # fmt: skip
    for path in sorted(Path("notebooks").glob("0[3-8]_*.ipynb")):
        cells = ["".join(cell["source"]) for cell in read_json(path)["cells"] if cell["cell_type"] == "code"]
        for cell in (cell for cell in cells if "run_commands(" in cell):
            exec(cell, known)
    found = set()
    for command in (one for one in commands if one[0] in ("sft", "grpo")):
        told = dict(zip(command[1::2], command[2::2])) if "--threshold" not in command else {"--threshold": ""}
        arm = profile.sft_arm(float(told.get("--interval", profile.video.train_interval)), float(told.get("--no-reply-weight", 1.0)))
        stem = "threshold" if "--threshold" in told else {"sft": "sft", "grpo": "rl"}[command[0]]
        found.add(stem + arm + "".join(f"-{told[key]}" for key in ("--arm", "--form") if key in told))
    assert found == set(cost.trainings(profile))
    assert cost.trainings(profile)["sft-1s"] == ("sft", 1.0, profile.ablation.sft_steps)


def test_the_whole_runs_hours_and_disk_are_the_sums_that_doctor_and_the_readme_print(monkeypatch):
    profile, fast = load_profile("paper"), cost.Speed()
    whole, disk = cost.study_hours(profile, 8, fast), cost.disk_gb(profile)
    assert whole["threshold"] == cost.hours(profile, 1, fast)["sft"]["hours"] and whole["rl"] == cost.hours(profile, 8, fast)["rl"]["hours"]
    assert whole["rl-1s"] > 1.5 * whole["rl"] and whole["tests"] > 1 and sum(whole.values()) > 10 * whole["rl"]
    assert disk["2 checkpoints"] == pytest.approx(2 * 52.6, abs=0.1) and disk["11 models"] == pytest.approx(11 * 7.5, abs=0.2)
    text = scaling.page(profile, fast)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(cost, "speed", lambda: fast)
    (_, told), = doctor.time_needed(profile)
    assert f"{sum(whole.values()):.0f} h for all" in told and "threshold" in told and f"| {sum(whole.values()):.1f} |" in text
    assert f"{sum(disk.values()):.0f} GB of disk" in text and "not calibrated" in text


def test_hours_fall_with_cards_and_speed_is_measured_or_said_to_be_assumed(tmp_path):
    profile = load_profile("paper")
    one, eight = (cost.hours(profile, gpus, cost.Speed()) for gpus in (1, 8))
    assert one["sft"]["hours"] == pytest.approx(8 * eight["sft"]["hours"]) and one["rl"]["hours"] > eight["rl"]["hours"]
    assert "assumed" in cost.speed(tmp_path / "none.json").source
    (tmp_path / "gpu.json").write_text('{"hardware": "a card", "date": "today", "sft": {"mfu": 0.5}, '
                                       '"ceilings": {"bf16_tflop_s": 700.0, "copy_gb_s": 4000.0}}')  # fmt: skip
    fast = cost.speed(tmp_path / "gpu.json")
    assert (fast.mfu, fast.peak, fast.bandwidth) == (0.5, 700e12, 4000e9) and "a card, today" in fast.source


def said(capsys, *arguments):
    code = cli.main(["doctor", *arguments])
    return code, capsys.readouterr().out.splitlines()


def test_the_default_profile_needs_nothing(capsys):
    code, lines = said(capsys)
    status = [line.split()[0] for line in lines[: lines.index("")]]
    assert (code == 0) == ("stop" not in status) and "GPUs: none needed" in "\n".join(lines)
    assert any("minutes, as" in line for line in lines)


def made_by_hand(folder):
    """A dataset at both intervals, of one video without a video file."""
    profile, rng = load_profile("tiny"), np.random.default_rng(0)
    for split, domain in (("sft", "train_web"), ("rl", "train_web"), ("dev", "WEB"), ("test", "WEB")):
        record = annotate(plan(profile.world, split, domain, 0), split) | {"video": "v.mp4"}
        write_jsonl(folder / "scenes" / f"{split}.jsonl", [record])
        write_jsonl(folder / f"offline_{split}.jsonl", [to_sft_row(dialogues.offline_dialogue(record, rng, 1.0, (1, 3)))])
        for every in (1.0, 2.0) if split in ("sft", "rl") else ():
            d = dialogues.build_dialogue(profile, record, rng, every)
            rows = map(to_rl_row, dialogues.build_segments(profile, d, rng, 3)) if split == "rl" else [to_sft_row(d)]
            write_jsonl(folder / f"{split}_{every:g}s.jsonl", rows)
        if split in ("dev", "test"):
            asked = dialogues.benchmark_record(record, rng, ("any",))
            write_json(folder / f"{split}.json", [asked | {"domain": name} for name in cost.TESTS])
    (folder / "frames").mkdir()
    np.save(folder / "frames" / "v.npy", np.zeros((100, 56, 56, 3), np.uint8))
    write_json(folder / "frames.json", {"interval": 1.0, "videos": {"v.mp4": "v.npy"}})
    write_json(folder / "onsets" / "test.json", {})
    write_json(folder / "ledger.json", [])
    (folder / "made_for.txt").write_text("by hand")
    return folder


def rewritten(name, change):
    return lambda folder: write_json(folder / name, change(read_json(folder / name)))


@pytest.mark.parametrize("damage, status, says", [
    (lambda folder: None, "ok", "found in"),
    *((lambda folder, name=name: (folder / name).write_text("garbage"), "stop", name) for name in (
        "sft_2s.jsonl", "rl_2s.jsonl", "sft_1s.jsonl", "rl_1s.jsonl", "offline_sft.jsonl", "dev.json", "test.json", "frames.json", "scenes/sft.jsonl",
        "frames/v.npy")),
    *((lambda folder, name=name: (folder / name).unlink(), "stop", name) for name in ("made_for.txt", "sft_1s.jsonl", "scenes/rl.jsonl", "frames/v.npy")),
    (lambda folder: shutil.copy(folder / "sft_2s.jsonl", folder / "sft_1s.jsonl"), "stop", "every 1 s"),
    (lambda folder: (folder / "rl_2s.jsonl").write_text(""), "stop", "every 2 s"),
    (lambda folder: np.save(folder / "frames" / "v.npy", np.zeros((3, 56, 56, 3), np.uint8)), "stop", "frames.json is damaged"),
    (rewritten("frames.json", lambda found: found | {"interval": 2.0}), "stop", "every 1 s"),
    (rewritten("dev.json", lambda rows: rows[:1]), "ok", "found in"),
    (rewritten("dev.json", lambda rows: []), "warning", "without records in dev.json (add some, or build from more videos): Figure 5 and the threshold baseline will be NOT RUN"),
    (rewritten("test.json", lambda rows: rows[:2]), "warning", "without TV in test.json, VAD in test.json: their rows will be NOT RUN"),
    (lambda folder: (folder / "onsets" / "test.json").unlink(), "warning", "onsets/test.json"),
    (lambda folder: (folder / "offline_test.jsonl").unlink(), "warning", "Table 4 will be NOT RUN"),
])  # fmt: skip
def test_a_named_dataset_is_opened_as_a_run_opens_it(tmp_path, damage, status, says):
    damage(made_by_hand(tmp_path))
    found, text = doctor.dataset(load_profile("paper").model_copy(update={"dataset": str(tmp_path)}))
    assert found == status and says in text and text.startswith("data: ") and "\n" not in text


@pytest.mark.parametrize("change, code, says", [
    ({"model": {"path": "/nonexistent/x"}}, 3, "'/nonexistent/x' is neither a folder with a config.json"),
    ({"model": {"path": "no such name"}}, 3, "'no such name' is neither a folder"),
    ({"model": {"path": "tests"}}, 3, "'tests' is neither a folder"),
    ({"model": {"path": ""}}, 2, "'model.path' is wrong"), ({"model": {"hidden": None}}, 2, "'model.hidden' is wrong"),
    ({"judge": {"url": "http://[::1", "model": "m"}}, 3, "http://[::1 gave no level as 'm'"),
    ({"judge": {"url": "http://127.0.0.1:9/v1", "model": "m"}}, 3, "http://127.0.0.1:9/v1 gave no level as 'm'"),
])  # fmt: skip
def test_what_is_wrong_is_a_line_and_no_traceback(tmp_path, capsys, monkeypatch, change, code, says):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    (tmp_path / "mine.yaml").write_text(json.dumps({"extends": "paper", "name": "mine", **change}))
    assert cli.main(["doctor", "--profile", str(tmp_path / "mine.yaml")]) == code
    out, err = capsys.readouterr()
    assert len([line for line in (out + err).splitlines() if says in line]) == 1 and (code == 3 or err.count("\n") == 1)


def test_a_record_of_a_part_of_a_run_or_without_minutes_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profile = load_profile("smoke")
    for stages, told in (({"01_x": [{}]}, "no run of this profile"), ({"01_x": [{}], "10_report": [{"minutes": 3}, {"minutes": None}]}, "about 3 minutes")):
        write_json(profile.run_dir / "manifest.json", {"profile": "smoke", "stages": stages})
        assert told in next(doctor.time_needed(profile))[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_what_the_paper_needs_is_told_before_anything_is_spent(capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    code, lines = said(capsys, "--profile", "paper")
    stops = [line for line in lines if line.startswith("stop")]
    assert code == 3 and any("GPUs: none found" in line for line in stops)
    assert any("sft_2s.jsonl" in line and "datasets/mmduet2" in line for line in stops)
    assert any("OPENAI_BASE_URL" in line for line in stops) and "mend what says stop" in "\n".join(lines)


def test_cards_that_are_too_small_are_told_which_plan_fits(monkeypatch):
    def with_cards(count, size):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda k: SimpleNamespace(total_memory=size * 1e9))
        return list(doctor.cards(load_profile("single_gpu")))

    assert all(status != "stop" for status, text in with_cards(1, 141) if "GB a card" in text)
    told = [text for status, text in with_cards(1, 80) if status == "stop"]
    assert told and all("offloaded" in text and "plain" not in text.split("plans fit:")[1] for text in told)
    assert any("none" in text for status, text in with_cards(1, 16) if status == "stop")
    assert any("no multiple of 3" in text for status, text in with_cards(3, 141))


def test_the_table_of_artifact_evaluation_passes_but_for_what_is_known():
    table = {name: status for name, _, status in artifact_table()}
    assert set(table.values()) <= {"pass", "fail", "author action"} and len(table) == 22
    assert {name for name, status in table.items() if status == "author action"} == {"A1", "P5"}
    assert {name for name, status in table.items() if status == "fail"} <= {"N12"}
