"""Multi-turn GRPO: what TRL's training forward sees is what the rollout saw (design, rule 2)."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from mmduet2kit.errors import UserError
from mmduet2kit.profile import load_profile
from mmduet2kit.train import grpo
from mmduet2kit.train.common import Collator

from played import SHAPES, FakeDataset, LengthJudge, inputs_of, make_segments
from tiny_models import tiny_folder, tiny_model  # noqa: F401


@pytest.fixture
def run_grpo(tiny_folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(grpo, "judge_of", lambda profile: LengthJudge())

    def go(name, steps, save_steps=100, spy=None, **change):
        profile = load_profile("tiny")
        settings = dict(
            steps=steps, prompts=2, group=4, micro_batch=4, max_new_tokens=8, save_steps=save_steps, temperature=1.2,
            freeze_vision=False, lr=1e-4,
        )  # fmt: skip
        rl = profile.rl.model_copy(update=settings | change)
        original = grpo.ProactiveGRPO.__init__

        def init(self, *args, **kwargs):
            original(self, *args, **kwargs)
            if spy:
                spy(self)

        grpo.ProactiveGRPO.__init__ = init
        try:
            return grpo.train(
                profile, rl, make_segments(), FakeDataset(), tiny_folder, tmp_path / name, tmp_path / f"{name}.csv", 3
            )
        finally:
            grpo.ProactiveGRPO.__init__ = original

    return go


def rows(path: Path):
    from mmduet2kit.files import read_csv

    return read_csv(path)


@pytest.mark.parametrize("shapes", [SHAPES[:1], SHAPES])
def test_images_reach_the_forward_logprobs_agree_and_all_parameters_train(run_grpo, tmp_path, monkeypatch, shapes):
    monkeypatch.setattr(FakeDataset, "shapes", shapes)
    calls, start = [], {}

    def spy(trainer):
        start.update({n: p.detach().clone() for n, p in trainer.model.named_parameters()})
        forward = trainer.model.model.forward

        def watched(*args, **kwargs):
            ids = kwargs["input_ids"]
            calls.append(
                (int((ids == trainer.encoder.image_pad).sum()), len(kwargs["pixel_values"]), kwargs["image_grid_thw"])
            )
            return forward(*args, **kwargs)

        trainer.model.model.forward = watched

    out = run_grpo("a", 2, spy=spy)
    assert calls
    for image_tokens, patches, grid in calls:  # every micro-batch: pixels, grids and placeholders tell the same number
        assert image_tokens > 0
        assert patches == int(grid.prod(1).sum()) == 4 * image_tokens
    log = rows(tmp_path / "a.csv")
    assert len(log) == 2
    assert all(float(row["logprob_gap"]) < 1e-4 for row in log)
    from mmduet2kit.model import load

    after = dict(load(out)[0].named_parameters())
    moved = [n for n, p in start.items() if not torch.equal(p, after[n])]
    assert len(moved) > 0.9 * len(start)
    assert any(n.startswith("model.visual.blocks") for n in moved)


def test_resumed_run_repeats_the_losses(run_grpo, tmp_path):
    run_grpo("whole", 4, save_steps=2)
    whole = rows(tmp_path / "whole.csv")

    class Stop(Exception):
        pass

    def stop_after_three(trainer):
        generate = trainer._generate

        def limited(prompts):
            if trainer.state.global_step == 3:
                raise Stop
            return generate(prompts)

        trainer._generate = limited

    with pytest.raises(Stop):
        run_grpo("killed", 4, save_steps=2, spy=stop_after_three)
    run_grpo("killed", 4, save_steps=2)
    again = rows(tmp_path / "killed.csv")
    for name in ("loss", "reward", "reply_turns", "pauc"):
        assert [float(r[name]) for r in again] == pytest.approx([float(r[name]) for r in whole], abs=1e-6), name


@pytest.fixture
def interrupted(run_grpo, monkeypatch):
    """Three steps of a training whose judge dies before the third, and which then goes on from its checkpoint."""

    class Dies(LengthJudge):
        def correctness(self, *given):
            return super().correctness(*given) if held[0].state.global_step < 2 else None

    held, alive = [], grpo.judge_of

    def go(name, **change):
        monkeypatch.setattr(grpo, "judge_of", lambda profile: Dies())
        with pytest.raises(UserError, match="percent of a step's questions"):
            run_grpo(name, 3, save_steps=1, spy=held.append, **change)
        monkeypatch.setattr(grpo, "judge_of", alive)
        run_grpo(name, 3, save_steps=1, **change)

    return go


def test_a_judge_that_dies_stops_the_training_which_then_goes_on(interrupted, tmp_path):
    interrupted("dies")
    assert [(row["step"], row["judge_dropped"]) for row in rows(tmp_path / "dies.csv")] == [(step, "0.0") for step in "123"]


def test_a_penalty_on_divergence_can_be_switched_on(run_grpo, interrupted, tmp_path):
    """The reference's log-probs are cut to a micro-batch's width as all else is; it stays the SFT model where a training goes on."""
    losses = {}
    penalty = {"micro_batch": 1, "lr": 3e-3, "beta": 0.5}
    for name, go in (("plain", lambda: run_grpo("plain", 3, **penalty | {"beta": 0.0})), ("whole", lambda: run_grpo("whole", 3, **penalty)),
                     ("resumed", lambda: interrupted("resumed", **penalty))):  # fmt: skip
        go()
        losses[name] = [float(row["loss"]) for row in rows(tmp_path / f"{name}.csv")]
    assert losses["whole"][0] == pytest.approx(losses["plain"][0], abs=1e-3) and losses["whole"][2] > losses["plain"][2]
    assert losses["resumed"] == pytest.approx(losses["whole"], abs=1e-6)


def test_divergence_from_the_start_is_that_of_the_whole_distributions(tiny_model):  # noqa: F811
    model, processor = tiny_model
    collator = Collator([s.dialogue for s in make_segments(2)], FakeDataset(), processor)
    other = deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(1.1)
    divergence = grpo.kl_to(model, collator)
    assert divergence(model) == 0.0
    batch = inputs_of(collator([{"row": 0}, {"row": 1}]), processor)
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        p, q = (m(**batch).logits[:, :-1][labels != -100].log_softmax(-1) for m in (other, model))
    assert divergence(other) == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), abs=2e-6)
    assert divergence(other) > 1e-4
