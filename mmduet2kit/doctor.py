"""`mmduet2 doctor`: what this machine has, against what the kit needs. Exit 3 when a run could not work."""

import platform
import shutil
import sys
from pathlib import Path

from .manifest import pins, versions

DISK_GB = 5  # the environment takes 2 GB, and a run's videos and checkpoints
STAGES = 10


def add_arguments(parser) -> None:
    """Arguments of `mmduet2 doctor`."""
    parser.add_argument("--profile", default="tiny", help="the profile that is to be run (default: tiny)")


def run(args) -> int:
    """Print one line per check: ok, note (works, but) or STOP."""
    from .profile import load_profile

    profile = load_profile(args.profile)
    lines = [*_python(), *_disk(), *_packages(), *_notebooks()]
    for verdict, text in lines:
        print(f"{verdict:<5} {text}")
    stop = any(verdict == "STOP" for verdict, _ in lines)
    print(f"Profile {profile.name}: {'mend what says STOP first' if stop else 'nothing speaks against it'}.")
    return 3 if stop else 0


def _python():
    good = (3, 11) <= sys.version_info[:2] <= (3, 12)
    yield "ok" if good else "STOP", f"Python {platform.python_version()} (3.11 or 3.12 is needed)"


def _disk():
    free = shutil.disk_usage(".").free / 1e9
    yield "ok" if free >= DISK_GB else "STOP", f"{free:.0f} GB free here ({DISK_GB} GB are needed)"


def _packages():
    wanted, found = pins(), versions()
    missing = [name for name in wanted["core"] if name not in found]
    if missing:
        yield "STOP", f"not installed: {', '.join(missing)} (./run_all.sh installs them)"
    every = {name: version for group in wanted.values() for name, version in group.items()}
    other = [f"{name} {found[name]} instead of {version}" for name, version in every.items()
             if found.get(name, version) != version]
    yield ("note", f"not as pinned: {'; '.join(other)}") if other else ("ok", "packages as pinned")


def _notebooks():
    count = len(list(Path("notebooks").glob("[0-9][0-9]_*.ipynb")))
    yield "ok" if count == STAGES else "STOP", f"{count} of {STAGES} notebooks in notebooks/"
