"""SFT over TRL with the kit's collator: it learns, resumes to the same losses, freezes what it should; the threshold head."""

import copy
import os
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from mmduet2kit.chat import IGNORE
from mmduet2kit.errors import UserError
from mmduet2kit.evaluate import load_head
from mmduet2kit.files import read_csv
from mmduet2kit.model import load
from mmduet2kit.profile import load_profile
from mmduet2kit.train import common, sft
from mmduet2kit.train.common import Collator

from played import SHAPES, FakeDataset, dialogues, inputs_of
from tiny_models import tiny_folder, tiny_model  # noqa: F401


@pytest.fixture
def run_sft(tiny_folder, tmp_path):  # noqa: F811
    def go(name, steps, decide=None, **change):
        profile = load_profile("tiny")
        settings = dict(steps=steps, batch=4, micro_batch=2, lr=3e-3, save_steps=100)
        fit = profile.sft.model_copy(update=settings | change)
        log = tmp_path / f"{name}.csv"
        out = sft.train(profile, fit, dialogues(), FakeDataset(), tiny_folder, tmp_path / name, log, 3, decide)
        return out, [float(row["loss"]) for row in read_csv(log)]

    return go


def test_it_learns_and_keeps_the_vision_tower_frozen_but_not_the_aligner(run_sft, tiny_folder):  # noqa: F811
    out, losses = run_sft("a", 12)
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    before, after = (dict(load(folder)[0].named_parameters()) for folder in (tiny_folder, out))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(".visual." in n and ".merger." not in n for n in moved)
    assert any(".visual.merger." in n for n in moved) and any(".language_model.layers.0" in n for n in moved)
    card = ModelCard.load(out / "README.md")  # the Hub's own reading of a model card
    assert card.data.library_name == "transformers" and card.data.license == "apache-2.0" and "12 steps of 4 samples" in card.text
    assert "{" not in card.text and "coloured shapes" in card.text and str(tiny_folder) not in card.text


def test_videos_of_other_shapes_share_batches(tiny_model, monkeypatch):  # noqa: F811
    """The loss of a batch is that of its samples alone, each with its own grid."""
    monkeypatch.setattr(FakeDataset, "shapes", SHAPES)
    model, processor = tiny_model
    seen = [replace(d, video="abc"[k]) for k, d in enumerate(dialogues()[:3])]
    collator = Collator(seen, FakeDataset(), processor)

    @torch.no_grad()
    def score(rows):
        batch = inputs_of(collator([{"row": row} for row in rows]), processor)
        labels = batch.pop("labels")[:, 1:]
        logps = model(**batch).logits[:, :-1].log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
        return [float(one[wanted != IGNORE].sum()) for one, wanted in zip(logps, labels)], batch["image_grid_thw"]

    together, grids = score([0, 1, 2])
    assert len({tuple(grid) for grid in grids.tolist()}) == 3
    assert together == pytest.approx([score([row])[0][0] for row in range(3)], abs=1e-3)


def test_a_resumed_run_repeats_the_losses(run_sft, monkeypatch):
    _, whole = run_sft("whole", 6, save_steps=2)
    original = sft.DialogueSFT.compute_loss

    def dies(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(sft.DialogueSFT, "compute_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        run_sft("killed", 6, save_steps=2)
    monkeypatch.setattr(sft.DialogueSFT, "compute_loss", original)
    _, again = run_sft("killed", 6, save_steps=2)
    assert again == pytest.approx(whole, abs=1e-5)


def test_a_training_killed_while_it_saves_goes_on_from_the_checkpoint_before(run_sft, tmp_path, monkeypatch):
    """The one before is deleted only when the new one is whole; and a finished training keeps none, nor is it done again."""
    _, whole = run_sft("whole", 6, save_steps=2)
    original, partial = sft.DialogueSFT._save_rng_state, tmp_path / "killed.partial"

    def dies(self, folder):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return original(self, folder)

    monkeypatch.setattr(sft.DialogueSFT, "_save_rng_state", dies)
    with pytest.raises(KeyboardInterrupt):
        run_sft("killed", 6, save_steps=2)
    monkeypatch.setattr(sft.DialogueSFT, "_save_rng_state", original)
    assert {path.name for path in partial.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    shutil.copytree(partial / "checkpoint-2", partial / "checkpoint-5")
    text = (partial / "checkpoint-5" / "trainer_state.json").read_text()
    (partial / "checkpoint-5" / "trainer_state.json").write_text(text[: len(text) // 2])
    (partial / "checkpoint-6").mkdir()
    picked, train = [], sft.DialogueSFT.train

    def spy(self, resume_from_checkpoint=None):
        picked.append((resume_from_checkpoint, {path.name for path in partial.glob("checkpoint-*")}))
        return train(self, resume_from_checkpoint)

    monkeypatch.setattr(sft.DialogueSFT, "train", spy)
    out, again = run_sft("killed", 6, save_steps=2)
    assert picked == [(str(partial / "checkpoint-2"), {"checkpoint-2"})] and again == pytest.approx(whole, abs=1e-5)
    assert not partial.exists()
    written = (out / "model.safetensors").stat().st_mtime_ns
    shutil.copytree(out, partial)  # what an earlier version left there
    assert run_sft("killed", 6, save_steps=2)[0] == out and (out / "model.safetensors").stat().st_mtime_ns == written
    assert len(picked) == 1 and not partial.exists()
    (out / "processor_config.json").unlink()  # killed while the finished model was written
    run_sft("killed", 6, save_steps=2)
    assert len(picked) == 2 and (out / "processor_config.json").exists()


@pytest.fixture
def handlers():
    """Signal handlers are put back."""
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield numbers
    for number, handler in zip(numbers, before):
        signal.signal(number, handler)


def test_each_signal_of_a_launcher_asks_for_a_checkpoint(handlers):
    for number in handlers:
        stop = common.StopOnTerm()
        os.kill(os.getpid(), number)
        assert stop.asked


def test_a_signal_that_comes_while_the_ranks_agree_is_not_lost(handlers, monkeypatch):
    """It is answered at the next step: ranks that wait for a slow one are mostly there when the signal comes."""
    stop, told = common.StopOnTerm(), []

    def agree(mine: list[bool]) -> list[bool]:
        told.append(mine)
        os.kill(os.getpid(), signal.SIGHUP)
        return mine + [False]

    monkeypatch.setattr(common, "gather_object", agree)
    for wanted in (None, True):
        control = SimpleNamespace(should_save=None, should_training_stop=None)
        stop.on_step_end(None, None, control)
        assert control.should_save is wanted and control.should_training_stop is wanted
    assert told == [[False], [True]]


@pytest.mark.parametrize("kind, many, cards, zero, world", [
    ("NO", 1, 1, None, 2), ("MULTI_GPU", 2, 1, {}, 2), ("MULTI_GPU", 2, 1, {"zero_optimization": {"stage": 2}}, 2), ("NO", 1, 8, None, 1),
    ("DEEPSPEED", 1, 1, None, 1), ("FSDP", 2, 1, None, 2),
])  # fmt: skip
def test_a_training_spread_otherwise_than_asked_is_one_sentence(kind, many, cards, zero, world, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    trainer = SimpleNamespace(accelerator=SimpleNamespace(distributed_type=SimpleNamespace(name=kind), num_processes=many),
                              args=SimpleNamespace(deepspeed=zero, n_gpu=cards))  # fmt: skip
    if zero == {}:
        with pytest.raises(AttributeError):  # it passed
            common.finish(trainer, None)
    else:
        with pytest.raises(UserError, match=f"would run as {kind} in {many} processes with {cards} GPUs each"):
            common.finish(trainer, None)


def test_threshold_baseline_learns_a_score_and_resumes_with_its_head(run_sft, monkeypatch):
    out, losses = run_sft("t", 12, decide=sft.in_span, save_steps=4)
    assert np.mean(losses[-3:]) < losses[0]
    head = load_head(out, 64)
    assert head.weight.abs().sum() > 0
    assert "threshold_head" not in str([n for n, _ in load(out)[0].named_parameters()])


def test_no_reply_weight_scales_only_silent_turns(tiny_model):  # noqa: F811
    chosen = dialogues()
    rows = [{"row": i} for i in range(4)]
    model, processor = tiny_model
    full, half = (sft.Collator(chosen, FakeDataset(), processor, w)(rows) for w in (1.0, 0.5))
    assert torch.equal(full["labels"], half["labels"])
    ratio = half["weights"][full["weights"] > 0].unique()
    assert ratio.tolist() == [0.5, 1.0]
    assert int((full["input_ids"] == model.config.image_token_id).sum()) * 4 == len(full["pixel_values"])


def test_only_labelled_positions_are_scored_and_exactly(tiny_model, monkeypatch):  # noqa: F811
    """On a CPU too (train/common): TRL's fused head gives the full logits' log-probs, of the positions that have a label."""
    from trl.trainer import utils as trl_utils

    model, processor = tiny_model
    batch = inputs_of(sft.Collator(dialogues(), FakeDataset(), processor)([{"row": i} for i in range(4)]), processor)
    with torch.no_grad():
        logps = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1].log_softmax(-1)
    wanted = batch["labels"][:, 1:]
    fused = copy.deepcopy(model)
    trl_utils.add_fused_lm_head(fused)
    scored, score = [], trl_utils._ChunkedLogProbFunction.apply
    monkeypatch.setattr(
        trl_utils._ChunkedLogProbFunction, "apply", lambda hidden, *rest: scored.append(len(hidden)) or score(hidden, *rest)
    )
    found = fused(**batch, fused_lm_head=True).log_probs
    there = logps.gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    assert torch.allclose(found, torch.where(wanted == IGNORE, torch.zeros(()), there), atol=1e-5)
    assert scored == [int((wanted != IGNORE).sum())] and scored[0] < wanted.numel() / 2
