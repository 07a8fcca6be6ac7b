"""`doctor` and the cost model: counted parameters are the models', plans shrink, and what is missing is said with what to do."""

from types import SimpleNamespace

import pytest
import torch

from mmduet2kit import cli, doctor
from mmduet2kit.model import freeze_vision, make_model
from mmduet2kit.profile import load_profile

import cost
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
    for tokens, frozen in ((profile.sft.max_tokens, True), (profile.rl.max_prompt + profile.rl.max_response, False)):
        one = cost.plans(profile, 1, tokens, frozen)
        assert one["8-bit Adam"] < one["plain"] < 120  # the profile says: 141 GB as it is, 80 GB with one of these
        assert one["8-bit Adam"] < 76 and one["ZeRO-2, offloaded"] < 76
        eight = cost.plans(profile, 8, tokens, frozen)
        assert eight["ZeRO-3"] < eight["ZeRO-2"] < one["ZeRO-2"]
        assert cost.plans(load_profile("paper"), 8, tokens, frozen)["ZeRO-2"] < 76
    parts = cost.memory_gb(profile, profile.launch, 1, 10_000, True)
    assert parts["optimizer"] == pytest.approx(8e-9 * (3_754_622_976 - cost.parameters(profile.model)["vision"]))


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
    assert told and all("8-bit Adam" in text and "plain" not in text.split("plans fit:")[1] for text in told)
    assert any("none" in text for status, text in with_cards(1, 16) if status == "stop")
    assert any("no multiple of 3" in text for status, text in with_cards(3, 141))


def test_the_table_of_artifact_evaluation_passes_but_for_what_is_known():
    table = {name: status for name, _, status in artifact_table()}
    assert set(table.values()) <= {"pass", "fail", "author action"} and len(table) == 22
    assert {name for name, status in table.items() if status == "author action"} == {"A1", "P5"}
    assert {name for name, status in table.items() if status == "fail"} <= {"N12"}
