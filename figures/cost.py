"""What a training takes on GPUs: parameters, FLOPs, GB, hours. A model of the cost, with what was measured where that is there.

Stated simplifications: 6 FLOPs a token and trained parameter (2 forward, 4 backward), 2 more where activations are computed
again, attention by its length, vision forward only where it is frozen; memory at the longest sample, plus 15 percent.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmduet2kit.files import read_json
from mmduet2kit.profile import RL, Launch, Model, Profile

MEASURED = Path(__file__).parents[1] / "tests" / "benchmarks" / "results" / "gpu_check.json"
PEAK = 989e12  # FLOP/s, bfloat16 dense, NVIDIA's figure for H100, H800 and H200; used where no product was measured
ASSUMED_MFU = 0.35  # the project's target; used until a GPU has measured it
BANDWIDTH = 3.3e12  # bytes/s of an H100's or H800's memory, NVIDIA's figure: what decoding waits for
LAUNCH_S = 0.008  # of a decoding step's kernels, without CUDA graphs: what those save no GPU has shown yet
SPARE, CONTEXT_GB = 1.15, 2.0  # fragments; CUDA's own
ROOM = 1.25  # tokens a row that a rollout's KV cache has room for, of those that are sure to come (engines.py)
VIDEO_S = 0.95 * 92.7 + 0.05 * 164.4  # paper Table 1: mean length of the training videos, web and ego
LONGEST_S = 180.0  # upstream: of a training video; where a profile sets no budget of tokens
TESTS = {"WEB": (500, 16.59), "EGO": (326, 360.0), "TV": (500, 75.6), "VAD": (101, 121.0)}  # ProactiveVideoQA: questions, mean seconds
STEPS_A_TURN = (40 + 4) / 2  # decoding steps: every other turn is taken to be a reply of 40 tokens
CHECKPOINT = 2 + 12  # bytes a parameter: weights, masters, Adam's states
ENVIRONMENT_GB = 12.0  # torch with CUDA (README: 6 GB), vLLM, downloads that pip keeps
SAID = 0.1  # labelled tokens among all: NO REPLY or a reply a turn (notebook 02 prints it for the run's own data)
PLANS = {"plain": {"zero": 0, "offload": False, "adam": "torch"}, "8-bit Adam": {"zero": 0, "offload": False, "adam": "8bit"},
         "ZeRO-2": {"zero": 2, "offload": False, "adam": "torch"}, "ZeRO-3": {"zero": 3, "offload": False, "adam": "torch"},
         "ZeRO-2, offloaded": {"zero": 2, "offload": True, "adam": "torch"}}  # fmt: skip


def parameters(spec: Model) -> dict[str, int]:
    """Parameters of a Qwen2.5-VL of these sizes: vision (without its merger), merger, language, embedding (tied to the head)."""
    v, vi, h, wide, narrow = spec.vision_hidden, spec.vision_intermediate, spec.hidden, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    block = 2 * v + (v * 3 * v + 3 * v) + (v * v + v) + 2 * (v * vi + vi) + (vi * v + v)
    layer = 2 * h + (h * wide + wide) + 2 * (h * narrow + narrow) + wide * h + 3 * h * spec.intermediate
    return {"vision": 3 * 2 * 14 * 14 * v + spec.vision_layers * block, "merger": v + 4 * v * 4 * v + 4 * v + 4 * v * h + h,
            "language": spec.layers * layer + h, "embedding": -(-spec.vocabulary // 64) * 64 * h}  # fmt: skip


def frame_tokens(profile: Profile) -> float:
    """Tokens of a training dialogue, a frame: its own, its share of the turn's headers and of what is said (SAID)."""
    return (profile.video.visual_tokens + 2 + 10 / profile.video.train_frames_per_turn) / (1 - SAID)


def tokens_of(profile: Profile, seconds: float) -> tuple[int, int]:
    """(tokens, frames) of a training dialogue of so many seconds."""
    frames = max(1, round(seconds / profile.video.train_interval))
    return round(frames * frame_tokens(profile)), frames


def flops(profile: Profile, tokens: int, frames: int, frozen: bool) -> dict[str, float]:
    """FLOPs of one sample's forward and backward: `useful`, and `done` with what checkpointing computes again."""
    spec, size = profile.model, parameters(profile.model)
    language = 2 * (size["language"] + SAID * size["embedding"]) * tokens
    attention = 2 * spec.layers * spec.heads * spec.head_dim * tokens**2  # causal: half of the square
    vision = 2 * size["vision"] * 4 * profile.video.visual_tokens * frames
    useful = 3 * (language + attention) + (1 if frozen else 3) * vision
    again = language + attention + (0 if frozen else vision)
    return {"useful": useful, "done": useful + again * profile.launch.checkpointing}


def memory_gb(profile: Profile, launch: Launch, gpus: int, tokens: int, frozen: bool, shared: float = 0.0, card: float = 80.0,
              rows: int = 0) -> dict[str, float]:  # fmt: skip
    """GB on each of `gpus` cards of `card` GB at a sample of so many tokens: weights, gradients, optimizer, activations, vLLM, stream; and their sum.

    shared: vLLM's part of the card; rows: in the stream's KV cache, where that rolls out. vLLM sleeps while the model trains and the
    cache is gone; activations, and without ZeRO gradients, are gone while either generates: the larger counts.
    """
    spec, size = profile.model, parameters(profile.model)
    whole = sum(size.values())
    trained = whole - (size["vision"] if frozen else 0)
    adam = 2 if launch.adam == "8bit" else 8
    if not launch.zero:  # float32 masters, and autocast's bfloat16 copies of the weights
        parts = {"weights": 6 * whole, "gradients": 4 * trained, "optimizer": adam * trained}
    else:  # bfloat16 weights; masters and Adam's states shared among the ranks, or in the machine's memory
        share = gpus if launch.zero == 3 else 1
        parts = {"weights": 2 * whole / share, "gradients": 2 * trained / gpus,
                 "optimizer": 0 if launch.offload else 12 * trained / gpus}  # fmt: skip
    kept, layer = 4 * spec.hidden * tokens, 2 * tokens * (8 * spec.hidden + 4 * spec.intermediate)
    patches = 0 if frozen else 4 * profile.video.visual_tokens * tokens / frame_tokens(profile)  # of a tower that trains; bfloat16 between its layers
    seen, looking = 2 * spec.vision_hidden * patches, 2 * patches * (8 * spec.vision_hidden + 4 * spec.vision_intermediate)
    if launch.checkpointing:  # layer inputs, and one layer's insides: of the tower's only after the language model's are gone
        parts["activations"] = spec.vision_layers * seen + max(spec.layers * kept + layer, looking)
    else:
        parts["activations"] = spec.layers * (kept + layer) + spec.vision_layers * (seen + looking)
    out = {name: value / 1e9 for name, value in parts.items()}
    states, vllm, stream = sum(out.values()) - out["activations"], shared * card, rows * ROOM * tokens * token_bytes(spec) / 1e9
    speaking = SPARE * (states - (0 if launch.zero else out["gradients"])) + vllm + stream
    return out | {"vllm": vllm, "stream": stream, "sum": max(SPARE * (states + out["activations"]), speaking) + CONTEXT_GB}


def stream_rows(rl: RL, gpus: int) -> int:
    """Rows of the stream's KV cache on a card: for each prompt a group, and what it is copied from."""
    return -(-rl.prompts // gpus) * (rl.group + 1)


def token_bytes(spec: Model) -> int:
    """Of one token in a KV cache, in bfloat16."""
    return 2 * 2 * spec.layers * spec.kv_heads * spec.head_dim


def plans(profile: Profile, gpus: int, tokens: int, frozen: bool, shared: float = 0.0, card: float = 80.0, rows: int = 0) -> dict[str, float]:
    """{memory plan: GB a card} for this number of cards."""
    return {name: memory_gb(profile, profile.launch.model_copy(update=plan), gpus, tokens, frozen, shared, card, rows)["sum"] for name, plan in PLANS.items()}


def longest(profile: Profile, gpus: int) -> dict[str, dict]:
    """The longest sample of what the notebooks train, at each interval, as `memory_gb` takes it; the threshold baseline has one card."""
    out = {}
    for every in dict.fromkeys(profile.video.intervals):
        here = profile.at(every)
        sft, rl, most = here.sft, here.rl, tokens_of(here, LONGEST_S)[0]
        out[f"SFT at {every:g} s"] = {"gpus": gpus, "tokens": sft.max_tokens or most, "frozen": sft.freeze_vision}
        out[f"RL at {every:g} s"] = {"gpus": gpus, "tokens": rl.max_prompt + rl.max_response or most, "frozen": rl.freeze_vision,
                                     "shared": rl.vllm_memory if rl.engine == "vllm" else 0.0,
                                     "rows": 0 if rl.engine == "vllm" else stream_rows(rl, gpus)}  # fmt: skip
    return out | {"threshold baseline": out[f"SFT at {profile.video.train_interval:g} s"] | {"gpus": 1}}


def told_memory(profile: Profile, gpus: int, card: float) -> Iterator[tuple[bool, str]]:
    """Does each of `longest` fit on so many cards of `card` GB? With the plans that do where it does not."""
    for what, sample in longest(profile, gpus).items():
        need = memory_gb(profile, profile.launch, card=card, **sample)["sum"]
        fitting = [name for name, gb in plans(profile, card=card, **sample).items() if gb <= card]
        advice = f"; these memory plans fit: {', '.join(fitting) or 'none'} (section launch of the profile)"
        yield need <= card, f"{what}: {need:.0f} GB a card, there are {gpus} of {card:.0f} GB" + advice * (need > card)


def trainings(profile: Profile) -> dict[str, tuple[str, float, int]]:
    """What notebooks 03, 05, 07 and 08 train of a model that is named, for each seed: {model: (stage, seconds a frame, steps)}."""
    coarse, fine, arms, weight = *profile.video.intervals, profile.ablation, profile.sft.no_reply_weight
    main = ("sft", coarse, profile.sft.steps)
    out = {f"sft{profile.sft_arm(every, w)}": ("sft", every, arms.sft_steps) for w in (weight, *arms.no_reply_weights) for every in (coarse, fine)}
    out |= {f"rl{profile.sft_arm(fine, weight)}": ("rl", fine, arms.rl_steps)} | {f"rl-{arm}": ("rl", coarse, arms.rl_steps) for arm in arms.arms}
    return out | {"sft": main, "threshold": main, "sft-frames": main, "rl": ("rl", coarse, profile.rl.steps)}


def disk_gb(profile: Profile) -> dict[str, float]:
    """GB that a run of all notebooks takes at most, beside its dataset: environment, models, checkpoints.

    Trainings take all cards, so one at a time has checkpoints: two of them, since the older goes when the newer is whole.
    """
    whole, each = sum(parameters(profile.model).values()), 4 if profile.model.dtype == "float32" else 2
    models = len(profile.seeds) * (len(trainings(profile)) + 1) + 1  # and RL's at the arms' length; the base
    return {"environment": ENVIRONMENT_GB, f"{models} models": models * each * whole / 1e9, "2 checkpoints": 2 * CHECKPOINT * whole / 1e9}


@dataclass(frozen=True)
class Speed:
    """FLOP/s of a card, the share of it that training reaches, bytes/s of its memory; where from."""

    peak: float = PEAK
    mfu: float = ASSUMED_MFU
    bandwidth: float = BANDWIDTH
    source: str = "assumed: no GPU has measured it yet"


def speed(file: Path = MEASURED) -> Speed:
    """What `tests/benchmarks/gpu_check.py` measured, if its results are there."""
    found = read_json(file) if file.is_file() else {}
    if not found.get("sft", {}).get("mfu"):
        return Speed()
    ceilings = found["ceilings"]
    return Speed(ceilings["bf16_tflop_s"] * 1e12, found["sft"]["mfu"], ceilings["copy_gb_s"] * 1e9,
                 f"measured on {found['hardware']}, {found['date']}")  # fmt: skip


def training_hours(profile: Profile, gpus: int, fast: Speed, stage: str, every: float, steps: int) -> dict[str, float | str]:
    """Hours of a training at a frame every `every` s, and what bounds it.

    sft: arithmetic. rl: a step rolls out (decoding waits for the weights' bytes, one reply token of all rollouts of a card at a
    time: STEPS_A_TURN), then trains on history and rollout.
    """
    here, whole = profile.at(every), sum(parameters(profile.model).values())
    fit, rate, (tokens, frames) = getattr(here, stage), fast.peak * fast.mfu * gpus, tokens_of(here, VIDEO_S)
    most = stage == "sft" and fit.max_tokens or tokens
    work = steps * fit.batch * flops(here, min(tokens, most), frames, fit.freeze_vision)["useful"] / rate
    if stage == "sft":
        return {"hours": work / 3600, "bound": "arithmetic of the language model"}
    turns = sum(fit.turns(every * profile.video.train_frames_per_turn)) / 2
    rolled = steps * max(1.0, fit.prompts / gpus / 8) * turns * STEPS_A_TURN * (2 * whole / fast.bandwidth + LAUNCH_S)
    return {"hours": (work + rolled) / 3600, "bound": "arithmetic" if work > rolled else "decoding: bytes of the weights"}


def hours(profile: Profile, gpus: int, fast: Speed) -> dict[str, dict[str, float | str]]:
    """The main run's two stages on so many cards: hours, what bounds it, GB of a checkpoint."""
    saved = CHECKPOINT * sum(parameters(profile.model).values()) / 1e9
    return {name: training_hours(profile, gpus, fast, *trainings(profile)[name]) | {"gb": saved} for name in ("sft", "rl")}


def testing_hours(profile: Profile, fast: Speed) -> float:
    """Hours of one card for all that the notebooks test, a seed, on a benchmark of TESTS' size."""
    (coarse, fine), ours, whole = profile.video.intervals, profile.evaluate, sum(parameters(profile.model).values())

    def watched(domains, every: float, videos: int = 0) -> float:
        here, spent = profile.at(every), 0.0
        for domain in domains:
            many, seconds = TESTS[domain]
            turns = seconds / every / profile.video.test_frames_per_turn[domain]
            seen = flops(here, *tokens_of(here, seconds), True)["useful"] / 3 / (fast.peak * fast.mfu)  # forward only
            spent += (videos or many) * (seen + turns * STEPS_A_TURN * (2 * whole / fast.bandwidth + LAUNCH_S) / ours.batch)
        return spent / 3600

    four, two, arms = list(TESTS), list(TESTS)[:2], len(trainings(profile)) - 3
    main = 4 * watched(four, fine) + 2 * watched(four, coarse)  # base, SFT, threshold, RL; SFT and RL at both intervals
    looks = ours.thresholds + 2 + profile.rl.steps // profile.rl.eval_steps  # at the development videos: the threshold's sweep, Figure 5
    return main + arms * watched(two, fine) + 2 * watched(two, coarse) + looks * watched(two, fine, ours.dev_videos)


def study_hours(profile: Profile, gpus: int, fast: Speed) -> dict[str, float]:
    """Hours of all that the notebooks train and test, one after another; the threshold baseline and the tests have one card."""
    spent = {name: training_hours(profile, 1 if name == "threshold" else gpus, fast, *one)["hours"] for name, one in trainings(profile).items()}
    return {name: len(profile.seeds) * one for name, one in (spent | {"tests": testing_hours(profile, fast)}).items()}


def told_hours(profile: Profile, gpus: int) -> str:
    """The sum of `study_hours` and its largest parts, in a sentence."""
    fast = speed()
    found = study_hours(profile, gpus, fast)
    largest = ", ".join(f"{name} {spent:.0f} h" for name, spent in sorted(found.items(), key=lambda one: -one[1])[:4])
    return (f"time on {gpus} GPU{'s' * (gpus > 1)}: {sum(found.values()):.0f} h for all that the notebooks train and test, of it {largest}; "
            f"cost model, {fast.source}")  # fmt: skip
