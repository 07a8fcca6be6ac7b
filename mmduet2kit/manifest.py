"""What a run is made with, for its manifest; and `mmduet2 doctor`: has this machine what is needed?"""

import os
import platform
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from . import __version__
from .errors import UserError
from .files import read_json
from .profile import load_profile

DISK_GB = 5  # the environment takes 2 GB, and a run's videos and checkpoints


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
        "set_up_minutes": set_up_minutes(), "gpu": gpu, "versions": versions(), "settings": profile.model_dump(mode="json"),
    }


def add_arguments(parser) -> None:
    """Arguments of `mmduet2 doctor`."""
    parser.add_argument("--profile", default="tiny", help="the profile that is to be run (default: tiny)")


def run(args) -> int:
    """`mmduet2 doctor`: one line per check, ok or STOP; exit code 3 when a run could not work."""
    profile, wanted, found = load_profile(args.profile), pins(), versions()
    free = shutil.disk_usage(".").free / 1e9
    missing = [name for name in wanted["core"] if name not in found]
    other = [f"{name} {found[name]} instead of {version}" for group in wanted.values()
             for name, version in group.items() if found.get(name, version).split("+")[0] != version]
    checks = {f"Python {platform.python_version()} (3.11 or 3.12 is needed)":
              (3, 11) <= sys.version_info[:2] <= (3, 12),
              f"{free:.0f} GB free here ({DISK_GB} GB are needed)": free >= DISK_GB,
              f"packages missing: {', '.join(missing) or 'none'}": not missing}
    for text, good in checks.items():
        print(f"{'ok' if good else 'STOP':<5} {text}")
    print(f"note  packages not as pinned: {'; '.join(other) or 'none'}")
    good = all(checks.values())
    print(f"Profile {profile.name}: {'nothing speaks against it' if good else 'mend what says STOP first'}.")
    return 0 if good else 3
