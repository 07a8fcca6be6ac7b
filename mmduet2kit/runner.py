"""Runs the notebooks in order, each in a fresh kernel, and says for each why it runs or not.

What decides is in plan.py, what watches a running stage in guard.py. Here: the order, the lock, the
environment, progress, the manifest and the table at the end. Exit codes: 0 done, 1 a stage failed, 143
terminated (the same command goes on from there); UserError (exit 2) for bad input.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from . import guard, plan
from .errors import UserError
from .files import read_json, write_json
from .manifest import Manifest, cores

say = partial(print, flush=True)
QUIET_S = 30  # at least so long between progress lines when nobody watches a terminal
EXIT = {"done": 0, "failed": 1, "terminated": 143}


def add_arguments(parser) -> None:
    """Arguments of `mmduet2 run`."""
    parser.add_argument("--profile", default="tiny", help="smoke, tiny (default), study, single_gpu or paper")
    parser.add_argument("--from", dest="start", metavar="NN", help="begin here; those before stand as is")
    parser.add_argument("--only", metavar="NN", help="only this notebook")
    parser.add_argument("--force", action="store_true", help="run the notebooks though nothing changed")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and why, and stop")


def run(args) -> int:
    """`mmduet2 run`."""
    from .profile import load_profile

    return run_stages(load_profile(args.profile), start=args.start, only=args.only, force=args.force,
                      dry_run=args.dry_run)


def run_stages(profile, *, notebooks: Path = Path("notebooks"), start: str | None = None,
               only: str | None = None, force: bool = False, dry_run: bool = False,
               parameters: dict | None = None) -> int:
    """Execute the notebooks of a folder for a profile (from the main thread); returns the exit code."""
    stages = plan.load_stages(notebooks)
    given = {"PROFILE": profile.name, "INTERACTIVE": False, **(parameters or {})}
    for stage in stages:
        plan.check_parameters(stage, given)
    work = _Run(profile, stages, given, force)
    chosen = _chosen(stages, start, only)
    done, names = plan.read_done(work.dir, stages)[0], {stage.name for stage in chosen}
    for stage in chosen:
        if missing := next((name for name in stage.inputs if name not in names and name not in done), None):
            raise UserError(f"{stage.name} reads what {missing} writes, and that has not been done for "
                            f"profile {profile.name}: run it first, or leave out --from and --only.")
    if dry_run:
        work.print_plan(chosen)
        return 0
    return work.go(chosen)


def _chosen(stages: list[plan.Stage], start: str | None, only: str | None) -> list[plan.Stage]:
    if start and only:
        raise UserError("--from and --only exclude each other: give one of them.")
    if not (wanted := start or only):
        return stages
    numbers = [stage.name.split("_")[0] for stage in stages]
    place = next((i for i, s in enumerate(stages) if wanted.zfill(2) in (s.name, numbers[i])), None)
    if place is None:
        raise UserError(f"There is no notebook {wanted!r}: choose from {', '.join(numbers)}.")
    return stages[place:place + 1] if only else stages[place:]


class _Run:
    """One run of one profile."""

    def __init__(self, profile, stages: list[plan.Stage], given: dict, force: bool) -> None:
        self.profile, self.stages, self.given, self.force = profile, stages, given, force
        self.dir = Path(profile.run_dir)
        self.tag = f"{self.dir.resolve()}:"
        self.stop = False
        self.rows: list[tuple[str, ...]] = []

    def _decide(self, stage: plan.Stage) -> tuple[str | None, dict[str, str], dict[str, dict]]:
        """Why the stage must run now (None: it need not), what it is made from, and all done-files."""
        done, damaged = plan.read_done(self.dir, self.stages)
        parts = plan.components(stage, self.given, self.profile, done)
        return "--force" if self.force else plan.why_run(stage, parts, done, damaged, self.dir), parts, done

    def print_plan(self, chosen: list[plan.Stage]) -> None:
        """One line per stage: run, skip or maybe, and why."""
        ahead: list[str] = []
        for stage in chosen:
            reason, _, done = self._decide(stage)
            if reason:
                ahead.append(stage.name)
                say(f"  run   {stage.name}: {reason}")
            elif waits := next((name for name in stage.inputs if name in ahead), None):
                say(f"  maybe {stage.name}: only if the output of {waits} changes")
            else:
                say(f"  skip  {stage.name}: up to date (key {done[stage.name]['key'][:8]})")

    def go(self, chosen: list[plan.Stage]) -> int:
        """Run under the lock of the run folder; the exit code."""
        for folder in ("done", "executed", "logs", "results"):
            (self.dir / folder).mkdir(parents=True, exist_ok=True)
        signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        with open(self.dir / ".lock", "a+") as lock:
            _take(lock, self.profile.name)
            handlers = {number: signal.signal(number, self._terminate) for number in signals}
            try:
                if left := guard.end_all(self.tag):
                    say(f"Ended {left} processes that a killed run of this profile had left.")
                self.manifest = Manifest(self.dir / "manifest.json", self.profile)
                say(f"Profile {self.profile.name}: {len(chosen)} notebooks, results in {self.dir}/")
                self.print_plan(chosen)
                status = self._all(chosen)
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        self._table()
        return EXIT[status]

    def _terminate(self, *_) -> None:
        self.stop = True

    def _all(self, chosen: list[plan.Stage]) -> str:
        status = "done"
        for index, stage in enumerate(chosen):
            if status == "done" and self.stop:
                status = "terminated"
            if status != "done":
                self.rows.append((stage.name, "not run", "", "", "an earlier notebook did not finish"))
                continue
            reason, parts, done = self._decide(stage)
            if reason:
                say(f"{stage.name}: runs because: {reason}")
                status = self._stage(stage, parts, done, [s.name for s in chosen[index + 1:]])
            else:
                key = done[stage.name]["key"][:8]
                self.rows.append((stage.name, "skipped", "", "", f"up to date (key {key})"))
        return status

    def _stage(self, stage: plan.Stage, parts: dict, done: dict, later: list[str]) -> str:
        """Run one stage, once more if its kernel did not even start, and write down how it went."""
        done_file = self.dir / "done" / f"{stage.name}.json"
        done_file.unlink(missing_ok=True)
        before = plan.snapshot(self.dir)
        for attempt in (1, 2):
            self.manifest.begin(stage.name)
            began = time.monotonic()
            result = self._attempt(stage, later)
            minutes = round((time.monotonic() - began) / 60, 3)
            status, reason = self._verdict(result)
            if status == "done":
                since = self.manifest.since(stage.name)
                record = plan.done_record(stage, parts, self.dir, before, since, done)
                write_json(done_file, record | {"exit": 0, "minutes": minutes})
            self.manifest.end(stage.name, minutes=minutes, peak_gb=result["peak_gb"], exit=result["exit"],
                              reason=reason, status=status)
            if attempt == 2 or status != "failed" or result["started"] or result["why"] != "end":
                break
            say(f"{stage.name}: the kernel did not start ({reason}); trying once more.")
        self.rows.append((stage.name, status, f"{minutes:.1f}", f"{result['peak_gb']:.2f}", reason))
        if status == "failed":
            say(f"{stage.name} FAILED: {reason}\n  log: {self.dir}/logs/{stage.name}.log")
            if (copy := self.dir / "executed" / f"{stage.name}.failed.ipynb").exists():
                say(f"  notebook as far as it came: {copy}")
        elif status == "terminated":
            say(f"{stage.name}: terminated; the same command goes on from here.")
        else:
            say(f"{stage.name}: done in {minutes:.1f} min, peak memory {result['peak_gb']:.2f} GB")
        return status

    def _verdict(self, result: dict) -> tuple[str, str]:
        """Status and reason: done only if the last cell was reached and papermill saw no error."""
        if result["why"] == "terminated":
            return ("terminated" if self.stop else "failed"), "terminated by a signal"
        if result["why"] == "timeout":
            limit = f"stage_timeout_s = {self.profile.stage_timeout_s} of profile {self.profile.name}"
            return "failed", f"longer than {limit}"
        if "DeadKernel" in result["error"] or (result["exit"] and not result["error"]):
            return "failed", "the kernel died; often that means that memory ran out"
        if result["error"]:
            return "failed", result["error"].splitlines()[0][:300]
        if not result["ended"] or result["exit"] != 0:
            return "failed", "the notebook stopped before its last cell (sys.exit, or the kernel died)"
        return "done", "all cells ran"

    def _attempt(self, stage: plan.Stage, later: list[str]) -> dict:
        """Start the guard of one stage and show progress until it ends; its result (see guard.py)."""
        logs, executed = self.dir.resolve() / "logs", self.dir.resolve() / "executed"
        fresh = {name: logs / f"{stage.name}.{name}" for name in ("started", "ended", "result", "error")}
        fresh["partial"] = executed / f"{stage.name}.ipynb.partial"
        for path in fresh.values():
            path.unlink(missing_ok=True)
        paths = fresh | {"notebook": stage.path, "finished": executed / f"{stage.name}.ipynb",
                         "failed": executed / f"{stage.name}.failed.ipynb",
                         "html": executed / f"{stage.name}.html"}
        job = {name: str(path) for name, path in paths.items()} | {
            "parameters": self.given, "tag": f"{self.tag}{stage.name}", "runner_pid": os.getpid(),
            "timeout_s": self.profile.stage_timeout_s}
        job_path = write_json(logs / f"{stage.name}.job.json", job)
        with open(logs / f"{stage.name}.log", "wb") as log:
            process = subprocess.Popen([sys.executable, "-m", f"{__package__}.guard", str(job_path)],
                                       stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                       env=self._environment(job["tag"]), start_new_session=True)
        progress, told = _Progress(logs / f"{stage.name}.log", stage, self.manifest, later), False
        while process.poll() is None:
            if self.stop and not told:
                process.terminate()
                told = True
            progress.tick()
            time.sleep(0.1)
        try:
            return read_json(paths["result"])
        except UserError:  # the guard itself was killed: nothing is known, and nothing may be left
            guard.end_all(job["tag"])
            return {"exit": process.returncode, "why": "terminated" if self.stop else "end", "peak_gb": 0.0,
                    "started": True, "ended": False, "error": "the process that watches it was killed"}

    def _environment(self, tag: str) -> dict[str, str]:
        threads = str(max(1, cores() // max(1, self.profile.parallel)))
        env = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **os.environ}  # the user's win
        env |= {guard.TAG: tag, "MMDUET2_PROFILE": self.profile.name, "TOKENIZERS_PARALLELISM": "false",
                "PYTHONHASHSEED": "0", "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, no other
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        if self.profile.model.path is None:  # the model is made here, so nothing may come from a hub
            env["HF_HUB_OFFLINE"] = "1"
        return env

    def _table(self) -> None:
        rows = [("notebook", "status", "minutes", "peak GB", "why"), *self.rows]
        wide = [max(len(row[i]) for row in rows) for i in range(4)]
        say()
        for name, status, minutes, memory, why in rows:
            say(f"{name:<{wide[0]}}  {status:<{wide[1]}}  {minutes:>{wide[2]}}  {memory:>{wide[3]}}  {why}")


def _take(lock, profile: str) -> None:
    """Hold the lock until this process ends, however it ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        raise UserError(f"Profile {profile} is being run by process {lock.read().strip() or '?'} already: "
                        "wait for it, or stop it.") from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()


class _Progress:
    """Plain lines: on a terminal one that is rewritten every second, else one every 30 s."""

    def __init__(self, log: Path, stage: plan.Stage, manifest: Manifest, later: list[str]) -> None:
        self.log, self.stage = open(log, encoding="utf-8", errors="replace"), stage
        self.began = self.shown = time.monotonic()
        self.cells, self.last = 0, ""
        self.here, self.later = manifest.minutes(stage.name), [manifest.minutes(name) for name in later]

    def tick(self) -> None:
        """Print a line if it is time: minutes, cell, time left (from earlier runs), the log's last words."""
        now, terminal = time.monotonic(), sys.stdout.isatty()
        if now - self.shown < (1 if terminal else QUIET_S):
            return
        self.shown, minutes = now, (now - self.began) / 60
        for line in filter(str.strip, self.log.read().splitlines()):
            self.cells += line.startswith("Executing Cell")
            self.last = self.last if line.startswith(("Executing Cell", "Ending Cell")) else line.strip()
        cell = min(max(1, self.cells - 2), self.stage.cells)  # not our first cell, not papermill's parameters
        text = f"  {self.stage.name}: {minutes:.1f} min, cell {cell} of {self.stage.cells}"
        if self.here is not None:
            left = max(0.1, self.here - minutes)
            text += f", about {left:.1f} min left"
            text += f", {left + sum(self.later):.0f} min in all" if None not in self.later else ""
        text += f"  {self.last[:60]}"
        say(f"\r{text:<118}"[:119], end="") if terminal else say(text)
