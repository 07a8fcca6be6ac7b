"""What a run is made with, for its manifest."""

import os
import platform
import subprocess
import sys
import tomllib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from . import __version__
from .errors import UserError
from .files import read_json


def pins() -> dict[str, dict[str, str]]:
    """The exact versions in pyproject.toml: {"core": {name: version}, "gpu": {...}, ...}."""
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    return {group: dict(line.split("==") for line in lines) for group, lines in groups.items()}


def versions() -> dict[str, str]:
    """Installed versions of every package the kit pins; those not installed are left out."""
    found = {each.name.lower().replace("_", "-"): each.version for each in metadata.distributions()}
    return {name: found[name] for group in pins().values() for name in group if name in found}


def _said(command: str) -> str:
    """What a command prints, or nothing where it does not exist or fails."""
    code, text = subprocess.getstatusoutput(command)
    return "" if code else text


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_manifest(path: Path) -> dict:
    """A manifest, whose `stages` are lists of attempts; UserError when it is damaged."""
    found = read_json(path)
    stages = found.get("stages") if isinstance(found, dict) else None
    lists = stages.values() if isinstance(stages, dict) else [None]
    if not all(isinstance(tries, list) and all(isinstance(one, dict) for one in tries) for tries in lists):
        raise UserError(f"{path} is damaged: delete it, and the record of minutes and attempts begins anew.")
    return found


def attention_for(wanted: str) -> str:
    """The attention that is used: `auto` is flash-attn where it is installed and there is a GPU, PyTorch's SDPA else."""
    if wanted == "auto" and find_spec("flash_attn"):
        import torch

        return "flash_attention_2" if torch.cuda.is_available() else "sdpa"
    return "sdpa" if wanted == "auto" else wanted


def set_up_minutes() -> float | None:
    """What run_all.sh took to make this environment; None where something else made it."""
    file = Path(sys.prefix) / "set-up-seconds"
    return round(int(file.read_text()) / 60, 2) if file.is_file() else None


def describe(profile) -> dict:
    """The head of a manifest: code, profile, machine and versions."""
    cpu = _said("lscpu | sed -n 's/^Model name: *//p'") or platform.processor() or platform.machine()
    gpu = _said("nvidia-smi --query-gpu=name,memory.total --format=csv,noheader").splitlines()
    return {
        "kit": __version__,
        "commit": _said("git rev-parse HEAD"), "dirty": bool(_said("git status --porcelain")),
        "profile": profile.name, "profile_hash": profile.hash(), "seeds": list(profile.seeds),
        "python": platform.python_version(), "platform": platform.platform(), "cpu": cpu, "cores": cores(),
        "set_up_minutes": set_up_minutes(), "gpu": gpu, "attention": attention_for(profile.model.attention),
        "versions": versions(), "settings": profile.model_dump(mode="json"),
    }
