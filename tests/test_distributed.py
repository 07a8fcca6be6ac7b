"""DeepSpeed through the kit's own trainer: ZeRO-2 and ZeRO-3 on one CPU rank. Two ranks belong to GPU nodes."""

import os
import subprocess
import sys

import pytest

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
def test_zero_on_one_cpu_rank_trains_through_the_kits_trainer(stage, tmp_path, tiny_folder):
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


from tiny_models import tiny_folder  # noqa: E402, F401
