"""The manifest of a run: what it was made with, and what each stage cost, failed attempts too."""

import os
import platform
import subprocess
import sys
import time
import tomllib
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from . import __version__
from .errors import UserError
from .files import read_json, write_json


def pins(pyproject: Path = Path("pyproject.toml")) -> dict[str, dict[str, str]]:
    """The exact versions in pyproject.toml: {"core": {name: version}, "gpu": {...}, ...}."""
    try:
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    except FileNotFoundError:
        raise UserError(f"{pyproject} does not exist: start from the folder of the repository.") from None
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    return {group: dict(line.split("==") for line in lines) for group, lines in groups.items()}


def versions() -> dict[str, str]:
    """Installed versions of every package the kit pins; those not installed are left out."""
    found = {}
    for group in pins().values():
        for name in group:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                pass
    return found


def _said(*command: str) -> str:
    """What a command prints, or nothing where it does not exist or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(profile) -> dict:
    """The head of a manifest: code, profile, machine and versions."""
    return {
        "kit": __version__,
        "commit": _said("git", "rev-parse", "HEAD"),
        "dirty": bool(_said("git", "status", "--porcelain")),
        "profile": profile.name, "profile_hash": profile.hash(),
        "python": platform.python_version(), "platform": platform.platform(), "cpu": _processor(),
        "cores": cores(),
        "gpu": _said("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader").splitlines(),
        "versions": versions(), "seeds": list(profile.seeds),
    }


class Manifest:
    """runs/<profile>/manifest.json, written whole at every change."""

    def __init__(self, path: Path, profile) -> None:
        self.path, stages = path, {}
        if path.exists():
            try:
                stages = read_json(path)["stages"]
            except (UserError, KeyError, TypeError):
                path.replace(path.with_suffix(".damaged.json"))
                print(f"{path} was damaged: kept as {path.stem}.damaged.json, begun anew.", file=sys.stderr)
        self.content = {**describe(profile), "stages": stages}

    def begin(self, stage: str) -> None:
        """Note an attempt. Until `end` it stands as terminated: the truth if the runner is killed."""
        self.content["stages"].setdefault(stage, []).append({
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"), "minutes": None,
            "peak_gb": None, "exit": None, "reason": "the runner itself was killed", "status": "terminated"})
        write_json(self.path, self.content)

    def end(self, stage: str, **facts) -> None:
        """Complete the last attempt of a stage: minutes, peak_gb, exit, reason, status."""
        self.content["stages"][stage][-1].update(facts)
        write_json(self.path, self.content)

    def minutes(self, stage: str) -> float | None:
        """How long the stage took when it was last done from beginning to end; None if it never was."""
        attempts = reversed(self.content["stages"].get(stage, []))
        return next((a["minutes"] for a in attempts if a["status"] == "done"), None)

    def since(self, stage: str) -> float:
        """When the first of the latest attempts that are not done began (seconds since 1970)."""
        began = time.time()
        for attempt in reversed(self.content["stages"].get(stage, [])):
            if attempt["status"] == "done":
                break
            began = datetime.fromisoformat(attempt["started"]).timestamp()
        return began
