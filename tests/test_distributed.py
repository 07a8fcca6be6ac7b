"""Several ranks, and DeepSpeed, through the kit's own trainers: two CPU ranks; ZeRO-2 and ZeRO-3 on one."""

import os
import subprocess
import sys

import pytest

from mmduet2kit.files import read_csv
from mmduet2kit.progress import _free_port

from tiny_models import tiny_folder  # noqa: F401

JOB = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_grpo import FakeDataset
from test_sft import dialogues
from mmduet2kit.profile import load_profile
from mmduet2kit.train import common, sft
stage, start, out = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
config = dict(zero_optimization=dict(stage=stage), zero_force_ds_cpu_optimizer=False, zero_allow_untested_optimizer=True,
              train_micro_batch_size_per_gpu="auto", gradient_accumulation_steps="auto")
plain = common.arguments
sft.arguments = lambda *a: plain(*a) | dict(use_cpu=False, deepspeed=config, bf16=False)
seen = []
original = sft.DialogueSFT.compute_loss
def spy(self, *a, **k):
    seen.append((str(self.accelerator.distributed_type), self.deepspeed.zero_optimization_stage()))
    return original(self, *a, **k)
sft.DialogueSFT.compute_loss = spy
profile = load_profile("tiny")
fit = profile.sft.model_copy(update=dict(steps=3, batch=4, micro_batch=4, lr=3e-3, save_steps=100, freeze_vision=False))
sft.train(profile, fit, dialogues(), FakeDataset(), start, out, out.with_suffix(".csv"), 3)
assert set(seen) == {{("DistributedType.DEEPSPEED", stage)}}, set(seen)
print("trained", Path(out / "config.json").exists())
"""


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_on_one_cpu_rank_trains_through_the_kits_trainer(stage, tmp_path, tiny_folder):  # noqa: F811
    env = os.environ | {
        "DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29610 + stage), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    job = JOB.format(tests=os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run(
        [sys.executable, "-c", job, str(stage), str(tiny_folder), str(tmp_path / "out")],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "trained True" in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]


RANKS = """
import os, runpy, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_grpo
from test_sft import dialogues
from mmduet2kit import cli
from mmduet2kit.profile import load_profile
from mmduet2kit.train import grpo, sft
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
        sft.train(profile, fit, dialogues(), test_grpo.FakeDataset(), start, out, log, 3)
    else:
        grpo.get_judge = lambda name: test_grpo.LengthJudge()
        rl = profile.rl.model_copy(update=dict(steps=4, prompts=2, group=4, micro_batch=4, max_new_tokens=8, save_steps=2,
                                               temperature=1.2, freeze_vision=False, lr=1e-4))
        grpo.train(profile, rl, test_grpo.make_segments(), test_grpo.FakeDataset(), start, out, log, 3)
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
    port = _free_port()
    assert train(what, 1, tiny_folder, tmp_path / "one", port) == [0]
    assert train(what, 2, tiny_folder, tmp_path / "two", port, stop=3) == [143, 143]
    assert len(losses(tmp_path / "two")) == 3
    assert train(what, 2, tiny_folder, tmp_path / "two", _free_port()) == [0, 0]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) > 3 and two == pytest.approx(one, abs=near)
    assert (tmp_path / "two" / "model.safetensors").exists()
