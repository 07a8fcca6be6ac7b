"""What one GPU reaches with a 3B model: `python tests/benchmarks/gpu_check.py [--size 3b|tiny] [--parts sgbdm] [--out FILE]`.

Random weights at Qwen2.5-VL-3B's sizes, no network, no vllm, within ten minutes; JSON after each part, so that what is done stays.

(s) SFT steps through the kit's trainer at 10k tokens a sample: seconds, MFU (useful FLOPs: 6 a token and trained parameter, vision
    forward, attention; what checkpointing computes again is not counted) and hardware utilisation (counted), padding share.
(g) GRPO steps: 8 prompts x 4 rollouts, 60 s segments after 90 frames of history, two of three turns silent, replies of 40 tokens:
    seconds of rollout (the second step's without CUDA graphs) and training, the floor that arithmetic sets, largest log-prob gap in bfloat16.
(b), (d) the streaming engine's 64 streams and one stream alone, as tests/benchmarks/engine.py has them.
(m) the smoke profile, all ten notebooks, on this machine: minutes a stage. Run it from a checkout, as it writes runs/smoke.
The README's scaling page and `mmduet2 doctor` read tests/benchmarks/results/gpu_check.json. `--size tiny` runs the same on a CPU.
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mmduet2kit.dialogue import NO_REPLY, Dialogue, Gold, Segment, Turn
from mmduet2kit.files import read_csv, read_json
from mmduet2kit.model import make_processor, save
from mmduet2kit.profile import load_profile
from mmduet2kit.train import grpo, rollout, sft

import sys  # isort: skip

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "figures"))
import cost
import engine
import told
from ways import PICTURES, Scripted, make

SAYS = "A red circle comes in from the left side. "


class Frames:
    """Random frames of a size, a few of them over and over."""

    key = "gpu check"

    def __init__(self, size):
        self.some = np.random.default_rng(0).integers(0, 255, (64, *PICTURES[size], 3), np.uint8)

    def frames(self, dialogue, indices=None):
        return self.some[np.array(dialogue.frame_indices() if indices is None else indices) % len(self.some)]


class AnyJudge:
    """Rewards that differ within a group, and cost nothing."""

    name = "any"

    def correctness(self, question, gold, prediction, max_score):
        return float(len(prediction) % (max_score + 1))

    def covered(self, history, text):
        return False


def dialogue(frames: int, name: str = "d") -> Dialogue:
    """Two frames a turn, a question at the start, a reply at every third turn."""
    turns = [Turn((k, k + 1), "What happens?" if k == 0 else None, SAYS * 4 if k % 6 == 4 else NO_REPLY) for k in range(0, frames, 2)]
    return Dialogue(name, "v", 2.0, tuple(turns), (Gold(8.0, 2.0 * frames, SAYS, "What happens?"),))


def settings(size: str, **launch):
    """The profile single_gpu (at tiny size: its training settings with the tiny model)."""
    profile = load_profile("single_gpu" if size == "3b" else "tiny")
    update = {"launch": profile.launch.model_copy(update={"checkpointing": True, "graphs": True, **launch})}
    return profile.model_copy(update=update | {"model": profile.model.model_copy(update={"path": None, "attention": "auto"})})


class Clock:
    """Seconds and peak memory of each step of a trainer."""

    def __init__(self):
        self.seconds, self.at = [], None

    def __call__(self, *_):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.at:
            self.seconds.append(now - self.at)
        self.at = now


def part_s(size: str, folder: Path, ceilings: dict, tokens: int, steps: int = 6) -> dict:
    profile, held = settings(size), []
    encoder_tokens = lambda d: len(held[0].encoder.encode(d).ids)  # noqa: E731
    fit = profile.sft.model_copy(update={"steps": steps, "batch": 1, "micro_batch": 1, "save_steps": 10**6, "max_tokens": 0})
    clock, store, padded = Clock(), sft.store, []
    sft.store, collator = (lambda trainer, *a: folder), sft.Collator
    loss = sft.DialogueSFT.training_step

    def stepped(self, model, inputs, *args, **kwargs):
        clock()
        padded.append(1 - float(inputs["attention_mask"].float().mean()))
        return loss(self, model, inputs, *args, **kwargs)

    sft.Collator = lambda *a: held.append(collator(*a)) or held[0]
    sft.DialogueSFT.training_step = stepped
    try:
        with tempfile.TemporaryDirectory() as place:
            frames = 2
            held.append(collator([dialogue(2)], Frames(size), load_processor(folder)))
            while encoder_tokens(dialogue(frames + 2)) <= tokens:
                frames += 2
            length = encoder_tokens(dialogue(frames))
            held.clear()
            sft.train(profile, fit, [dialogue(frames)], Frames(size), folder, Path(place) / "out", Path(place) / "log.csv", 0)
            clock()
    finally:
        sft.store, sft.Collator, sft.DialogueSFT.training_step = store, collator, loss
    seconds = float(np.median(clock.seconds[2:]))
    work = cost.flops(profile, length, frames, fit.freeze_vision)
    peak = ceilings.get("bf16_tflop_s", float("nan")) * 1e12  # a CPU: the same code, no figures
    return {"tokens": length, "frames": frames, "seconds_a_step": round(seconds, 3), "padding_share": round(float(np.mean(padded)), 4), "tflop_useful": round(work["useful"] / 1e12, 2),
            "mfu": share(work["useful"] / seconds / peak), "hardware_utilisation": share(work["done"] / seconds / peak),
            "first_steps_s": [round(s, 2) for s in clock.seconds], "peak_gb": memory()}  # fmt: skip


def part_g(size: str, folder: Path, ceilings: dict, history: int, steps: int = 3) -> dict:
    """Turn lengths are forced: `Scripted` takes the place of the sampler, so speed is that of such a policy."""
    profile = settings(size)
    rl = profile.rl.model_copy(update={"steps": steps, "prompts": 8, "group": 4, "micro_batch": 1, "engine": "stream", "save_steps": 10**6,
                                       "max_prompt": 0, "max_response": 0, "max_new_tokens": 100, "variant": "paper"})  # fmt: skip
    rolled, segments = 30, []  # frames: 60 s
    for k in range(8):
        whole = dialogue(history + rolled, f"d{k}")
        segments.append(Segment(whole, history // 2, (history + rolled) // 2, (Gold(2.0 * history, 2.0 * (history + rolled), SAYS, "What happens?"),)))
    kept = grpo.store, grpo.judge_of, rollout.Sampler

    def forced(keys, temperature, top_k):
        encoder = made[0]
        reply = [encoder.newline[0]] * 39 + [encoder.im_end]
        script = [[reply if (turn + row) % 3 == 0 else encoder.silence for turn in range(rolled // 2)] for row in range(len(keys))]
        chooser = Scripted(script)
        chooser.temperature = temperature
        return chooser

    made, encoder_for, engines, engine_of = [], grpo.encoder_for, [], grpo.StreamEngine
    grpo.encoder_for = lambda *a: made.append(encoder_for(*a)) or made[-1]
    grpo.StreamEngine = lambda *a, graphs: engines.append(engine_of(*a, graphs=graphs and len(engines) != 1)) or engines[-1]
    grpo.store, grpo.judge_of, rollout.Sampler = (lambda trainer, *a: folder), (lambda profile: AnyJudge()), forced
    try:
        with tempfile.TemporaryDirectory() as place:
            log = Path(place) / "log.csv"
            grpo.train(profile, rl, segments, Frames(size), folder, Path(place) / "out", log, 0)
            rows = read_csv(log)
    finally:
        (grpo.store, grpo.judge_of, rollout.Sampler), grpo.encoder_for, grpo.StreamEngine = kept, encoder_for, engine_of
    length = len(made[0].encode(segments[0].dialogue).ids)
    work = cost.flops(profile, length, history + rolled, rl.freeze_vision)["useful"] * rl.batch
    warm = rows[2:] or rows[1:]  # the second's rollouts were without graphs
    last = {name: round(float(np.median([float(row[name]) for row in warm])), 3) for name in ("rollout_s", "judge_s", "train_s")}
    return {"prompts": 8, "rollouts": 32, "tokens": length, "history_frames": history, "rolled_frames": rolled, **last,
            "rollout_s_without_graphs": float(rows[1]["rollout_s"]), "forwards": engines[0].counts["forwards"], "replayed": engines[0].counts["replayed"],
            "step_s": round(last["rollout_s"] + last["train_s"], 2), "floor_s": share(work / (ceilings.get("bf16_tflop_s", float("nan")) * 1e12)),
            "logprob_gap_max": max(float(row["logprob_gap"]) for row in rows), "replies_a_rollout": float(rows[-1]["reply_turns"]),
            "peak_gb": memory(), "paper_s_a_step_on_eight_H800": 147}  # fmt: skip


def part_m() -> dict:
    """Minutes of each stage, and where it failed, if so."""
    ended = subprocess.run([sys.executable, "-m", "mmduet2kit", "run", "--profile", "smoke", "--force"], capture_output=True, text=True)
    stages = read_json(load_profile("smoke").run_dir / "manifest.json")["stages"]
    minutes = {name: round(tries[-1]["minutes"], 2) for name, tries in stages.items()}
    told = {} if not ended.returncode else {"failed": (ended.stdout + ended.stderr)[-2000:]}
    return {"exit": ended.returncode, "minutes": round(sum(minutes.values()), 1), "stages": minutes, **told}


def without_checkpoints() -> None:
    """At 3B 45 GB at the end of each training, which nobody looks at."""
    for trainer in (sft.DialogueSFT, grpo.ProactiveGRPO):
        trainer._save_checkpoint = lambda *a, **k: None


def load_processor(folder: Path):
    from mmduet2kit.model import load_processor as load

    return load(folder)


def share(value: float) -> float | None:
    """Rounded; nothing where a ceiling was not measured."""
    return None if np.isnan(value) else round(value, 4)


def memory() -> float | None:
    """GB at the worst moment of this part (told.run starts each anew)."""
    if not torch.cuda.is_available():
        return None
    return round(torch.cuda.max_memory_allocated() / 1e9, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("tiny", "3b"), default="3b" if torch.cuda.is_available() else "tiny")
    parser.add_argument("--parts", default="sgbdm")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device, big = ("cuda" if torch.cuda.is_available() else "cpu"), args.size == "3b"
    ceilings = engine.CEILINGS
    ceilings.update(engine.ceilings() if device == "cuda" else {})
    out: dict = {"size": args.size, **told.head(), "ceilings": ceilings}
    dtype, kind = (torch.bfloat16, "bfloat16") if big else (torch.float32, "float32")
    without_checkpoints()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        model, processor, _, _ = make(args.size, "cpu", dtype)
        save(model, make_processor(processor.tokenizer), folder, kind)
        del model
        parts = {
            "s": ("sft", lambda: part_s(args.size, folder, ceilings, 10_000 if big else 300)),
            "g": ("grpo", lambda: part_g(args.size, folder, ceilings, 90 if big else 6)),
            "b": ("streams_64", lambda: engine.part_b(args.size, device, dtype, *(() if big else (4, 5)))),
            "d": ("stream_alone", lambda: engine.part_d(args.size, device, dtype, *(() if big else (24,)))),
            "m": ("smoke", part_m),
        }
        told.run(out, args.parts, parts, args.out)


if __name__ == "__main__":
    main()
