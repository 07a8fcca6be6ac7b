"""What every benchmark here tells: the machine and the day first, then its results, printed and on request written."""

import gc
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable
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


def run(out: dict, names: str, parts: dict[str, tuple[str, Callable[[], dict]]], file: Path | None) -> None:
    """Run the named parts, {name: (its key in `out`, what makes it)}, each in memory that the last has left; write after each, print at the end.

    One that fails says so in its place, and those after it still run (a GPU is lent by the minute); then the exit code is 1.
    """
    failed = []
    for name in names:
        label, go = parts[name]
        gc.collect()  # a model and its optimizer are freed only now
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        try:
            out[label] = go()
        except Exception as error:
            traceback.print_exc()
            out[label] = out.get(label, {}) | {"failed": f"{type(error).__name__}: {error}"[:500]}  # beside what an earlier call found
            failed.append(label)
        print(f"({name}) {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        write(out, file)
    print(json.dumps(out, indent=1))
    if failed:
        sys.exit(1)
