"""Plain progress: a line now and then, with the time left; nothing that floods a log or a notebook."""

import os
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from .errors import UserError
from .launch import Cards, gpu_count, processes
from .manifest import cores
from .profile import load_profile

EVERY_S = 15.0
CAUSE = re.compile(r"^(mmduet2 \w+: .+)|^((?:\[rank\d+\]: )?)Traceback .*\n(?:\2[ \t].*\n|(?!\2).*\n)*\2(\S.*)", re.M)  # of a failure


def lines(what: str) -> Callable[[int, int], None]:
    """A callback (done, total) that prints a line after 5 s, then at most every 15 s, and at the end."""
    started = spoken = time.monotonic()

    def say(done: int, total: int) -> None:
        nonlocal spoken
        now = time.monotonic()
        if now - spoken > (5.0 if spoken == started else EVERY_S) or done == total:
            spoken, left = now, (now - started) / done * (total - done)
            print(f"{what}: {done} of {total}, {f'{left:.0f} s' if left < 600 else f'{left / 60:.0f} min'} left", flush=True)

    return say


def telling(what: str, items: Iterable, total: int) -> Iterator:
    """The items, with a line now and then of how many have been worked on; none for what is done within 5 s, none at the end."""
    say = lines(what)
    for done, item in enumerate(items, start=1):
        yield item
        done < total and say(done, total)


def side_by_side(work: Callable, items: Sequence, workers: int, progress: Callable[[int, int], None] | None = None) -> list:
    """[work(item) for item in items] in `workers` processes (1: this one); `progress(done, total)` after each."""
    pool, out = ProcessPoolExecutor(max(1, workers), mp_context=get_context("spawn")), []
    try:
        for result in (pool.map if workers > 1 else map)(work, items):
            out.append(result)
            if progress:
                progress(len(out), len(items))
        return out
    except BrokenProcessPool:
        raise UserError(f"a process died at {items[len(out)]} or one of the next: free memory or leave it out, and start again to go on.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def run_commands(profile: str, chains: Sequence[Sequence[str]], parallel: int | None = None) -> None:
    """Run `mmduet2 ... --profile P` as subprocesses: each chain's one after another, chains side by side.

    profile: a name or path. parallel: how many chains at a time (default: what the profile says). A training that has the
    machine to itself is shared by that many processes with one core each: models this small gain little from threads.
    With GPUs a training takes all of them, by `accelerate launch`, and an evaluation one (launch.py).

    Training never runs inside a notebook's kernel: its memory (and a GPU's) returns when the subprocess ends. The first
    failure stops what has not begun and raises RuntimeError that says why. All output goes to logs, which outlive the kernel.
    """
    settings = load_profile(profile)
    shared = {"base": settings.base.batch, "sft": settings.sft.batch, "grpo": settings.rl.prompts}  # among the ranks
    failed, cards, parallel = threading.Event(), Cards(gpu_count()), parallel or settings.parallel
    jobs = max(1, min(parallel, len(chains)))
    together = min(settings.parallel, cores()) if jobs == 1 else 1
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores() // jobs))}  # jobs side by side share the cores
    if jobs > 1:  # threads that wait must not hold a core that another job needs; one job alone waits faster by spinning
        environment["OMP_WAIT_POLICY"] = "passive"

    def one(command: str) -> None:
        command = [*shlex.split(command), "--profile", profile]
        name = " ".join(part.lstrip("-") for part in command[:-2])
        world = 1 if shared.get(command[0], 1) % together else together
        log = settings.run_dir / "logs" / (re.sub(r"[^\w.]+", "-", name) + ".log")
        with cards.take(command[0]) as seen:
            parts = processes(command, world, cards.count, settings.launch.grace_s)
            code, said = watch(name, log, [(line, environment | place | seen, told) for line, place, told in parts])
        if code:
            failed.set()
            why = (found[1] or found[3]) if (found := CAUSE.search(said)) else said.rstrip().rpartition("\n")[2]
            raise RuntimeError(f"mmduet2 {' '.join(command)} ended with {code}: {why} (all that it said is in {log})")

    def watch(name: str, log: Path, parts: list) -> tuple[int, str]:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as out, open(log, errors="replace") as lines:
            began, rest, code, codes = lines.seek(0, os.SEEK_END), "", 0, [None]
            children = [subprocess.Popen(line, stdin=subprocess.PIPE, stdout=out, stderr=out, env=place, bufsize=0) for line, place, _ in parts]
            for child, (*_, told) in zip(children, parts):
                child.stdin.write(told.encode())
            while None in codes:
                time.sleep(0.1)
                codes = [child.poll() for child in children]
                if not code and (code := max((one or 0 for one in codes), key=abs)):  # the others would wait for this one
                    for child, (*_, told) in zip(children, parts):
                        child.stdin.close() if told else child.terminate()
                *whole, rest = (rest + lines.read()).split("\n")
                for line in whole:
                    if line.startswith(("step ", "filming", "decoding", "evaluated", "training")) or "NOT RUN" in line:
                        print(f"[{name}] {line.rstrip()}\n", end="", flush=True)  # in one piece
            lines.seek(began)
            return code, lines.read()

    def all_of(chain: Sequence[str]) -> None:
        for command in chain:
            if not failed.is_set():
                one(command)

    with ThreadPoolExecutor(parallel) as pool:
        for future in [pool.submit(all_of, chain) for chain in chains]:
            future.result()


def rank() -> int:
    """This process's place among those that train one model together; the first writes."""
    return int(os.environ.get("RANK", 0))


def ranks() -> int:
    """How many they are."""
    return int(os.environ.get("WORLD_SIZE", 1))
