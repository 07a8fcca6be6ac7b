"""mmduet2kit/constraints.txt: the versions of what the kit's own dependencies bring along, such that vllm fits beside them.

To renew them: `.venv/bin/python tests/constraints.py`, which asks pip for the newest and installs nothing, then `./run_all.sh test`; if
something fails, keep that package's older line.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmduet2kit.files import write_atomic

ROOT = Path(__file__).parents[1]
PATH, EXTRAS = ROOT / "mmduet2kit" / "constraints.txt", ("dev", "gpu", "adam8bit")
HEADING = """\
# What the packages of pyproject.toml bring along: run_all.sh and environment.yml hold pip to these versions, so that the same
# commands make the same environment later. What only vllm or a CUDA build of torch brings is not held. Made by tests/constraints.py.
setuptools<81  # vllm wants that on Python 3.12
"""
CUDA = ("nvidia-", "cuda-", "triton")  # what a CUDA build of torch brings, at versions of its own


def copied(place: Path) -> None:
    """What run_all.sh needs to set up an environment, in another place."""
    (place / PATH.parent.name).mkdir(parents=True)
    for name in ("run_all.sh", "pyproject.toml", PATH.relative_to(ROOT)):
        shutil.copy(ROOT / name, place / name)


def wanted(name: str, extras: frozenset) -> list[Requirement]:
    """What an installed distribution asks for here, with these extras."""
    lines = map(Requirement, distribution(name).requires or ())
    return [one for one in lines if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in {"", *extras})]


def named(*extras: str) -> set[str]:
    """What pyproject.toml names, with an exact version."""
    return {"mmduet2kit"} | {canonicalize_name(one.name) for one in wanted("mmduet2kit", frozenset(extras))}


def brought() -> dict[str, str]:
    """Name and version, here, of each distribution that mmduet2kit[dev] stands on without naming it."""
    seen = {("mmduet2kit", frozenset({"dev"}))}
    waiting = list(seen)
    while waiting:
        new = {(name, frozenset(one.extras)) for one in wanted(*waiting.pop()) if not (name := canonicalize_name(one.name)).startswith(CUDA)} - seen
        seen, waiting = seen | new, waiting + sorted(new, key=str)
    return {name: distribution(name).version for name in sorted({name for name, _ in seen} - named("dev"))}


def held() -> dict[str, str]:
    """Name and version of each line of the file."""
    return dict(line.split("==") for line in PATH.read_text().splitlines() if "==" in line)


def pip(extras: tuple[str, ...], *options) -> subprocess.CompletedProcess:
    """What pip would install with these extras into an empty environment; it installs nothing."""
    command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed", *options, "-e", f"{ROOT}[{','.join(extras)}]"]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"DS_BUILD_OPS": "0"})


def newest(*extras: str) -> dict[str, str]:
    """Name and version of all that pip would install, held by nothing but the heading."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(HEADING)
        file.flush()
        told = pip(extras, "-c", file.name, "--report", "-")
    if told.returncode:
        sys.exit(told.stderr)
    found = {canonicalize_name(one["metadata"]["name"]): one["metadata"]["version"] for one in json.loads(told.stdout)["install"]}
    return {name: version for name, version in found.items() if not name.startswith(CUDA)}


if __name__ == "__main__":
    names, versions = set(newest("dev")) - named("dev"), newest(*EXTRAS)
    write_atomic(PATH, HEADING + "".join(f"{name}=={versions[name]}\n" for name in sorted(names & set(versions))))
    print(f"{PATH.name}: {len(held())} packages")
