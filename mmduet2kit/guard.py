"""One stage, watched: `python -m mmduet2kit.guard JOB.json` runs a notebook and leaves nothing behind.

Two small processes stand between the runner and the kernel. The guard (this file's `main`) starts the worker,
samples memory, keeps the time limit, and whatever happens - the end, a time limit, TERM, the runner killed
with -9 - ends every process that belongs to the stage. The worker (`work`) is papermill. Papermill's word
alone is not trusted: it calls a dead kernel `completed`, and sys.exit(0) a success, so the copy that is
executed gets a first and a last cell of ours, and only the file that the last cell writes says that the
notebook reached its end.

Job (JSON): notebook, partial, finished, failed, html (paths), parameters, tag, timeout_s, runner_pid,
started, ended, result (paths). Result: {"exit", "peak_gb", "ended": bool, "started": bool, "why":
"end|timeout|terminated", "error"}.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from .files import read_json, write_json

TAG = "MMDUET2_STAGE"  # environment variable that marks every process of a stage: "<run folder>:<stage>"
GRACE_S = 10.0  # from TERM to KILL: time for a training process to save a checkpoint
TICK_S = 0.25
MEMORY_S = 2.0
OURS = "mmduet2-runner"  # metadata key of the two cells that are added and taken away again


def tagged(prefix: str) -> list[psutil.Process]:
    """Processes other than this one whose environment carries a tag that begins with `prefix`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(TAG, "").startswith(prefix):
                found.append(process)
        except (psutil.Error, OSError):
            pass  # gone, or somebody else's
    return found


def family(prefix: str) -> list[psutil.Process]:
    """Everything that belongs to a stage: descendants, and tagged processes that left the tree."""
    return list({*psutil.Process().children(recursive=True), *tagged(prefix)})


def end_all(prefix: str, grace: float = GRACE_S) -> int:
    """TERM, then KILL after `grace` seconds, until nothing of the stage is left; how many there were."""
    victims = family(prefix)
    for process in victims:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and any(_alive(p) for p in victims):
        _reap()
        time.sleep(0.05)
    for _ in range(100):
        rest = [p for p in {*victims, *family(prefix)} if _alive(p)]
        if not rest:
            break
        for process in rest:
            _signal(process, signal.SIGKILL)
        _reap()
        time.sleep(0.05)
    return len(victims)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        pass


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _reap(worker: int = 0) -> int | None:
    """Collect ended children (orphans come to the guard); the worker's exit code if it is among them."""
    code = None
    try:
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] == worker:
                code = os.waitstatus_to_exitcode(found[1])
    except ChildProcessError:
        pass
    return code


def _memory_gb(prefix: str) -> float:
    """Memory of the whole stage in GB; shared pages count once where the system tells (PSS)."""
    total = 0
    for process in family(prefix):
        try:
            try:
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                total += int(text.split("\nPss:")[1].split()[0]) * 1024
            except (OSError, IndexError):
                total += process.memory_info().rss
        except psutil.Error:
            pass
    return total / 1e9


def _bind_to_parent(subreaper: bool) -> None:
    """Linux: get a signal when the parent dies, however it dies; `subreaper`: orphans of ours come to us."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(1, signal.SIGTERM if subreaper else signal.SIGKILL)  # PR_SET_PDEATHSIG
        if subreaper:
            libc.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def main(job_path: str) -> int:
    """The guard. Returns 0; what happened stands in the result file."""
    why = None

    def stop(*_):
        nonlocal why
        why = why or "terminated"

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    _bind_to_parent(subreaper=True)
    job = read_json(job_path)
    worker = subprocess.Popen([sys.executable, "-m", f"{__package__}.guard", "--work", job_path],
                              stdin=subprocess.DEVNULL)
    started, peak, next_sample, code = time.monotonic(), 0.0, 0.0, None
    while code is None and why is None:
        time.sleep(TICK_S)
        code = _reap(worker.pid)
        now = time.monotonic()
        if os.getppid() != job["runner_pid"]:
            why = "terminated"  # where there is no PDEATHSIG, and for the moment before it was set
        elif now - started > job["timeout_s"]:
            why = "timeout"
        elif now > next_sample:
            peak, next_sample = max(peak, _memory_gb(job["tag"])), now + MEMORY_S
    worker.returncode = code or 0  # reaped here, so Popen must not look for it
    if code is not None:
        why = why or "end"
    end_all(job["tag"])
    error = Path(job["error"])
    write_json(job["result"], {
        "exit": code, "why": why, "peak_gb": round(peak, 3), "started": Path(job["started"]).exists(),
        "ended": Path(job["ended"]).exists(), "error": error.read_text() if error.exists() else ""})
    return 0


def work(job_path: str) -> int:
    """The worker: papermill on a copy with our two cells; 0 only if it reports no error."""
    _bind_to_parent(subreaper=False)
    job = json.loads(Path(job_path).read_text())
    import logging

    import nbformat
    import papermill

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    notebook = nbformat.read(job["notebook"], as_version=4)
    notebook.cells.insert(0, _our_cell(nbformat, job["started"]))
    notebook.cells.append(_our_cell(nbformat, job["ended"]))
    error = ""
    try:
        papermill.execute_notebook(notebook, job["partial"], parameters=job["parameters"],
                                   kernel_name="python3", progress_bar=False, log_output=True,
                                   autosave_cell_every=30)
    except papermill.PapermillExecutionError as problem:
        error = f"{problem.ename}: {problem.evalue}"
    except Exception as problem:  # told in one line; the traceback is in the log
        error = f"{type(problem).__name__}: {problem}"
        logging.exception("the notebook could not be executed")
    _publish(nbformat, job, good=not error and Path(job["ended"]).exists())
    if error:
        Path(job["error"]).write_text(error)
    return 1 if error else 0


def _our_cell(nbformat, path: str):
    """A cell that leaves a file behind."""
    source = f"import pathlib; pathlib.Path({path!r}).write_text('reached')"
    return nbformat.v4.new_code_cell(source, metadata={OURS: True, "tags": ["remove-cell"]})


def _publish(nbformat, job: dict, good: bool) -> None:
    """Take our cells out again, add the HTML copy, and give the executed notebook its final name."""
    partial = Path(job["partial"])
    if not partial.exists():
        return
    notebook = nbformat.read(partial, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if not cell.metadata.get(OURS)]
    nbformat.write(notebook, partial)
    target = Path(job["finished"] if good else job["failed"])
    os.replace(partial, target)
    if good:
        Path(job["failed"]).unlink(missing_ok=True)
        try:
            from nbconvert import HTMLExporter

            html = Path(job["html"] + ".partial")
            html.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
            os.replace(html, job["html"])
        except Exception as problem:  # a picture of the run, not the run: never a reason to fail
            print(f"no HTML copy: {type(problem).__name__}: {problem}", flush=True)


if __name__ == "__main__":
    sys.exit(work(sys.argv[2]) if sys.argv[1] == "--work" else main(sys.argv[1]))
