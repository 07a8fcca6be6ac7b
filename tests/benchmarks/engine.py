"""What a turn costs: `python tests/benchmarks/engine.py [--size tiny|3b] [--parts abcn] [--out FILE]`. Prints JSON.

(a) seconds and memory a turn against the stream's length: the kit, the released inference's way, full re-encoding.
(b) 64 WEB-shaped streams (16.6 s, a frame a second and turn; 3.3 replies a video, of 25 tokens or, at tiny size, of the world's
    length): one after another and batched; against full re-encoding by bare forwards, by transformers' `generate`, and batched.
(c) a GRPO step's rollout of 20 turns against TRL's own loop, which fills the model anew at every turn (tiny only).
(d) one stream alone in real time: milliseconds of a silent turn (p50, p95), with and without graphs.
(n) bfloat16: how often the stream and full re-encoding choose alike, and the margin where they do not.
Weights are random (speed and memory are real; what is said is scripted). With a GPU, --size 3b is a Qwen2.5-VL-3B.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mmduet2kit.dialogue import Turn
from mmduet2kit.engines import Session, StreamEngine

import sys  # isort: skip

sys.path.insert(0, str(Path(__file__).parents[1]))
import told
from played import FakeDataset, make_segments, make_tiny, pixels, random_dialogue, teach_silence
from ways import START, Full, Generated, Kit, Released, Scripted, full_batched, make, sync


def turn_of(k: int, question: int = 0) -> Turn:
    return Turn((k,), "What things show up?" if k == question else None)


def replies_for(size: str, encoder, rng, turns: int, every: float) -> list[list[int]]:
    """A script: NO REPLY, and about every so many turns a reply (of 25 tokens; at tiny size the world's caption)."""
    long = [encoder.newline[0]] * 24 + [encoder.im_end] if size != "tiny" else encoder.reply("A red circle spins.")
    return [long if rng.random() < 1 / every else encoder.silence for _ in range(turns)]


def in_turns(ways: dict[str, Callable], times: int) -> dict[str, tuple]:
    """{way: (its best seconds of so many, what it last returned)}: taken in turns, as machines have bad minutes. A way returns (seconds, anything)."""
    best: dict[str, tuple] = {}
    for name, go in [*ways.items()] * times:
        spent, made = go()
        best[name] = min(spent, best.get(name, (spent,))[0]), made
    return best


def part_a(size, device, dtype, turns=200, repeats=3) -> dict:
    """Silent turns only are compared; every 20th turn is a reply of 25 tokens. Full re-encoding is run at some turns.

    At the last turn: full re-encoding there, against the median of the others' last ten silent turns.
    """
    model, processor, encoder, (high, wide) = make(size, device, dtype)
    frames = np.random.default_rng(0).integers(0, 255, (turns, high, wide, 3), np.uint8)
    long = [encoder.newline[0]] * 24 + [encoder.im_end]
    script = [long if k % 20 == 10 else encoder.silence for k in range(turns)]
    looked = sorted({0, 19, *range(39, turns, 40), turns - 1})
    silent = np.array([k for k in range(19, turns) if script[k] is encoder.silence])
    ways = {"kit": (Kit, {}), "kit_token_by_token": (Kit, {"ahead": False}), "released": (Released, {}), "full": (Full, {})}
    out, seconds, held = {name: {} for name in ways}, {name: np.full(turns, np.inf) for name in ways}, {}
    for _ in range(repeats):  # as `in_turns`, with the best of each turn
        for name, (way, options) in ways.items():
            one, tokens = way(model, processor, encoder, **options), []
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            for k in range(turns):
                there = name != "full" or k in looked
                started = sync(model)
                one.turn(turn_of(k), frames[k : k + 1], script[k], there)
                seconds[name][k] = min(seconds[name][k], sync(model) - started if there else np.inf)
                tokens.append(len(one.ids) if name == "full" else int(one.stream.cache.lengths[0]))
            held[name] = np.array(tokens)
            if device == "cuda":
                out[name]["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
            if name != "full":
                out[name] |= {"cache_mb": round(one.stream.cache.nbytes / 1e6, 2), "bytes_copied_a_turn": one.stream.cache.copied // turns}
    for name, best in seconds.items():
        out[name]["ms_at_turn"] = {str(k + 1): round(1000 * best[k], 3) for k in looked}
        if name != "full":
            b, a = np.polyfit(held[name][silent], best[silent], 1)
            rest = best - b * held[name]
            first, last = np.median(rest[silent[:10]]), np.median(rest[silent[-10:]])
            out[name] |= {"a_ms": round(1000 * a, 3), "b_us_per_cached_token": round(1e6 * b, 4),
                          "turn_200_over_turn_20_without_b": round(float(last / first), 3)}  # fmt: skip
    late = {name: float(np.median(times[silent[-10:]])) for name, times in seconds.items() if name != "full"}
    out["cached_tokens_at_the_end"] = tokens[-1]
    out["full_over_kit_at_the_last_turn"] = round(float(seconds["full"][-1]) / late["kit"], 1)
    out["released_over_kit_at_the_last_turn"] = round(late["released"] / late["kit"], 1)
    return out


def part_b(size, device, dtype, streams=64, turns=17) -> dict:
    model, processor, encoder, (high, wide) = make(size, device, dtype)
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 255, (streams, turns, high, wide, 3), np.uint8)
    scripts = [replies_for(size, encoder, rng, turns, turns / 3.3) for _ in range(streams)]
    sessions = [Session(encoder.system(START), f, [turn_of(k) for k in range(turns)]) for f in frames]

    def kit(some, **options) -> tuple[float, StreamEngine]:
        engine = StreamEngine(model, processor.image_processor, **options)
        started = sync(model)
        for group in some:
            engine.play(encoder, [sessions[i] for i in group], Scripted([scripts[i] for i in group]), 32)
        return sync(model) - started, engine

    alone, few, many = [[i] for i in range(streams)], *((streams, streams) if size == "tiny" else (2, 16))  # of 3b all would not fit
    ways = {"kit_alone": (alone, {}), "kit_batched": ([range(streams)], {}),
            "kit_batched_token_by_token": ([range(streams)], {"ahead": False})}  # fmt: skip
    capacity = 64 + turns * (encoder.tokens_per_frame + 12) + max(sum(map(len, script)) for script in scripts)
    fixed = {"graphs": True, "capacity": capacity, "compiled": device == "cpu"}  # CUDA graphs, or on a CPU torch.compile
    for name in ("kit_alone", "kit_batched") if device == "cuda" else ("kit_alone",):
        ways[f"{name}_graphs"] = ways[name][0], fixed

    def full(way) -> tuple[float, int]:
        way(model, processor, encoder).turn(turn_of(0), frames[0, :1], scripts[0][0])  # warm-up
        started = sync(model)
        for i in range(few):
            one = way(model, processor, encoder)
            for k in range(turns):
                one.turn(turn_of(k), frames[i, k : k + 1], scripts[i][k])
        return (sync(model) - started) * streams / few, few

    def batched() -> tuple[float, int]:
        full_batched(model, processor, encoder, [replace(one, turns=one.turns[:1]) for one in sessions[:many]], scripts[:many])  # warm-up
        started = sync(model)
        full_batched(model, processor, encoder, sessions[:many], scripts[:many])
        return (sync(model) - started) * streams / many, many

    for some, options in ways.values():
        kit(some[:8], **options)  # warm-up: with replies, so that every shape has been compiled or recorded
    ours = {name: partial(kit, some, **options) for name, (some, options) in ways.items()}
    slow = {"full": partial(full, Full), "full_by_generate": partial(full, Generated), "full_batched": batched}
    best, out = in_turns(ours | slow, 2 if size == "tiny" else 1), {}
    for name in ours:
        spent, engine = best[name]
        out[name] = {"seconds": round(spent, 3), "counts": dict(engine.counts)} | share(model, spent, engine.counts)
        out[name] |= {f"times_faster_than_{other}": round(best[other][0] / spent, 1) for other in slow}
    return out | {name: {"seconds": round(best[name][0], 3), "measured_streams": best[name][1]} for name in slow}


def part_c(prompts=4, group=8, turns=20) -> dict:
    """The policy is taught in seconds to be silent at most turns, so that replies have natural lengths."""
    from mmduet2kit.model import load
    from mmduet2kit.profile import load_profile
    from mmduet2kit.stream import Sampler
    from mmduet2kit.train import grpo


    held, profile = [], load_profile("tiny")
    with tempfile.TemporaryDirectory() as place:
        folder = make_tiny(Path(place) / "model", hidden=128, layers=4, heads=4, kv_heads=2, intermediate=384, vision_hidden=96,
                           vision_heads=3, vision_intermediate=288)  # fmt: skip
        model, processor = teach_silence(*load(folder))
        model.save_pretrained(folder)
        rl = profile.rl.model_copy(update={"prompts": prompts, "group": group, "steps": 1})
        finish, grpo.finish = grpo.finish, lambda trainer, _: held.append(trainer)
        try:
            grpo.train(profile, rl, make_segments(), FakeDataset(), folder, Path(place) / "out", Path(place) / "log.csv", 0)
        finally:
            grpo.finish = finish
    (trainer,) = held
    model, encoder, rng = trainer.model.eval(), trainer.encoder, np.random.default_rng(0)
    trainer.generation_config.update(max_new_tokens=rl.max_new_tokens, suppress_tokens=encoder.never_sampled)
    frames = rng.integers(0, 255, (prompts, turns, 56, 56, 3), np.uint8)
    sessions = [Session(encoder.system(START), f, [turn_of(k) for k in range(turns)]) for f in frames]
    keys = [(0, i) for i in range(prompts * group)]

    def by_kit(ahead: bool) -> list[list]:
        return StreamEngine(model, processor.image_processor, ahead=ahead).play(encoder, sessions, Sampler(keys, 1.0), rl.max_new_tokens, group)

    def by_trl() -> list[list[int]]:
        ids = [encoder.system(START) for _ in keys]
        for k in range(turns):
            ids = [row + encoder.user(turn_of(k)) + encoder.header for row in ids]
            images = [list(frames[i // group, : k + 1]) for i in range(len(keys))]
            values, grid = pixels(processor.image_processor, np.concatenate([np.stack(some) for some in images]))
            said, _ = trainer._generate_single_turn(ids, images, {"pixel_values": values, "image_grid_thw": grid}, 1, True)
            ids = [row + new + ([] if new[-1] == encoder.im_end else [encoder.im_end]) + encoder.newline for row, new in zip(ids, said)]
        return ids

    def timed(go, *arguments) -> tuple[float, list]:
        started = time.perf_counter()
        said = go(*arguments)
        return time.perf_counter() - started, said

    by_kit(True)  # warm-up
    ways = {"kit": partial(timed, by_kit, True), "kit_token_by_token": partial(timed, by_kit, False), "trl": partial(timed, by_trl)}
    out = {"rollouts": len(keys), "turns": turns}
    for name, (spent, said) in in_turns(ways, 2).items():
        out[name] = {"seconds": round(spent, 2)}
        if name != "trl":
            texts = [one for row in said for one in row]
            out[name] |= {"tokens": sum(len(one.ids) for one in texts), "silent": float(np.mean([one.ids == encoder.silence for one in texts]))}
    out["trl_over_kit"] = round(out["trl"]["seconds"] / out["kit"]["seconds"], 1)
    return out


def part_d(size, device, dtype, turns=120) -> dict:
    """By kernels launched one by one, and with `graphs` (on a CPU compiled): milliseconds of a silent turn, vision included."""
    model, processor, encoder, (high, wide) = make(size, device, dtype)
    frames = np.random.default_rng(2).integers(0, 255, (turns, high, wide, 3), np.uint8)
    one, out = {"forwards": 1, "tokens": encoder.tokens_per_frame + 12}, {}
    for name, options in (("silent_turn", {}), ("silent_turn_graphs", {"graphs": True, "compiled": device == "cpu"})):
        kit, spent, memory = Kit(model, processor, encoder, limit=8192 if size == "3b" else 4096, **options), [], []
        for k in range(turns):
            started = sync(model)
            kit.turn(turn_of(k), frames[k : k + 1], encoder.silence)
            spent.append(1000 * (sync(model) - started))
            memory.append(torch.cuda.memory_allocated() / 1e9 if device == "cuda" else kit.stream.cache.nbytes / 1e9)
        spent, counts = spent[5:], kit.stream.counts
        p50, p95 = (round(float(np.percentile(spent, p)), 2) for p in (50, 95))
        out |= {f"{name}_ms": {"p50": p50, "p95": p95}, f"{name}_memory_gb": [round(m, 3) for m in memory[:: turns // 6]],
                f"{name}_counts": dict(counts), **{f"{name}_{k}": v for k, v in share(model, p50 / 1000, one).items()}}  # fmt: skip
    return out


def part_n(size, device, dialogues=24, turns=8) -> dict:
    """Greedy in bfloat16 against full forwards on the stream's own history: the top-2 margin where they first differ.

    noise: how far any logit of the stream moves when the same sessions are played eight at a time instead of alone.
    """
    dtype = torch.bfloat16
    model, processor, encoder, (high, wide) = make(size, device, dtype)
    from mmduet2kit.stream import Greedy

    class Noted(Greedy):
        def __init__(self, rows):
            self.logits = [[] for _ in range(rows)]

        def __call__(self, logits, rows):
            for row, one in zip(rows, logits.clone()):
                self.logits[row].append(one)
            return super().__call__(logits, rows)

    rng, alike, seen, margins, noise, sessions, apart = np.random.default_rng(3), 0, 0, [], 0.0, [], []
    for _ in range(dialogues):
        dialogue = random_dialogue(rng, turns)
        frames = rng.integers(0, 255, (len(dialogue.frame_indices()), high, wide, 3), np.uint8)
        sessions.append(Session(encoder.system(START), frames, dialogue.turns))
    for session in sessions:
        alone, frames = Noted(1), session.frames
        (said,) = StreamEngine(model, processor.image_processor).play(encoder, [session], alone, 6)
        apart.append(alone.logits[0])
        full, used, answers = Full(model, processor, encoder), 0, iter(said)
        for turn in session.turns:
            if not turn.frames:
                full.ids += encoder.user(turn)
                continue
            spoken, new = next(answers), frames[used : used + len(turn.frames)]
            used += len(turn.frames)
            closed = spoken.ids + ([] if spoken.ids[-1] == encoder.im_end else [encoder.im_end])
            rows = full.turn(turn, new, closed)[: len(spoken.ids)]
            for logits, token in zip(rows, spoken.ids):
                logits[encoder.never_sampled] = -torch.inf
                seen, alike = seen + 1, alike + int(logits.argmax() == token)
                if int(logits.argmax()) != token:
                    best = logits.topk(2).values
                    margins.append(round(float(best[0] - best[1]), 4))
                    break
    for at in range(0, dialogues, 8):
        beside = Noted(8)
        StreamEngine(model, processor.image_processor).play(encoder, sessions[at : at + 8], beside, 6)
        for one, other in zip(apart[at : at + 8], beside.logits):
            for a, b in zip(one, other):
                finite = a.isfinite()
                noise = max(noise, float((a[finite] - b[finite]).abs().max()))
                if a.argmax() != b.argmax():
                    break
    return {"tokens": seen, "alike": round(alike / seen, 4), "margins_where_not": sorted(margins), "noise_between_batch_sizes": round(noise, 4),
            "every_margin_below_the_noise": all(margin <= noise for margin in margins)}  # fmt: skip


CEILINGS: dict = {}  # of this GPU; a CPU has no measured ones


def share(model, seconds: float, counts: dict) -> dict:
    """The part of `seconds` that this GPU would need at its measured ceilings: the language model's weights read once a forward,
    or its two FLOPs a weight and token, whichever is longer."""
    if not CEILINGS:
        return {}
    weights = sum(p.numel() for p in model.model.language_model.parameters())
    reading = counts["forwards"] * weights * 2 / (CEILINGS["copy_gb_s"] * 1e9)
    arithmetic = counts["tokens"] * weights * 2 / (CEILINGS["bf16_tflop_s"] * 1e12)
    return {"share_of_ceiling": round(max(reading, arithmetic) / seconds, 3)}


def ceilings() -> dict:
    """What this GPU reaches: GB/s of a copy, TFLOP/s of a bfloat16 product."""
    a = torch.empty(2**30, dtype=torch.bfloat16, device="cuda")
    b, m = torch.empty_like(a), torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    out = {}
    for name, work, amount in (("copy_gb_s", lambda: b.copy_(a), 4 * 2**30 / 1e9), ("bf16_tflop_s", lambda: m @ m, 2 * 8192**3 / 1e12)):
        work()
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(10):
            work()
        torch.cuda.synchronize()
        out[name] = round(10 * amount / (time.perf_counter() - started), 1)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("tiny", "3b"), default="tiny")
    parser.add_argument("--parts", default="abcdn")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if args.size == "3b" else torch.float32
    out: dict = {"size": args.size, **told.head()}
    CEILINGS.update(ceilings() if device == "cuda" else {})
    out["ceilings"] = CEILINGS
    parts = {"a": lambda: part_a(args.size, device, dtype), "b": lambda: part_b(args.size, device, dtype), "c": part_c,
             "d": lambda: part_d(args.size, device, dtype), "n": lambda: part_n(args.size, device)}  # fmt: skip
    names = args.parts if args.size == "tiny" else args.parts.replace("c", "")
    told.run(out, names, {name: (name, go) for name, go in parts.items()}, args.out)


if __name__ == "__main__":
    main()
