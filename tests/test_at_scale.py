"""What only the GPU profiles switch on, executed here at tiny size: masters, memory plans, budgets, importance weights, judging ahead."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from mmduet2kit.chat import ChatEncoder
from mmduet2kit.dialogue import NO_REPLY
from mmduet2kit.errors import UserError
from mmduet2kit.model import load, save
from mmduet2kit.profile import Launch, load_profile
from mmduet2kit.score import MemoJudge
from mmduet2kit.stream import Spoken
from mmduet2kit.train import common, grpo, rollout, sft

from played import FakeDataset, LengthJudge, dialogues, make_segments
from tiny_models import tiny_folder, tiny_model  # noqa: F401

PLAIN = Launch(zero=0, offload=False, adam="torch", checkpointing=True, graphs=False, grace_s=10)


def with_launch(profile, dtype="bfloat16", **change):
    model = profile.model.model_copy(update={"dtype": dtype})
    return profile.model_copy(update={"launch": PLAIN.model_copy(update=change), "model": model})


def fit(profile, **change):
    return profile.sft.model_copy(update=dict(steps=1, batch=4, micro_batch=2, lr=1e-6, warmup=0.0, save_steps=100) | change)


def trained(monkeypatch, module, go):
    """The trainer of a training, and what it stored."""
    held = []
    original = module.store
    monkeypatch.setattr(module, "store", lambda trainer, *a: held.append(trainer) or original(trainer, *a))
    out = go()
    return held[0], out


def test_a_step_of_1e_6_moves_the_masters_though_bfloat16_computes(tiny_folder, tmp_path, monkeypatch):  # noqa: F811
    profile = with_launch(load_profile("tiny"))
    before = dict(load(tiny_folder)[0].named_parameters())
    trainer, out = trained(monkeypatch, sft, lambda: sft.train(
        profile, fit(profile, freeze_vision=False), dialogues(), FakeDataset(), tiny_folder, tmp_path / "out", tmp_path / "log.csv", 3))  # fmt: skip
    assert trainer.args.bf16 and trainer.args.gradient_checkpointing and trainer.model.is_gradient_checkpointing
    after = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in after.values()} == {torch.float32}
    moved = [n for n, p in after.items() if not torch.equal(p, before[n])]
    assert len(moved) > 0.9 * len(after)
    lost = [n for n in moved if torch.equal(after[n].bfloat16(), before[n].bfloat16())]
    assert lost  # with bfloat16 masters these would have stood still
    with safe_open(out / "model.safetensors", "pt") as file:  # stored in the profile's dtype, the tied head once
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}
        assert sum("embed_tokens" in name or "lm_head" in name for name in file.keys()) == 1


def test_frozen_vision_stays_also_with_masters(tiny_folder, tmp_path, monkeypatch):  # noqa: F811
    profile = with_launch(load_profile("tiny"))
    trainer, _ = trained(monkeypatch, sft, lambda: sft.train(
        profile, fit(profile, freeze_vision=True), dialogues(), FakeDataset(), tiny_folder, tmp_path / "out", tmp_path / "log.csv", 3))  # fmt: skip
    frozen = {n for n, p in trainer.model.named_parameters() if not p.requires_grad}
    assert frozen and all(".visual." in n and ".merger." not in n for n in frozen)


def test_samples_that_are_too_long_are_left_out_and_counted(tiny_folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    profile, some = load_profile("tiny"), dialogues()
    encoder = common.Collator(some, FakeDataset(), load(tiny_folder)[1]).encoder
    lengths = [len(encoder.encode(d).ids) for d in some]
    most = sorted(lengths)[len(lengths) // 2]
    fits = sum(length <= most for length in lengths)
    trainer, _ = trained(monkeypatch, sft, lambda: sft.train(
        profile, fit(profile, max_tokens=most), some, FakeDataset(), tiny_folder, tmp_path / "out", tmp_path / "log.csv", 3))  # fmt: skip
    assert f"training on {fits} of {len(some)} samples" in capsys.readouterr().out
    used = trainer.data_collator.dialogues
    assert len(used) == fits and max(len(encoder.encode(d).ids) for d in used) == most


def test_saving_in_another_dtype_leaves_the_model_alone(tiny_model, tmp_path):  # noqa: F811
    model, processor = tiny_model
    save(model, processor, tmp_path / "half", "bfloat16")
    assert model.dtype == torch.float32
    again = dict(load(tmp_path / "half")[0].named_parameters())
    assert all(torch.equal(p.bfloat16().float(), again[n]) for n, p in model.named_parameters())


@pytest.fixture(scope="module")
def material(tiny_folder):  # noqa: F811
    return ChatEncoder(load(tiny_folder)[1].tokenizer, 4), make_segments(4)


@settings(max_examples=60, deadline=None)
@given(which=st.integers(0, 3), prompt=st.integers(60, 900), response=st.integers(60, 900))
def test_segments_are_cut_at_whole_turns_and_keep_their_clock(material, which, prompt, response):
    encoder, segments = material
    segment = segments[which % len(segments)]
    rl = load_profile("tiny").rl.model_copy(update={"max_prompt": prompt, "max_response": response})
    cut = rollout.fitted(encoder, segment, rl)
    d, c = segment.dialogue, cut.dialogue
    before, ids = d.turns[: segment.first], rollout.prompt_ids(encoder, cut)
    assert ids[: len(encoder.system(d.system))] == encoder.system(d.system)
    # what is said in the history stays, in order; frames are the latest ones
    assert [t.text for t in c.turns[: cut.first] if t.text] == [t.text for t in before if t.text]
    assert cut.history_replies() == segment.history_replies()
    frames = [i for t in before for i in t.frames]
    left = [i for t in c.turns[: cut.first] for i in t.frames]
    assert left == frames[len(frames) - len(left) :] and c.skipped == len(frames) - len(left)
    assert len(ids) <= prompt or not left
    assert cut.rollout_times() == segment.rollout_times()[: len(cut.rollout_times())] and cut.rollout_times()
    # however much is said, the rollout fits (one turn is always kept)
    said = len(encoder.header) + rl.max_new_tokens + len(encoder.closing([]))
    worst = sum(len(encoder.user(t)) + said * bool(t.frames) for t in c.turns[cut.first : cut.last])
    assert worst <= response or cut.last - cut.first == 1
    if cut.last - cut.first == segment.last - segment.first:
        assert cut.gold == segment.gold
    else:
        now, step = cut.rollout_times()[-1], len(c.turns[cut.last - 1].frames) * c.interval
        assert [g.text for g in cut.gold] == [g.text for g in segment.gold if g.start < now]
        assert all(g.start < now and g.end <= now + step for g in cut.gold)


def test_without_budgets_nothing_is_cut(material):
    encoder, segments = material
    for segment in segments:
        cut = rollout.fitted(encoder, segment, load_profile("tiny").rl)
        assert cut.rollout_times() == segment.rollout_times() and cut.history_replies() == segment.history_replies()
        assert rollout.prompt_ids(encoder, cut) == rollout.prompt_ids(encoder, segment) and cut.gold == segment.gold


class SlowJudge(LengthJudge):
    """Each answer takes a while, several are given side by side."""

    parallel = 4

    def __init__(self):
        self.asked, self.threads = [], set()

    def correctness(self, question, gold, prediction, max_score):
        self.threads.add(threading.get_ident())
        self.asked.append(prediction)
        time.sleep(0.02)
        return super().correctness(question, gold, prediction, max_score)


def test_a_slow_judge_is_asked_while_the_model_still_speaks(material):
    _, segments = material
    segment, rl = segments[0], load_profile("tiny").rl
    times = segment.rollout_times()
    inside = [k for k, t in enumerate(times) if any(g.start < t < g.end for g in segment.gold)]
    texts = [f"Reply number {k}." if k in inside else NO_REPLY for k in range(len(times))]
    slow = SlowJudge()
    judge = MemoJudge(slow)
    early = rollout.EarlyJudge([segment], judge, rl)
    for k in range(len(times)):
        early.heard(0, [Spoken(text=text) for text in texts[: k + 1]])
    early.wait()
    asked = list(slow.asked)
    assert asked and threading.get_ident() not in slow.threads and NO_REPLY not in asked
    done = rollout.Rollout([], turns=list(zip(times, texts)))
    rollout.judge_rollouts([done], [segment], judge, rl)
    assert slow.asked == asked  # nothing is asked again
    assert done.reward == rollout.reward_of(done.turns, segment, MemoJudge(LengthJudge()), rl)


def test_a_judge_that_fails_is_not_asked_ahead_again_and_stops_a_step_that_lost_a_fifth(material):
    segment, rl = material[1][0], load_profile("tiny").rl
    times, dead = segment.rollout_times(), SlowJudge()
    dead.correctness = lambda *given: None
    early = rollout.EarlyJudge([segment], MemoJudge(dead), rl)
    said = [Spoken(text=f"Reply number {k}.") for k in range(len(times))]
    early.heard(0, said)
    early.jobs[0].result()
    early.heard(0, said)
    early.wait()
    assert len(early.jobs) == 1
    done = [rollout.Rollout([], turns=list(zip(times, (one.text for one in said)))) for _ in range(2)]
    rollout.judge_rollouts(done, [segment] * 2, MemoJudge(LengthJudge()), rl)
    assert rollout.statistics(done, 2, rl.weights)["judge_dropped"] == 0.0
    rollout.judge_rollouts(done, [segment] * 2, MemoJudge(dead), rl)
    lost = rollout.dropped([one.reward for one in done])
    assert 0.2 < lost < 1  # whether a reply says anything new was still answered
    with pytest.raises(UserError, match=f"no answer to {100 * lost:.0f} percent of a step's questions .* last checkpoint"):
        rollout.statistics(done, 2, rl.weights)
    few = dict(done[0].reward.counts, dropped_scores=1, judged=5)
    assert rollout.statistics([replace(one, reward=replace(one.reward, counts=few)) for one in done], 2, rl.weights)["judge_dropped"] == 0.2


def test_a_judge_that_takes_one_question_at_a_time_is_not_asked_ahead(material):
    early = rollout.EarlyJudge(material[1], MemoJudge(LengthJudge()), load_profile("tiny").rl)
    early.heard(0, [Spoken(text="Hm.")])
    assert early.pool is None and not early.jobs


def test_importance_weights_are_truncated_for_vllm_and_absent_for_the_stream(tiny_folder, tmp_path, monkeypatch):  # noqa: F811
    """With the same rollouts, log-probs that were reported too low by log 3 weigh each token with the cap of 2, and so the loss."""
    profile = load_profile("tiny")
    change = dict(steps=1, prompts=2, group=4, micro_batch=8, max_new_tokens=8, save_steps=100, freeze_vision=False, lr=1e-9)
    monkeypatch.setattr(grpo, "judge_of", lambda profile: LengthJudge())
    losses, original = {}, grpo.ProactiveGRPO._generate_and_score_completions

    def shifted(self, inputs):
        out = original(self, inputs)
        out["sampling_per_token_logps"] = out["sampling_per_token_logps"] - float(np.log(3.0)) * (name == "shifted")
        self.rl = self.rl.model_copy(update={"engine": "stream" if name == "stream" else "vllm"})  # spoken by the stream in any case
        return out

    monkeypatch.setattr(grpo.ProactiveGRPO, "_generate_and_score_completions", shifted)
    for name in ("stream", "vllm", "shifted"):
        def keep(trainer, *a, name=name):
            losses[name] = trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["grad_norm"]
            return tmp_path

        monkeypatch.setattr(grpo, "store", keep)
        grpo.train(profile, profile.rl.model_copy(update=change), make_segments(), FakeDataset(), tiny_folder, tmp_path / name,
                   tmp_path / f"{name}.csv", 3)  # fmt: skip
    assert losses["vllm"] == pytest.approx(losses["stream"], rel=1e-4)  # the engines agree: weights of 1
    assert losses["shifted"][1] == pytest.approx(2 * losses["stream"][1], rel=1e-3)


def test_a_dialogue_that_lost_frames_keeps_time(material):
    _, (segment, *_) = material
    d = segment.dialogue
    later = replace(d, turns=d.turns[3:], skipped=sum(len(t.frames) for t in d.turns[:3]))
    assert later.times() == d.times()[3:]
