"""Plain progress: a line now and then, with the time left; nothing that floods a log or a notebook."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from .manifest import cores

EVERY_S = 15.0


def lines(what: str) -> Callable[[int, int], None]:
    """A callback (done, total) that prints a line at most every 15 s, and at the end."""
    started = spoken = time.monotonic()

    def say(done: int, total: int) -> None:
        nonlocal spoken
        now = time.monotonic()
        if now - spoken > EVERY_S or done == total:
            spoken = now
            left = (now - started) / done * (total - done)
            print(f"{what}: {done} of {total}, {left:.0f} s left", flush=True)

    return say


def run_commands(chains: Sequence[Sequence[str]], parallel: int) -> None:
    """Run `mmduet2 ...` commands as subprocesses: each chain's one after another, `parallel` chains side by side.

    Training never runs inside a notebook's kernel: its memory (and a GPU's) returns when the subprocess ends. The first
    failure stops what has not begun and raises RuntimeError with the command's last lines.
    """
    failed, lock = threading.Event(), threading.Lock()
    threads = max(1, cores() // max(1, min(parallel, len(chains))))  # jobs side by side share the cores
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}

    def one(command: str) -> None:
        command, tail = command.split(), []
        name = " ".join(part for part in command if not part.startswith("-"))
        child = subprocess.Popen(
            [sys.executable, "-m", "mmduet2kit", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment,
        )
        for line in child.stdout:
            tail = [*tail[-30:], line.rstrip()]
            if line.startswith(("step ", "filming", "decoding", "evaluated", "training")):
                with lock:
                    print(f"[{name}] {line.rstrip()}", flush=True)
        if child.wait():
            failed.set()
            raise RuntimeError(f"mmduet2 {' '.join(command)} ended with {child.returncode}:\n" + "\n".join(tail))

    def all_of(chain: Sequence[str]) -> None:
        for command in chain:
            if not failed.is_set():
                one(command)

    with ThreadPoolExecutor(parallel) as pool:
        for future in [pool.submit(all_of, chain) for chain in chains]:
            future.result()
