"""Shared by all tests: the repository as working directory, and the runner in a process of its own."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

DRIVER = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from mmduet2kit.errors import UserError
from mmduet2kit.runner import run_stages
run_dir, books, options = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
profile = SimpleNamespace(name="test", run_dir=run_dir, results=run_dir / "results", seeds=[0], parallel=1,
                          stage_timeout_s=options.pop("timeout", 60), hash=lambda: "profile-hash",
                          model=SimpleNamespace(path=None, attention="sdpa"), launch=SimpleNamespace(grace_s=10.0), model_dump=lambda **_: {})
try:
    sys.exit(run_stages(profile, notebooks=books, **options))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch):
    """Paths in the kit are relative to the repository."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def start_runner(tmp_path):
    """start(folder, **options) -> Popen of a runner on tests/notebooks/<folder> (or any folder)."""
    started = []

    def start(folder, **options):
        books = folder if isinstance(folder, Path) else ROOT / "tests" / "notebooks" / folder
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tmp_path / "run"), str(books), json.dumps(options)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


@pytest.fixture
def run_notebooks(start_runner):
    """run(folder, **options) -> (exit code, what was printed)."""
    def run(folder, **options):
        process = start_runner(folder, **options)
        text, _ = process.communicate(timeout=100)
        return process.returncode, text

    return run


@pytest.fixture
def wait_until():
    """wait(condition, seconds): poll until the condition holds, else fail."""
    def wait(condition, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.05)

    return wait
