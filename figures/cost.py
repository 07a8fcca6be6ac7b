"""What a training takes on GPUs: parameters, FLOPs, GB, hours. A model of the cost, with what was measured where that is there.

Stated simplifications: 6 FLOPs a token and trained parameter (2 forward, 4 backward), 2 more where activations are computed
again, attention by its length, vision forward only where it is frozen; memory at the longest sample, plus 15 percent.
"""

from dataclasses import dataclass
from pathlib import Path

from mmduet2kit.files import read_json
from mmduet2kit.profile import Launch, Model, Profile

MEASURED = Path(__file__).parents[1] / "tests" / "benchmarks" / "results" / "gpu_check.json"
PEAK = 989e12  # FLOP/s, bfloat16 dense, NVIDIA's figure for H100, H800 and H200; used where no product was measured
ASSUMED_MFU = 0.35  # the project's target; used until a GPU has measured it
BANDWIDTH = 3.3e12  # bytes/s of an H100's or H800's memory, NVIDIA's figure: what decoding waits for
LAUNCH_S = 0.008  # of a decoding step's kernels, without CUDA graphs
SPARE, CONTEXT_GB = 1.15, 2.0  # fragments; CUDA's own
VIDEO_S = 0.95 * 92.7 + 0.05 * 164.4  # paper Table 1: mean length of the training videos, web and ego
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


def tokens_of(profile: Profile, seconds: float) -> tuple[int, int]:
    """(tokens, frames) of a training dialogue of so many seconds: frames, the turns' headers, and what is said (SAID)."""
    frames = max(1, round(seconds / profile.video.train_interval))
    each = profile.video.visual_tokens + 2 + 10 / profile.video.train_frames_per_turn
    return round(frames * each / (1 - SAID)), frames


def flops(profile: Profile, tokens: int, frames: int, frozen: bool) -> dict[str, float]:
    """FLOPs of one sample's forward and backward: `useful`, and `done` with what checkpointing computes again."""
    spec, size = profile.model, parameters(profile.model)
    language = 2 * (size["language"] + SAID * size["embedding"]) * tokens
    attention = 2 * spec.layers * spec.heads * spec.head_dim * tokens**2  # causal: half of the square
    vision = 2 * size["vision"] * 4 * profile.video.visual_tokens * frames
    useful = 3 * (language + attention) + (1 if frozen else 3) * vision
    again = language + attention + (0 if frozen else vision)
    return {"useful": useful, "done": useful + again * profile.launch.checkpointing}


def memory_gb(profile: Profile, launch: Launch, gpus: int, tokens: int, frozen: bool) -> dict[str, float]:
    """GB on each of `gpus` cards at a sample of so many tokens: weights, gradients, optimizer, activations, and their sum."""
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
    parts["activations"] = (spec.layers * kept + layer) if launch.checkpointing else spec.layers * (kept + layer)
    out = {name: value / 1e9 for name, value in parts.items()}
    return out | {"sum": SPARE * sum(out.values()) + CONTEXT_GB}


def plans(profile: Profile, gpus: int, tokens: int, frozen: bool) -> dict[str, float]:
    """{memory plan: GB a card} for this number of cards."""
    return {name: memory_gb(profile, profile.launch.model_copy(update=plan), gpus, tokens, frozen)["sum"] for name, plan in PLANS.items()}


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


def hours(profile: Profile, gpus: int, fast: Speed) -> dict[str, dict[str, float | str]]:
    """Per stage on so many cards: hours, what bounds it, GB of checkpoints.

    sft: arithmetic. rl: a step rolls out (decoding waits for the weights' bytes, one reply token of all rollouts of a card at a
    time; every other turn of a rollout is taken to be a reply of 40 tokens), then trains on history and rollout.
    """
    size, rl, fit = parameters(profile.model), profile.rl, profile.sft
    rate, whole = fast.peak * fast.mfu * gpus, sum(size.values())
    tokens, frames = tokens_of(profile, VIDEO_S)
    sft = fit.steps * fit.batch * flops(profile, min(tokens, fit.max_tokens or tokens), frames, fit.freeze_vision)["useful"] / rate
    turns = sum(rl.segment_turns) / 2
    work = rl.steps * rl.batch * flops(profile, tokens, frames, rl.freeze_vision)["useful"] / rate
    steps = turns * (40 + 4) / 2
    rolled = rl.steps * max(1.0, rl.prompts / gpus / 8) * steps * (2 * whole / fast.bandwidth + LAUNCH_S)
    saved = (2 + 12) * whole / 1e9
    return {
        "sft": {"hours": sft / 3600, "bound": "arithmetic of the language model", "gb": saved},
        "rl": {"hours": (work + rolled) / 3600, "bound": "arithmetic" if work > rolled else "decoding: bytes of the weights", "gb": saved},
    }  # fmt: skip
