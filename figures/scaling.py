"""The README's scaling page: GB and hours a stage of the profile `paper` on 1, 8 and 16 GPUs, by the cost model (cost.py)."""

from pathlib import Path

from cost import ASSUMED_MFU, PEAK, VIDEO_S, Speed, disk_gb, flops, hours, longest, memory_gb, plans, speed, stream_rows, study_hours, tokens_of
from mmduet2kit.files import read_json
from mmduet2kit.profile import Profile, load_profile

COUNTED = Path(__file__).parents[1] / "tests" / "benchmarks" / "results" / "paper_size.json"
GPUS = (1, 8, 16)
VIDEOS = 52_000  # paper 3: dialogues, of as many videos
THEIRS = {"sft": (16, 8.0), "rl": (8, 20.0)}  # the paper's own cards (H800) and hours
DATA_TIMES = 10


def page(profile: Profile | None = None, fast: Speed | None = None) -> str:
    """Markdown; every number of it is computed here from the profile, the cost model and what a GPU has measured."""
    profile, fast = profile or load_profile("paper"), fast or speed()
    found, ten = {n: hours(profile, n, fast) for n in GPUS}, profile.model_copy(update={
        "sft": profile.sft.model_copy(update={"steps": DATA_TIMES * profile.sft.steps})})  # fmt: skip
    lines = [f"Profile `{profile.name}`. Speed: {fast.source} ({fast.peak / 1e12:.0f} TFLOP/s, of which training reaches {100 * fast.mfu:.0f} percent).", "",
             "| stage | what bounds it | " + " | ".join(f"hours on {n} GPU{'s' * (n > 1)}" for n in GPUS) + " | the paper's | checkpoint, GB |",
             "|---|---|" + "---|" * (len(GPUS) + 2)]  # fmt: skip
    for stage in ("sft", "rl"):
        spent = " | ".join(f"{found[n][stage]['hours']:.1f}" for n in GPUS)
        lines.append(f"| {stage} | {found[GPUS[1]][stage]['bound']} | {spent} | {THEIRS[stage][1]:.0f} on {THEIRS[stage][0]} H800 | "
                     f"{found[1][stage]['gb']:.0f} |")  # fmt: skip
    whole = {n: study_hours(profile, n, fast) for n in GPUS}
    lines.append("| all that the notebooks train and test | | " + " | ".join(f"{sum(whole[n].values()):.1f}" for n in GPUS) + " | not told | |")
    largest = sorted(whole[GPUS[1]].items(), key=lambda one: -one[1])[:4]
    disk = disk_gb(profile)
    lines += ["", f"Of the whole on {GPUS[1]} GPUs, the largest parts are " + ", ".join(f"{name} {spent:.1f} h" for name, spent in largest)
              + " (the threshold baseline and the tests have one GPU; the baseline takes the memory of SFT on one). The run takes at most "
              f"{sum(disk.values()):.0f} GB of disk beside the dataset: " + ", ".join(f"{name} {gb:.0f}" for name, gb in disk.items()) + "."]
    at = [longest(profile, n) for n in GPUS]
    lines += ["", "| GB a card of 80 GB, at the longest sample | " + " | ".join(f"{n} GPU{'s' * (n > 1)}" for n in GPUS) + " |", "|---|" + "---|" * len(GPUS)]
    for what, sample in list(at[0].items())[:-1]:  # the threshold baseline takes what SFT takes on one
        for plan in plans(profile, **sample):
            lines.append(f"| {what}, {sample['tokens']} tokens: {plan} | " + " | ".join(f"{plans(profile, **one[what])[plan]:.0f}" for one in at) + " |")
    tokens, frames = tokens_of(profile, VIDEO_S)
    work = profile.sft.steps * profile.sft.batch * flops(profile, tokens, frames, profile.sft.freeze_vision)["useful"]
    theirs = {stage: cards * spent * 3600 * PEAK for stage, (cards, spent) in THEIRS.items()}
    used, rolled = work / theirs["sft"], profile.rl.steps * profile.rl.batch * flops(profile, tokens, frames, profile.rl.freeze_vision)["useful"] / theirs["rl"]
    side = 28 * 28 * 3 * profile.video.visual_tokens / 1e9
    stored = {every: VIDEOS * VIDEO_S / every * side for every in profile.video.intervals}
    more = {n: hours(ten, n, fast)["sft"]["hours"] for n in GPUS}
    lines += ["", f"A mean sample has {tokens} tokens ({frames} frames), and one epoch of SFT is {work:.1e} FLOPs: the paper's own hours are "
              f"{100 * used:.0f} percent of its cards' bfloat16 peak, so what bounded them was not arithmetic (data, ZeRO-3, padding). "
              f"Decoded frames of {VIDEOS} videos take {stored[2.0]:.0f} GB at 2 s and {stored[1.0]:.0f} GB at 1 s. With {DATA_TIMES} times the data, SFT takes "
              + ", ".join(f"{more[n]:.0f} h on {n}" for n in GPUS) + ", frames outgrow a machine's disk, and RL, whose steps are counted, "
              "stays as it is.", "",
              f"For RL the model says {found[THEIRS['rl'][0]]['rl']['hours']:.1f} h where the paper took {THEIRS['rl'][1]:.0f} h: it is not calibrated yet, "
              f"and that run was far below peak (its training is {100 * rolled:.1f} percent of its cards'): the released code sends all pictures so far to the "
              "engine at every turn, asks a remote judge and keeps weights and optimizer in the machines' memory, none of which is counted here.", "",
              f"The model counts 6 FLOPs a token and parameter, attention by its length, and 2 more FLOPs where activations are computed again; "
              f"until `python tests/benchmarks/gpu_check.py` has run on a GPU, {100 * ASSUMED_MFU:.0f} percent of the peak is an assumption. "
              "`./run_all.sh doctor --profile P` says the same for your machine before anything is spent.", "", counted()]  # fmt: skip
    return "\n".join(lines) + "\n"


def counted() -> str:
    """What tests/benchmarks/paper_size.py counted at 3B, beside the cost model."""
    found = read_json(COUNTED)
    sft, rl, turn, graphs = found["sft_step"], found["grpo_step"]["training"], found["stream_alone"]["silent_turn"], found["stream_alone"]["silent_turn_graphs"]
    steps = (("an SFT step of one sample", f"{sft['tokens']} tokens", sft), (f"the training of a GRPO step of {found['grpo_step']['rollouts']} rollouts", f"{found['grpo_step']['tokens']} tokens each", rl))
    told = "; ".join(f"{what} of {size} is {one['tflop']:.0f} TFLOP (the model: {one['tflop_by_the_cost_model']:.0f}) and {one['peak_gb']:.0f} GB of live tensors "
                     f"(planned: {one['peak_gb_by_the_cost_model']:.0f}, with a reserve)" for what, size, one in steps)  # fmt: skip
    plain, replayed, profile = found["grpo_step"]["rolling_out"], found["grpo_step"]["rolling_out_graphs"], load_profile("single_gpu")
    planned = memory_gb(profile, profile.launch, 1, found["grpo_step"]["tokens"], False, rows=stream_rows(profile.rl, 1))
    launched = [sum(one[part]["kernels"] for part in ("frame", "turn")) for one in (turn, graphs)]
    return (f"Counted at 3B, kernel by kernel, without a GPU (`python tests/benchmarks/paper_size.py`, plain memory plan, {found['date']}): {told}. Its rollouts by the stream hold "
            f"{plain['peak_gb']:.0f} GB of live tensors (planned: {planned['sum']:.0f}) and launch {plain['kernels']} kernels, or {replayed['kernels']} where {replayed['replayed']} of "
            f"{replayed['forwards']} forwards are one CUDA graph each (`launch.graphs`). A silent turn of one "
            f"stream launches {launched[0]} kernels, its frame's among them; {launched[1]} and one CUDA graph where the turn is replayed, nearly all of them its frame's.")  # fmt: skip


if __name__ == "__main__":
    print(page())
