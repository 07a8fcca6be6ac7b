"""Several ranks, and DeepSpeed, through the kit's own trainers: two CPU ranks; ZeRO-2 and ZeRO-3 on one."""

import json
import os
import subprocess
import sys

import pytest

from mmduet2kit.files import read_csv
from mmduet2kit.launch import free_port
from mmduet2kit.model import load

from tiny_models import tiny_folder  # noqa: F401

JOB = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from played import FakeDataset, LengthJudge, dialogues, make_segments
from mmduet2kit.profile import Launch, load_profile
from mmduet2kit.train import grpo, sft
what, stage, start, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
module = sft if what == "sft" else grpo
trainer, seen = module.DialogueSFT if what == "sft" else module.ProactiveGRPO, []
original = trainer.compute_loss
def spy(self, *a, **k):
    seen.append((str(self.accelerator.distributed_type), stage and self.deepspeed.zero_optimization_stage()))
    return original(self, *a, **k)
trainer.compute_loss = spy
profile, log = load_profile("tiny"), out.with_suffix(".csv")
if stage:
    launch = Launch(zero=stage, offload=False, adam="torch", checkpointing=True, graphs=False, grace_s=10)
    profile = profile.model_copy(update=dict(launch=launch))
if what == "sft":
    fit = profile.sft.model_copy(update=dict(steps=3, batch=4, micro_batch=4, lr=3e-3, save_steps=100, freeze_vision=False))
    sft.train(profile, fit, dialogues(), FakeDataset(), start, out, log, 3)
else:
    grpo.judge_of = lambda profile: LengthJudge()
    rl = profile.rl.model_copy(update=dict(steps=3, prompts=2, group=4, micro_batch=4, max_new_tokens=8, save_steps=100,
                                           temperature=1.2, freeze_vision=False, lr=1e-4))
    grpo.train(profile, rl, make_segments(), FakeDataset(), start, out, log, 3)
if stage:
    assert set(seen) == {{("DistributedType.DEEPSPEED", stage)}}, set(seen)
print("trained", Path(out / "config.json").exists())
"""


def alone(what, stage, start, out):
    """Train in a process of its own; by ZeRO on one CPU rank where `stage` is not 0."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    if stage:
        env |= {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0"}
    job = JOB.format(tests=os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run([sys.executable, "-c", job, what, str(stage), str(start), str(out)], env=env, capture_output=True, text=True,
                          timeout=300)  # fmt: skip
    assert "trained True" in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]
    return out


@pytest.mark.distributed
@pytest.mark.parametrize("what", ["sft", "grpo"])
def test_zero_on_one_cpu_rank_gives_the_losses_and_the_weights_of_plain_training(what, tmp_path, tiny_folder):  # noqa: F811
    """By the profile's section `launch`, with checkpointing; ZeRO-3's weights are gathered for rollouts and for the folder."""
    plain = alone(what, 0, tiny_folder, tmp_path / "plain")
    there = dict(load(plain)[0].named_parameters())
    for stage in (2, 3):
        out = alone(what, stage, tiny_folder, tmp_path / f"zero{stage}")
        assert losses(out) == pytest.approx(losses(plain), abs=1e-4)
        here = dict(load(out)[0].named_parameters())
        assert here.keys() == there.keys()
        assert max(float((here[name] - there[name]).abs().max()) for name in there) < 2e-3


RAW = """
import json, os, sys
sys.path.insert(0, {tests!r})
import deepspeed, torch
from played import FakeDataset, dialogues, inputs_of
from mmduet2kit.model import load
from mmduet2kit.profile import Launch, load_profile
from mmduet2kit.train import common
profile = load_profile("tiny")
launch = Launch(zero=int(sys.argv[2]), offload=False, adam="torch", checkpointing=False, graphs=False, grace_s=10)
config = common.zero_config(profile.model_copy(update=dict(launch=launch)))
config |= dict(bf16=dict(enabled=False), train_batch_size=2, train_micro_batch_size_per_gpu=1, gradient_accumulation_steps=1, gradient_clipping=1.0)
deepspeed.init_distributed("gloo")
model, processor = load(sys.argv[1])
engine, *_ = deepspeed.initialize(model=model, model_parameters=[p for p in model.parameters()], config=config,
                                  optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3))
batch, out = inputs_of(common.Collator(dialogues(), FakeDataset(), processor)([dict(row=int(os.environ["RANK"]))]), processor), []
for _ in range(3):
    loss = engine(**batch).loss
    engine.backward(loss)
    engine.step()
    both = loss.detach().clone()
    torch.distributed.all_reduce(both)
    out.append(float(both) / 2)
if os.environ["RANK"] == "0":
    print("LOSSES " + json.dumps([out, engine.zero_optimization_stage(), torch.distributed.get_world_size()]), flush=True)
os._exit(0)
"""


@pytest.mark.distributed
def test_two_ranks_of_deepspeed_itself_train_the_kits_model(tmp_path, tiny_folder):  # noqa: F811
    """Through transformers two CPU ranks never reach DeepSpeed (accelerate has no CPU back end for it); by its own API they do."""
    found = {}
    for stage in (2, 3):
        place = {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}  # fmt: skip
        job = RAW.format(tests=os.path.dirname(os.path.abspath(__file__)))
        many = [subprocess.Popen([sys.executable, "-c", job, str(tiny_folder), str(stage)], text=True, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, env=os.environ | place | {"RANK": str(r), "LOCAL_RANK": str(r)})
                for r in range(2)]  # fmt: skip
        said = "".join(one.communicate(timeout=300)[0] for one in many)
        assert "LOSSES " in said, said[-4000:]
        found[stage] = json.loads(said.split("LOSSES ")[1].splitlines()[0])
    assert [found[stage][1:] for stage in (2, 3)] == [[2, 2], [3, 2]]
    assert found[2][0] == pytest.approx(found[3][0], abs=1e-4) and found[2][0][-1] < found[2][0][0]


RANKS = """
import os, runpy, signal, sys, time
from datetime import timedelta
from pathlib import Path
sys.path.insert(0, {tests!r})
from played import FakeDataset, LengthJudge, dialogues, make_segments
from mmduet2kit import cli
from mmduet2kit.profile import load_profile
from mmduet2kit.train import grpo, sft
import torch
from transformers import Trainer, TrainerState
rng, last = Trainer._save_rng_state, TrainerState.save_to_json
def slow(self, folder):  # the first rank must not end a checkpoint before the others' files are there
    time.sleep(int(os.environ.get("RANK", 0)))
    rng(self, folder)
def check(self, path):
    if torch.distributed.is_initialized():
        there, group = os.listdir(os.path.dirname(path)), torch.distributed.distributed_c10d._get_default_group()
        assert {{"rng_state_0.pth", "rng_state_1.pth"}} <= set(there), there
        assert group._get_backend(torch.device("cpu")).options._timeout >= timedelta(hours=1)  # a slow judge, a download
    last(self, path)
Trainer._save_rng_state, TrainerState.save_to_json = slow, check
what, start, out, stop = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
profile, log = load_profile("tiny"), out.with_suffix(".csv")
if stop:  # TERM to one rank, in the middle of this step
    module = sft if what == "sft" else grpo
    trainer = module.DialogueSFT if what == "sft" else module.ProactiveGRPO
    original = trainer.compute_loss
    def spy(self, *a, **k):
        if self.state.global_step == stop - 1 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *a, **k)
    trainer.compute_loss = spy
def main():
    if what == "sft":
        fit = profile.sft.model_copy(update=dict(steps=6, batch=4, micro_batch=4, lr=3e-3, save_steps=2, freeze_vision=False))
        sft.train(profile, fit, dialogues(), FakeDataset(), start, out, log, 3)
    else:
        grpo.judge_of = lambda profile: LengthJudge()
        rl = profile.rl.model_copy(update=dict(steps=4, prompts=2, group=4, micro_batch=4, max_new_tokens=8, save_steps=2,
                                               temperature=1.2, freeze_vision=False, lr=1e-4))
        grpo.train(profile, rl, make_segments(), FakeDataset(), start, out, log, 3)
    return 0
cli.main = main  # through the kit's own entry point, which ends a rank
runpy.run_module("mmduet2kit", run_name="__main__")
"""


def train(what, world, start, out, port, stop=0):
    """Exit codes of the ranks."""
    job = RANKS.format(tests=os.path.dirname(os.path.abspath(__file__)))
    place = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    alone = {name: value for name, value in os.environ.items() if name not in place}
    many = [
        subprocess.Popen(
            [sys.executable, "-c", job, what, str(start), str(out), str(stop)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=alone | {"OMP_NUM_THREADS": "1"} | (place | {"RANK": str(r), "LOCAL_RANK": str(r)} if world > 1 else {}), text=True)
        for r in range(world)
    ]  # fmt: skip
    said = [one.communicate(timeout=300)[0] for one in many]
    assert all(one.returncode in (0, 143) for one in many), "\n".join(text[-3000:] for text in said)
    return [one.returncode for one in many]


def losses(out):
    return [float(row["loss"]) for row in read_csv(out.with_suffix(".csv"))]


@pytest.mark.distributed
@pytest.mark.parametrize("what, near", [("sft", 1e-5), ("grpo", 1e-6)])
def test_two_ranks_repeat_the_losses_of_one_also_after_a_term(what, near, tmp_path, tiny_folder):  # noqa: F811
    """The same samples a step; a TERM that reaches one rank stops both after the same step, and the next run goes on."""
    port = free_port()
    assert train(what, 1, tiny_folder, tmp_path / "one", port) == [0]
    assert train(what, 2, tiny_folder, tmp_path / "two", port, stop=3) == [143, 143]
    assert len(losses(tmp_path / "two")) == 3
    assert train(what, 2, tiny_folder, tmp_path / "two", free_port()) == [0, 0]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) > 3 and two == pytest.approx(one, abs=near)
    assert (tmp_path / "two" / "model.safetensors").exists()
