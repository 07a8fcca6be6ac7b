"""What every benchmark here tells: the machine and the day first, then its results, printed and on request written."""

import json
import platform
from datetime import date
from pathlib import Path

import torch

from mmduet2kit.manifest import cores


def head() -> dict[str, str]:
    """Hardware, date and version of torch."""
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, {cores()} cores"
    return {"hardware": hardware, "date": date.today().isoformat(), "torch": torch.__version__}


def write(out: dict, file: Path | None) -> None:
    """Into the file, if one was named; benchmarks in parts call it after each."""
    if file:
        file.write_text(json.dumps(out, indent=1) + "\n")
