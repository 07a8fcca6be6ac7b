"""The paths that only a GPU takes, on one that is not there (pretend_gpu.py): devices, CUDA graphs, waiting, bfloat16 training."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmduet2kit.chat import ChatEncoder
from mmduet2kit.engines import Session, StreamEngine
from mmduet2kit.evaluate import load_head
from mmduet2kit.files import read_csv
from mmduet2kit.model import load
from mmduet2kit.profile import load_profile
from mmduet2kit.stream import Greedy, Sampler, Stream
from mmduet2kit.train import grpo, sft

from played import FakeDataset, LengthJudge, dialogues, frames_for, make_segments, make_tiny, random_dialogue, teach_silence
from pretend_gpu import pretend_gpu
from tiny_models import tiny_folder  # noqa: F401


def test_it_is_as_strict_as_a_gpu():
    with pretend_gpu() as gpu:
        here, there = torch.ones(3, 4), torch.ones(3, 4, device="cuda")
        assert there.device == torch.device("cuda:0") and there.is_cuda and here.device.type == "cpu"
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        index, mask = torch.tensor([0, 1], device="cuda"), there > 0
        for mixing in (lambda: here[index], lambda: here[mask], lambda: there.__setitem__(index, here[:2]), lambda: here.__setitem__(torch.tensor([0]), there[:1]),
                       lambda: torch.stack([there[0, 0], here[0, 0]]), lambda: torch.where(there > 0, there, here)):  # fmt: skip
            with pytest.raises(RuntimeError, match="same device"):
                mixing()
        here[0] = there[0]  # a copy
        there[torch.tensor([2])] = there[:1] + 0  # indices of the host are carried over, numbers of the host too
        there[0] = torch.tensor(1.0)
        with pytest.raises(TypeError, match="Tensor.cpu"):
            np.asarray(there)
        before = gpu.counts["waits"]
        assert float(there.sum()) == 12 and (there * 2).cpu().tolist() == [[2.0] * 4] * 3 and len(there[there > 0]) == 12
        assert gpu.counts["waits"] == before + 3
        layer = torch.nn.Linear(4, 2).to("cuda")
        layer(there).sum().backward()
        assert layer.weight.grad.cpu().tolist() == [[3.0] * 4] * 2


def test_a_graph_replays_kernels_and_not_python():
    with pretend_gpu():
        x, ran, graph = torch.ones(2, device="cuda"), [], torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = x[:1] * 2 + x[1:]
            x.mul_(10)
            ran.append("python")
        for wanted in (300.0, 3000.0):  # recorded at 1, replayed where x is
            x.mul_(1)
            graph.replay()
            assert y.cpu().tolist() == [wanted / 10] and x.cpu().tolist() == [wanted / 3] * 2
        assert ran == ["python"]
        for forbidden in (lambda: x.sum().item(), lambda: x[x > 0], lambda: x + torch.ones(2).to("cuda")):
            with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(graph):
                forbidden()


@pytest.fixture(scope="module")
def taciturn(tmp_path_factory):
    return teach_silence(*load(make_tiny(tmp_path_factory.mktemp("silent"))))


@pytest.mark.parametrize("capacity", [512, 40])
def test_a_stream_says_the_same_with_cuda_graphs(taciturn, capacity):
    """In a cache that has room for all of it, and in one that grows, after which nothing may be replayed that was recorded before."""
    model, processor = taciturn
    encoder, rng = ChatEncoder(processor.tokenizer, 4), np.random.default_rng(5)
    told = [random_dialogue(rng, turns) for turns in ((6, 6) if capacity == 512 else (14, 10))]
    sessions = [Session(encoder.system("Answer."), frames_for(rng, one), one.turns) for one in told]
    choices = (lambda: Greedy(), lambda: Sampler([(0, 0), (0, 1)], 1.0, 20))

    def said(model, **options):
        engine = StreamEngine(model, processor.image_processor, **options)
        plays = [engine.play(encoder, sessions, choose(), 8) for choose in choices]
        made.append(engine)
        return [[(one.ids, one.logps, one.silence) for one in row] for play in plays for row in play], engine.counts

    made: list[StreamEngine] = []
    alone, _ = said(model)
    with pretend_gpu() as gpu:
        on_gpu = replaced(model)
        assert said(on_gpu)[0] == alone  # the same kernels, so the same numbers
        eager = gpu.counts["kernels"]
        found, counts = said(on_gpu, graphs=True, capacity=capacity)
    assert [[one[0] for one in row] for row in found] == [[one[0] for one in row] for row in alone]
    for mine, theirs in zip(found, alone):
        assert [one[1] for one in mine] == [pytest.approx(one[1], abs=1e-4) for one in theirs]
    ((cache, replays),) = made[-1].fixed.values()
    if capacity == 512:  # all but the very first forward, which makes the cache; of each shape one was recorded, for both plays
        assert counts["replayed"] == counts["forwards"] - 1 and gpu.counts["replays"] == counts["replayed"] - len(replays)
        assert gpu.counts["kernels"] - eager < eager / 2
    else:
        assert cache.room > 300 and gpu.counts["replays"] > counts["replayed"] / 2


def replaced(model):
    """A copy of a model on the GPU; the one of the host stays there."""
    return copy.deepcopy(model).to("cuda")


def test_graphs_go_with_the_autocast_that_they_were_recorded_in(taciturn):
    """Its copies of the weights are gone by the next play."""
    model, processor = taciturn
    encoder, rng = ChatEncoder(processor.tokenizer, 4), np.random.default_rng(5)
    told = random_dialogue(rng, 6)
    session, found = Session(encoder.system("Answer."), frames_for(rng, told), told.turns), []
    with pretend_gpu():
        on_gpu = replaced(model).requires_grad_(True)
        engine = StreamEngine(on_gpu, processor.image_processor, graphs=True, capacity=512)
        for played in (engine, engine, StreamEngine(on_gpu, processor.image_processor, graphs=True, capacity=512)):
            with torch.autocast("cuda", torch.bfloat16):
                found.append([one.logps for one in played.play(encoder, [session], Greedy(), 6)[0]])
            if len(found) == 1:
                with torch.no_grad():
                    on_gpu.lm_head.weight.mul_(1.2)
                    on_gpu.model.language_model.layers[0].mlp.down_proj.weight.mul_(1.5)
    assert found[1] == found[2] != found[0] and not engine.fixed


def test_a_frame_is_waited_for_as_often_however_deep_the_tower(tmp_path):
    waits = []
    for depth in (2, 9):
        model, processor = load(make_tiny(tmp_path / str(depth), vision_layers=depth))
        with pretend_gpu() as gpu:
            stream = Stream(replaced(model), ChatEncoder(processor.tokenizer, 32), processor.image_processor, 1)
            before = gpu.counts["waits"]
            stream.see(np.zeros((1, 112, 224, 3), np.uint8))
            waits.append(gpu.counts["waits"] - before)
    assert waits[0] == waits[1] <= 16


def settings(graphs=True):
    """The tiny profile, with what only GPUs' profiles have: bfloat16 over float32 masters, checkpointing, graphs."""
    profile = load_profile("tiny")
    return profile.model_copy(update={
        "model": profile.model.model_copy(update={"dtype": "bfloat16"}),
        "launch": profile.launch.model_copy(update={"checkpointing": True, "graphs": graphs}),
    })  # fmt: skip


def trained(folder, place, decide=None):
    profile = settings()
    fit = profile.sft.model_copy(update=dict(steps=3, batch=2, micro_batch=1, lr=3e-3, save_steps=2, freeze_vision=True))
    out = sft.train(profile, fit, dialogues(), FakeDataset(), folder, place / "out", place / "log.csv", 3, decide)
    return out, [float(row["loss"]) for row in read_csv(place / "log.csv")]


@pytest.mark.parametrize("decide", [None, sft.in_span])
def test_sft_in_bfloat16(tiny_folder, tmp_path, monkeypatch, decide):  # noqa: F811
    """The same losses as on the host; nothing goes back through the tower that is frozen."""
    seen, compute = set(), sft.DialogueSFT.compute_loss

    def watched(self, model, inputs, *args, **kwargs):
        block = self.model.model.visual.blocks[-1]
        hook = block.register_forward_hook(lambda *a: seen.add((a[2].device.type, a[2].requires_grad)))
        try:
            return compute(self, model, inputs, *args, **kwargs)
        finally:
            hook.remove()

    monkeypatch.setattr(sft.DialogueSFT, "compute_loss", watched)
    _, here = trained(tiny_folder, tmp_path / "cpu", decide)
    with pretend_gpu() as gpu:
        out, there = trained(tiny_folder, tmp_path / "gpu", decide)
    assert there == here and len(set(here)) == 3 and gpu.counts["kernels"] > 1000
    assert seen == {("cpu", False), ("cuda", False)}
    before, after = (dict(load(folder)[0].named_parameters()) for folder in (tiny_folder, out))
    assert all(torch.isfinite(after[name]).all() for name in before)
    if decide:  # a head that was saved on a GPU is read where there is none
        places, load_file = [], torch.load
        monkeypatch.setattr(torch, "load", lambda file, place=None, **options: places.append(place) or load_file(file, place, **options))
        load_head(out, 64)
        assert places == ["cpu"]


@pytest.mark.parametrize("graphs", [False, True])
def test_grpo_in_bfloat16(tiny_folder, tmp_path, monkeypatch, graphs):  # noqa: F811
    """The same steps as on the host, where fixed shapes are not recorded; graphs hold addresses of autocast's copies of weights."""
    monkeypatch.setattr(grpo, "judge_of", lambda profile: LengthJudge())
    profile, found = settings(graphs), {}
    rl = profile.rl.model_copy(update=dict(steps=2, prompts=1, group=2, micro_batch=1, max_new_tokens=6, save_steps=100, temperature=1.2, lr=3e-3))
    segments = [replace(one, last=min(one.last, one.first + 3)) for one in make_segments(1)]

    def go(name):
        grpo.train(profile, rl, segments, FakeDataset(), tiny_folder, tmp_path / name, tmp_path / f"{name}.csv", 3)
        timed = {"seconds", "rollout_s", "judge_s", "train_s"}
        return [{k: v for k, v in row.items() if k not in timed} for row in read_csv(tmp_path / f"{name}.csv")]

    found["cpu"] = go("cpu")
    with pretend_gpu() as gpu:
        found["gpu"] = go("gpu")
    assert all(float(row["logprob_gap"]) < 0.05 and float(row["reward_std"]) > 0 for row in found["gpu"])
    assert found["cpu"] == found["gpu"] and (gpu.counts["replays"] > 10) == graphs
    before, here, there = (dict(load(folder)[0].named_parameters()) for folder in (tiny_folder, tmp_path / "cpu", tmp_path / "gpu"))
    assert all(torch.equal(here[name], there[name]) for name in here)  # the same step was taken
    assert sum(not torch.equal(before[name], there[name]) for name in before) > len(before) / 4
