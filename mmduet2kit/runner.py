"""Runs the notebooks in order, each in a fresh kernel; says for each why it runs or not (plan.py decides).

A process of its own executes each stage (`execute`, at the end of this file), and the runner watches it. All
processes of a stage inherit an environment variable, by which they are found wherever they went. The runner
ends them after the stage, however that ended; if the runner itself is killed, the executing process does it.
Exit codes: 0 done, 1 a stage failed, 143 terminated (the same command goes on from there); UserError: 2.
"""

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import psutil

from . import plan
from .errors import UserError
from .files import write_atomic, write_json
from .launch import RELAYS
from .manifest import cores, describe, read_manifest
from .profile import add_profile_arguments, load_profile
from .report import STUDY, TINY, script

TAG = "MMDUET2_STAGE"  # environment variable: "<run folder>:<stage>"
GRACE_S = "MMDUET2_GRACE_S"  # environment variable: from TERM to KILL, time for a training process to save a checkpoint
FAILED, NOT_STARTED = 1, 3  # exit codes of `execute`


def add_arguments(parser) -> None:
    """Arguments of `mmduet2 run`."""
    add_profile_arguments(parser, seeded=False)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--from", dest="start", metavar="NN", help="begin with this notebook; those before stand as is (default: 01)")
    choice.add_argument("--only", metavar="NN", help="only this notebook")
    parser.add_argument("--force", action="store_true", help="run the notebooks though nothing changed")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and why, and stop")


def run(args) -> int:
    """`mmduet2 run`."""
    named = args.profile if "." not in args.profile else str(Path(args.profile).absolute())  # notebooks change folder
    return run_stages(load_profile(args.profile), named=named, start=args.start, only=args.only, force=args.force, dry_run=args.dry_run)


def run_stages(profile, *, notebooks: Path = Path("notebooks"), named: str | None = None, start: str | None = None,
               only: str | None = None, force: bool = False, dry_run: bool = False) -> int:
    """Execute the notebooks of a folder for a profile (from the main thread); returns the exit code.

    named: the profile's name or file, as the notebooks get it (default: its name).
    """
    stages, given = plan.load_stages(notebooks), {"PROFILE": named or profile.name, "INTERACTIVE": False}
    for stage in stages:
        plan.check_parameters(stage, given)
    numbers = [stage.name[:2] for stage in stages]
    wanted = next((name for name in (start, only) if name is not None), numbers[0])
    if (first := wanted.zfill(2)) not in numbers:
        raise UserError(f"There is no notebook {wanted!r}: choose from {', '.join(numbers)}.")
    chosen = stages[numbers.index(first):][:1 if only else None]
    there = {stage.name for stage in chosen} | set(plan.read_done(profile.run_dir, stages))
    for stage in chosen:
        if missing := [name for name in stage.inputs if name not in there]:
            raise UserError(f"{stage.name} reads what {missing[0]} writes, and that has not been done for "
                            f"profile {profile.name}: run it first, or leave out --from and --only.")
    return _Run(profile, stages, given).go(chosen, force, dry_run)


class _Run:
    """One run of one profile."""

    def __init__(self, profile, stages: list[plan.Stage], given: dict) -> None:
        self.profile, self.stages, self.given = profile, stages, given
        self.dir, self.stop = Path(profile.run_dir).resolve(), threading.Event()

    def go(self, chosen: list[plan.Stage], force: bool, dry_run: bool) -> int:
        """Run, or only tell, what must run; print the table; the exit code."""
        if not dry_run:
            self._begin()
        status, ahead, rows = "done", set(), [("notebook", "status", "minutes", "peak GB", "why")]
        for place, stage in enumerate(chosen):
            done = plan.read_done(self.dir, self.stages)
            parts = plan.components(stage, self.given, self.profile, done)
            reason = "--force" if force else plan.why_run(stage, parts, done, self.dir)
            if status != "done":
                row = ("not run", "", "", "an earlier notebook did not finish")
            elif not reason and (waits := ahead.intersection(stage.inputs)):
                row = ("maybe", "", "", f"only if the output of {min(waits)} changes")
            elif not reason:
                row = ("skip", "", "", f"up to date (key {done[stage.name]['key'][:8]})")
            elif dry_run:
                ahead.add(stage.name)
                row = ("run", "", "", reason)
            else:
                print(f"{stage.name}: runs because: {reason}")
                self.later = [one.name for one in chosen[place + 1:]]
                entry = self._stage(stage, parts, done)
                status = entry["status"]
                row = (status, f"{entry['minutes']:.1f}", f"{entry['peak_gb']:.2f}", entry["reason"])
            rows.append((stage.name, *row))
        for name, state, minutes, memory, why in rows:
            print(f"{name:<27} {state:<10} {minutes:>7} {memory:>7}  {why}")
        return {"done": 0, "failed": 1, "terminated": 143}[status]

    def _begin(self) -> None:
        """Take the lock, until this process ends; end what a killed run has left; begin the manifest."""
        for folder in ("done", "executed", "logs", "results"):
            (self.dir / folder).mkdir(parents=True, exist_ok=True)
        self.lock = open(self.dir / ".lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"Profile {self.profile.name} is being run already: wait, or stop it.") from None
        sys.stdout.reconfigure(line_buffering=True)  # each line at once, into a file too
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self.stop.set())
        self.grace = self.profile.launch.grace_s
        end_all(f"{self.dir}:", self.grace)
        self.file = self.dir / "manifest.json"
        self.attempts = read_manifest(self.file)["stages"] if self.file.exists() else {}
        self.manifest, self.took, self.usual = describe(self.profile) | {"stages": self.attempts}, {}, {}
        for path in (STUDY / "manifest.json", TINY / "manifest.json", self.file):  # how long the stages took before, to tell what is left
            with suppress(UserError, KeyError):
                before = read_manifest(path)
                done = [(name, one["minutes"]) for name, tries in before["stages"].items()
                        for one in tries if (before["profile"], one["status"]) == (self.profile.name, "done")]
                self.usual |= dict(done)

    def _stage(self, stage: plan.Stage, parts: dict, done: dict) -> dict:
        """Run one stage, once more if its kernel did not even start; its last entry in the manifest."""
        plan.begin(stage, done, self.dir)
        for _ in range(2):
            entry = {"started": datetime.now(timezone.utc).isoformat(timespec="seconds"), "minutes": None,
                     "peak_gb": None, "exit": None, "reason": "the runner itself was killed",
                     "status": "terminated"}  # the truth, unless it is overwritten below
            self.attempts.setdefault(stage.name, []).append(entry)
            write_json(self.file, self.manifest)
            self._attempt(stage, entry)
            if entry["status"] == "done":
                self.took[stage.name] = entry["minutes"]
                plan.finish(stage, parts, self.dir, exit=0, minutes=entry["minutes"])
            write_json(self.file, self.manifest)
            print(f"{stage.name} {entry['status'].upper()}: {entry['reason']}")
            if entry["status"] != "failed" or entry["exit"] != NOT_STARTED:
                break
        return entry

    def _attempt(self, stage: plan.Stage, entry: dict) -> None:
        """Execute a stage, watch it, end all that is left of it, and complete its entry."""
        tag, limit = f"{self.dir}:{stage.name}", self.profile.stage_timeout_s
        log = self.dir / "logs" / f"{stage.name}.log"
        command = [sys.executable, "-m", __name__, self.dir, stage.path, json.dumps(self.given), str(os.getpid())]
        with open(log, "wb") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self._environment(tag), start_new_session=True)
        tick, minutes, peak, why, began = 0, 0.0, 0.0, "", time.monotonic()
        while process.poll() is None and not why:
            if self.stop.wait(0.2):
                why = "terminated by a signal; the same command goes on from here"
            elif minutes * 60 > limit:
                why = f"longer than stage_timeout_s = {limit} of profile {self.profile.name}"
            elif tick % 10 == 0:  # every two seconds
                peak = max(peak, _memory_gb(tag))
            elif tick % 150 == 149:  # every half minute
                print(f"  {stage.name}: {minutes:.1f} min{self._left(stage, minutes)}  {_last_line(log).rstrip('-')[:130]}")
            tick, minutes = tick + 1, (time.monotonic() - began) / 60
        end_all(tag, self.grace)
        if process.wait() and not why:
            why = _last_line(log) if process.returncode > 0 else "the process that executes it was killed"
        ending = "terminated" if self.stop.is_set() else "failed"
        entry |= {"minutes": round(minutes, 3), "peak_gb": round(peak, 3), "exit": process.returncode,
                  "reason": why or "all cells ran", "status": ending if why else "done"}

    def _left(self, stage: plan.Stage, minutes: float) -> str:
        """At most how many minutes all chosen stages still take, at the pace of those that are done."""
        if not self.usual.keys() >= {stage.name, *self.later}:
            return ""
        known = self.took.keys() & self.usual.keys()
        pace = sum(self.took[name] for name in known) / sum(self.usual[name] for name in known) if known else 1.0
        rest = max(pace * self.usual[stage.name] - minutes, 0) + pace * sum(self.usual[name] for name in self.later)
        return f", at most about {rest:.0f} min to the end;"

    def _environment(self, tag: str) -> dict[str, str]:
        """The user's, with this Python's kernel, and threads such that `parallel` jobs fit side by side."""
        own = {"OMP_NUM_THREADS": str(max(1, cores() // self.profile.parallel)),
               "HF_HUB_OFFLINE": str(int(self.profile.model.path is None))}  # made here, or from a hub?
        return own | os.environ | {
            TAG: tag, GRACE_S: str(self.grace), "SPT_NOENV": "1",  # setproctitle (vLLM) must not write over the tag
            "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0", "JUPYTER_PREFER_ENV_PATH": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def _last_line(log: Path) -> str:
    return log.read_text(errors="replace").rstrip().rpartition("\n")[2]


def tagged(prefix: str) -> list[psutil.Process]:
    """Processes other than this one whose environment carries a tag that begins with `prefix`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # gone, or somebody else's
            if process.pid != os.getpid() and process.environ().get(TAG, "").startswith(prefix):
                found.append(process)
    return found


def end_all(prefix: str, grace: float) -> None:
    """TERM, and after `grace` seconds KILL (twice: a process may be born meanwhile), until none is left; RELAYS a step later."""
    for number, far, seconds in (signal.SIGTERM, RELAYS, grace), (signal.SIGKILL, dict.fromkeys(RELAYS, signal.SIGTERM), 1), (signal.SIGKILL, {}, 10):
        for process in tagged(prefix):
            with suppress(psutil.Error):
                process.send_signal(far.get(process.name(), number))
        deadline = time.monotonic() + seconds
        while tagged(prefix) and time.monotonic() < deadline:
            time.sleep(0.1)


def _memory_gb(prefix: str) -> float:
    """Memory of all tagged processes in GB; shared pages count once where the system tells (PSS)."""
    total = 0
    for process in tagged(prefix):
        with suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.uss)
    return total / 1e9


def execute(run_dir: str, notebook: str, parameters: str, runner: str) -> None:
    """Execute one notebook for a runner (its process number); if that fails, the last line printed says why.

    Papermill's word alone is not trusted: it calls a dead kernel `completed`, and sys.exit(0) a success. So a
    last cell of ours is added, and only if that one has printed something was the end reached.
    """
    threading.Thread(target=_outlive, args=(int(runner),), daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    import nbformat
    import papermill

    target, reason = Path(run_dir) / "executed" / Path(notebook).name, ""
    partial, failed = target.with_suffix(".partial.ipynb"), target.with_suffix(".failed.ipynb")
    book = nbformat.read(notebook, as_version=4)
    book.cells.append(nbformat.v4.new_code_cell("print('the end')"))
    nbformat.write(book, partial)
    try:
        papermill.execute_notebook(partial, partial, parameters=json.loads(parameters), kernel_name="python3",
                                   progress_bar=False, log_output=True, autosave_cell_every=30)
    except Exception as error:  # told in one line; the traceback is in the log
        reason = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
        logging.exception("the notebook failed")
    book = nbformat.read(partial, as_version=4)
    started = any(cell.metadata.get("papermill", {}).get("start_time") for cell in book.cells)
    ended = book.cells.pop().outputs
    if "DeadKernel" in reason or not (reason or ended):
        reason = "stopped before its last cell: sys.exit, or the kernel died (often for lack of memory)"
    failed.unlink(missing_ok=True)
    write_atomic(failed if reason else target, nbformat.writes(book))
    partial.unlink()
    if reason:
        print(" ".join(reason.split())[:300], flush=True)
        os._exit(FAILED if started else NOT_STARTED)  # at once: nothing is printed after the reason
    with suppress(Exception):  # a picture of the run, not the run: never a reason to fail
        write_atomic(target.with_suffix(".html"), script("book").page(book))


def _outlive(runner: int) -> None:
    """Wait until the runner is gone, which before the end means that it was killed: then leave nothing."""
    while os.getppid() == runner:
        time.sleep(0.5)
    end_all(os.environ[TAG], float(os.environ[GRACE_S]))
    os._exit(FAILED)


if __name__ == "__main__":
    execute(*sys.argv[1:])
