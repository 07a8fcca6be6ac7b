"""What a 3B model asks of a GPU, counted without one: `python tests/benchmarks/paper_size.py [--parts sgd] [--out FILE]`.

The workloads of gpu_check.py at Qwen2.5-VL-3B's sizes, run whole, kernel by kernel, on a GPU that is not there and with floats
that have shapes and no values (tests/pretend_gpu.py): what fits, what is computed, how often the host launches and waits. No
seconds. Beside each figure stands what the cost model (figures/cost.py) says, so this is its test too.

(s) an SFT step of 10k tokens; (g) a GRPO step of 8 prompts x 4 rollouts, and rollouts with CUDA graphs; (d) a silent turn of
one stream alone.
TFLOP are counted with what checkpointing computes again, attention's backward by 2.5 of its forward, causal ones by half.
GB are the live tensors' at the worst moment; CUDA's own, fragments, and what kernels use inside come on top.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from mmduet2kit.files import read_json
from mmduet2kit.model import make_processor, save
from mmduet2kit.train import common, grpo, sft

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "figures"))
import cost
import gpu_check
import told
from engine import turn_of
from pretend_gpu import pretend_gpu
from ways import PICTURES, Kit, Scripted, make


class Steps:
    """What a GPU was asked for between two moments: counts, TFLOP, GB."""

    def __init__(self, gpu):
        self.gpu, self.marks = gpu, []

    def mark(self) -> None:
        self.marks.append(Counter(self.gpu.counts))

    def between(self, first: int, second: int) -> dict:
        spent = {name: self.marks[second][name] - self.marks[first][name] for name in ("kernels", "waits", "uploads", "flop")}
        return spent | {"tflop": round(spent.pop("flop") / 1e12, 1)}


def before_each(owner, name: str, mark) -> None:
    """Call `mark` before each call of a method."""
    method = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: (mark(), method(*args, **kwargs))[1])


def part_s(gpu, folder: Path) -> dict:
    steps = Steps(gpu)
    before_each(sft.DialogueSFT, "training_step", steps.mark)
    found, profile = gpu_check.part_s("3b", folder, {}, 10_000, steps=4), gpu_check.settings("3b")
    work = cost.flops(profile, found["tokens"], found["frames"], profile.sft.freeze_vision)
    planned = cost.memory_gb(profile, profile.launch, 1, found["tokens"], profile.sft.freeze_vision)
    return {"tokens": found["tokens"], "frames": found["frames"], **steps.between(1, 2), "tflop_by_the_cost_model": round(work["done"] / 1e12, 1),
            "peak_gb": found["peak_gb"], "peak_gb_by_the_cost_model": round(planned["sum"], 1)}  # fmt: skip


def part_g(gpu, folder: Path) -> dict:
    """One step: its rollouts, with graphs, then its training, 32 micro-batches and the optimizer; and the next one's rollouts without."""
    steps, profile, peaks = Steps(gpu), gpu_check.settings("3b"), []
    mark = lambda: (steps.mark(), peaks.append(round(gpu.peak / 1e9, 1)), torch.cuda.reset_peak_memory_stats())  # noqa: E731
    before_each(grpo.ProactiveGRPO, "_generate", mark)
    before_each(grpo, "judge_rollouts", mark)
    found = gpu_check.part_g("3b", folder, {}, 90, steps=2)
    frames = found["history_frames"] + found["rolled_frames"]
    work = found["rollouts"] * cost.flops(profile, found["tokens"], frames, profile.rl.freeze_vision)["done"]
    planned = cost.memory_gb(profile, profile.launch, 1, found["tokens"], profile.rl.freeze_vision)
    return {"rollouts": found["rollouts"], "tokens": found["tokens"], "rolling_out": steps.between(2, 3) | {"peak_gb": peaks[3]},
            "rolling_out_graphs": steps.between(0, 1) | {"peak_gb": peaks[1], "forwards": found["forwards"], "replayed": found["replayed"]},
            "training": steps.between(1, 2) | {"tflop_by_the_cost_model": round(work / 1e12, 1), "peak_gb": peaks[2],
                                               "peak_gb_by_the_cost_model": round(planned["sum"], 1)}}  # fmt: skip


def part_d(gpu, turns: int = 6) -> dict:
    """The last of some silent turns: its frame through the tower, then the turn; with kernels launched one by one, and with graphs."""
    model, processor, encoder, (high, wide) = make("3b", "cuda", torch.bfloat16)
    frame, out = np.zeros((1, high, wide, 3), np.uint8), {}
    for name, options in (("silent_turn", {}), ("silent_turn_graphs", {"graphs": True})):
        kit, steps = Kit(model, processor, encoder, limit=8192, **options), Steps(gpu)
        for k in range(turns):
            steps.mark()
            features = kit.stream.see(frame)
            steps.mark()
            kit.stream.turn([0], [turn_of(k)], [features], Scripted([[encoder.silence]]), 4)
        steps.mark()
        out[name] = {"frame": steps.between(-3, -2), "turn": steps.between(-2, -1), "replayed": kit.stream.counts["replayed"]}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", default="sgd")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    kept = read_json(args.out) if args.out and args.out.exists() else {}  # parts of another call
    out: dict = kept | {"model": "Qwen2.5-VL-3B's sizes, bfloat16 over float32 masters in training", "frame": PICTURES["3b"], **told.head()}
    with tempfile.TemporaryDirectory() as place, pretend_gpu(shapes=True) as gpu:
        model, processor, _, _ = make("tiny", "cpu", torch.float32)  # for its tokenizer; the 3B is made where it is loaded
        folder = save(model, make_processor(processor.tokenizer), Path(place) / "model")
        common.load_model = lambda *a: make("3b", "cuda", torch.float32)[0]
        gpu_check.without_checkpoints()
        parts = {"s": ("sft_step", lambda: part_s(gpu, folder)), "g": ("grpo_step", lambda: part_g(gpu, folder)), "d": ("stream_alone", lambda: part_d(gpu))}
        told.run(out, args.parts, parts, args.out)


if __name__ == "__main__":
    main()
