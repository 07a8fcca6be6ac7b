"""The runner: what it runs and why, what it says when something dies, and that it leaves nothing behind."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from mmduet2kit import plan, runner
from mmduet2kit.errors import UserError

BOOKS = Path(__file__).parent / "notebooks"


def manifest(tmp_path):
    return json.loads((tmp_path / "run" / "manifest.json").read_text())["stages"]


def left(tmp_path):
    return runner.tagged(f"{(tmp_path / 'run').resolve()}:")


def state(pid):
    """`gone`, or what it does; a zombie is dead too, but the system's first process has not yet noticed."""
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return "gone"


def row(text, stage):
    """A stage's line in the table: status, minutes, memory and reason, with single spaces."""
    return re.sub(" +", " ", next(line for line in text.splitlines() if line.startswith(f"{stage} ")))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def books(tmp_path):
    """A copy of the three good notebooks, to edit."""
    return Path(shutil.copytree(BOOKS / "ok", tmp_path / "books"))


def test_run_then_rerun_does_nothing_then_only_what_changed(run_notebooks, tmp_path, books):
    run = tmp_path / "run"
    code, text = run_notebooks(books)
    assert code == 0 and "not done yet" in text
    assert (run / "results" / "second.txt").read_text() == "first test False"
    for name in ("01_first", "02_second", "03_third"):
        record = json.loads((run / "done" / f"{name}.json").read_text())
        assert record["exit"] == 0 and record["minutes"] > 0
        html = (run / "executed" / f"{name}.html").read_text()
        cells = json.loads((run / "executed" / f"{name}.ipynb").read_text())["cells"]
        assert "<html" in html and not any("the end" in "".join(cell["source"]) for cell in cells)
        attempt, = manifest(tmp_path)[name]
        assert attempt["status"] == "done" and attempt["exit"] == 0 and attempt["peak_gb"] > 0.02
    assert not list(run.rglob("*.partial*"))

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.*")
              if path.name not in ("manifest.json", ".lock")}
    code, text = run_notebooks(books)
    assert code == 0 and text.count("up to date (key") == 3
    assert before == {path: path.stat().st_mtime_ns for path in before}

    # 02 reads from 01 and 03 only from 01: an edit of 02 leaves both alone; prose counts for nothing
    edit(books / "02_second.ipynb", "read_text())", "read_text() + '!')")
    prose = '{"cell_type": "markdown", "id": "m", "metadata": {}, "source": "hm"}'
    edit(books / "03_third.ipynb", '"cells": [', f'"cells": [{prose},')
    code, text = run_notebooks(books, dry_run=True)
    assert code == 0 and text.count(" skip ") == 2
    assert row(text, "02_second").startswith("02_second run notebook changed (")
    assert (run / "results" / "second.txt").read_text() == "first test False"

    # a changed output, a damaged done-file and --force each make a stage run, and the reason is printed
    (run / "results" / "first.txt").write_text("tampered")
    (run / "done" / "02_second.json").write_text('{"key": ')
    code, text = run_notebooks(books, dry_run=True)
    assert row(text, "01_first") == "01_first run its output results/first.txt was changed since"
    assert row(text, "02_second") == "02_second run its done-file is damaged"
    assert row(text, "03_third") == "03_third maybe only if the output of 01_first changes"
    code, text = run_notebooks(books)
    assert code == 0 and (run / "results" / "second.txt").read_text() == "first test False!"
    # 01 wrote the same file again, so 03 did not need to run
    assert len(manifest(tmp_path)["01_first"]) == 2 and len(manifest(tmp_path)["03_third"]) == 1
    code, text = run_notebooks(books, only="3", force=True, dry_run=True)
    assert row(text, "03_third") == "03_third run --force" and "01_first" not in text


def test_a_failing_notebook_is_named_and_later_ones_do_not_run(run_notebooks, tmp_path, books):
    (books / "02_second.ipynb").write_text((BOOKS / "fail" / "01_fail.ipynb").read_text())
    code, text = run_notebooks(books)
    assert code == 1 and "02_second FAILED: ValueError: on purpose" in text
    assert row(text, "03_third").startswith("03_third not run")
    run = tmp_path / "run"
    assert (run / "executed" / "02_second.failed.ipynb").exists()
    assert not (run / "done" / "02_second.json").exists()
    assert manifest(tmp_path)["02_second"][0]["status"] == "failed" and "03_third" not in manifest(tmp_path)


@pytest.mark.parametrize("folder, reason", [("dead", "the kernel died"), ("exit0", "before its last cell")])
def test_papermill_may_call_it_completed_but_it_is_not(run_notebooks, tmp_path, folder, reason):
    code, text = run_notebooks(folder)
    assert code == 1 and reason in text
    assert not list((tmp_path / "run" / "done").iterdir())
    assert not (tmp_path / "run" / "executed" / f"01_{folder}.ipynb").exists()


def test_unknown_parameter_is_an_error(run_notebooks):
    code, text = run_notebooks("unknown")
    assert code == 2 and "has no parameter INTERACTIVE" in text


def test_choice_of_notebooks(run_notebooks, tmp_path):
    assert run_notebooks("ok", start="11")[0] == 2
    code, text = run_notebooks("ok", only="02")
    assert code == 2 and "02_second reads what 01_first writes" in text
    assert run_notebooks(tmp_path / "nowhere")[0] == 2


def test_a_profile_of_ones_own_reaches_the_notebooks(run_notebooks, tmp_path, monkeypatch):
    """`--profile mine.yaml`: notebooks change folder, so they get the whole path."""
    (tmp_path / "mine.yaml").write_text("extends: smoke\nname: mine\n")
    monkeypatch.chdir(tmp_path)
    asked = {"start": None, "only": None, "force": False, "dry_run": False}
    monkeypatch.setattr(runner, "run_stages", lambda profile, named, **_: (profile.name, named))
    name, named = runner.run(SimpleNamespace(profile="mine.yaml", **asked))
    assert (name, named) == ("mine", str(tmp_path / "mine.yaml"))
    assert runner.run(SimpleNamespace(profile="smoke", **asked)) == ("smoke", "smoke")
    code, text = run_notebooks(BOOKS / "ok", named=named, only="01")
    assert code == 0, text
    assert (tmp_path / "run" / "results" / "first.txt").read_text() == f"first {named} False"


def test_a_kernel_that_does_not_start_is_tried_once_more(tmp_path, monkeypatch):
    """And a notebook that fails is not."""
    study = runner._Run(SimpleNamespace(run_dir=tmp_path / "run"), [], {})
    study.file, study.attempts = tmp_path / "run" / "manifest.json", {}
    study.manifest = {"stages": study.attempts}
    for name, code, times in (("01_a", runner.NOT_STARTED, 2), ("02_b", runner.FAILED, 1)):
        ending = {"status": "failed", "exit": code}
        monkeypatch.setattr(study, "_attempt", lambda _, entry, ending=ending: entry.update(ending))
        study._stage(plan.Stage(name, tmp_path, "", (), (), ()), {}, {})
        assert len(manifest(tmp_path)[name]) == times


@pytest.mark.kill
def test_time_limit_and_end_leave_no_background_process(run_notebooks, tmp_path):
    results = tmp_path / "run" / "results"
    code, text = run_notebooks("spawn", timeout=8)
    assert code == 1 and "longer than stage_timeout_s = 8" in text
    assert (results / "spawned.txt").exists() and not left(tmp_path)
    (results / "quick.txt").write_text("")
    assert run_notebooks("spawn")[0] == 0 and not left(tmp_path)
    assert state(int((results / "spawned.txt").read_text())) in ("gone", psutil.STATUS_ZOMBIE)


@pytest.mark.kill
def test_term_in_mid_cell_then_resume(start_runner, run_notebooks, wait_until, tmp_path):
    results = tmp_path / "run" / "results"
    process = start_runner("slow")
    wait_until((results / "begun.txt").exists)
    code, text = run_notebooks("slow")  # a second run of the same profile meanwhile
    assert code == 2 and "is being run already" in text
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=20)
    assert process.returncode == 143 and "the same command goes on" in text and not left(tmp_path)
    assert manifest(tmp_path)["01_slow"][-1]["status"] == "terminated"
    (results / "quick.txt").write_text("")
    assert run_notebooks("slow")[0] == 0
    assert [a["status"] for a in manifest(tmp_path)["01_slow"]] == ["terminated", "done"]
    # begun.txt was written by the first attempt and is an output all the same
    (results / "begun.txt").unlink()
    assert "begun.txt is missing" in run_notebooks("slow", dry_run=True)[1]


@pytest.mark.kill
@pytest.mark.parametrize("victim", ["runner", "executor", "kernel"])
def test_kill_9_leaves_no_orphan(start_runner, wait_until, tmp_path, victim):
    process = start_runner("spawn")
    spawned = tmp_path / "run" / "results" / "spawned.txt"
    wait_until(lambda: spawned.exists() and spawned.read_text())
    tree = [process.pid]  # runner, executor, kernel
    for _ in range(2):
        tree.append(next(child.pid for child in psutil.Process(tree[-1]).children()
                         if "resource_tracker" not in " ".join(child.cmdline())))
    assert len(left(tmp_path)) >= 4
    os.kill(tree[["runner", "executor", "kernel"].index(victim)], signal.SIGKILL)
    code = process.wait(30)
    assert code == (-signal.SIGKILL if victim == "runner" else 1)
    wait_until(lambda: not left(tmp_path), 15)
    if victim != "runner":
        assert "FAILED" in process.stdout.read()
    attempt = manifest(tmp_path)["01_spawn"][-1]
    assert attempt["status"] == ("terminated" if victim == "runner" else "failed")


def test_the_terminal_tells_what_is_left_at_the_pace_of_this_machine():
    """Usual minutes 2, 10, 4; the first took 3: at half as much again the second still takes 15 - 5, the third 6."""
    run = SimpleNamespace(usual={"a": 2.0, "b": 10.0, "c": 4.0}, took={"a": 3.0}, later=["c"])
    assert runner._Run._left(run, SimpleNamespace(name="b"), 5.0) == ", at most about 16 min to the end;"
    assert runner._Run._left(SimpleNamespace(usual={}, took={}, later=[]), SimpleNamespace(name="b"), 5.0) == ""


def test_modules_a_notebook_uses(tmp_path):
    def names(code):
        return {path.relative_to(plan.PACKAGE).as_posix() for path in plan.modules_used(code)}

    assert {"files.py", "errors.py", "__init__.py"} <= names("from mmduet2kit import files")
    assert "runner.py" not in names("from mmduet2kit.files import read_json")
    assert "cli.py" not in names("from mmduet2kit.progress import run_commands")
    assert {"train/sft.py", "chat.py"} <= names("run_commands(PROFILE, [[f'sft --seed 0']])")
    assert {"train/sft.py"} <= names("for c in ('sft', 'grpo'): run_commands(PROFILE, [[f'{c} --seed 0']])")
    assert "runner.py" not in names("run_commands(PROFILE, [[f'sft --seed 0']])")
    assert names("import numpy") == set()
    with pytest.raises(UserError, match="names '07'"):
        book = {"cells": [], "metadata": {"mmduet2": {"inputs": ["07"]}}}
        (tmp_path / "01_a.ipynb").write_text(json.dumps(book))
        plan.load_stages(tmp_path)


def test_files_a_notebook_names_decide_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    book = {"cells": [], "metadata": {"mmduet2": {"files": ["rules/*.yaml"]}}}
    (tmp_path / "01_a.ipynb").write_text(json.dumps(book))
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "claims.yaml").write_text("a: 1")
    stage, profile = plan.load_stages(tmp_path)[0], SimpleNamespace(hash=lambda: "x", seeds=[1])
    before = plan.components(stage, {}, profile, {})
    (tmp_path / "rules" / "claims.yaml").write_text("a: 2")
    after = plan.components(stage, {}, profile, {})
    assert [name for name in after if after[name] != before[name]] == ["file rules/claims.yaml"]


def test_broken_notebook_is_one_sentence(run_notebooks, tmp_path):
    (tmp_path / "01_a.ipynb").write_text("{")
    code, text = run_notebooks(tmp_path)
    assert code == 2 and "01_a.ipynb" in text and "Traceback" not in text
    cell = {"cell_type": "code", "metadata": {}, "source": ["%matplotlib inline"]}
    for book in ({"cells": [cell], "metadata": {}}, {"cells": [{}]}):
        (tmp_path / "01_a.ipynb").write_text(json.dumps(book))
        with pytest.raises(UserError, match="plain Python"):
            plan.load_stages(tmp_path)


def test_a_shared_file_belongs_to_the_stage_that_wrote_last(tmp_path):
    stage = plan.Stage("01_a", tmp_path, "", (), (), ())
    (tmp_path / "shared.csv").write_text("a\nb\n")
    outputs = {"shared.csv": {"sha256": "another", "mtime_ns": 0}}
    done = {"01_a": {"components": {}, "outputs": outputs, "finished": 1.0},
            "02_b": {"components": {}, "outputs": outputs, "finished": 2.0}}
    assert plan.why_run(stage, {}, done, tmp_path) is None
    done["01_a"]["finished"] = time.time()
    assert "was changed" in plan.why_run(stage, {}, done, tmp_path)
