"""`mmduet2`: every command has an example, bad input is one line and exit 2, nothing heavy is imported."""

import argparse
import importlib
import os
import shlex
import subprocess
import sys

import pytest

from mmduet2kit import cli
from mmduet2kit.profile import FOLDER


def help_of(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_lists_every_command_with_an_example(capsys):
    text = help_of(capsys)
    assert "example:" in text and all(f"  {name} " in text for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_explains_itself_or_says_that_it_is_not_there(capsys, name):
    try:
        importlib.import_module(cli.COMMANDS[name][0])
    except ModuleNotFoundError:
        assert cli.main([name, "--help"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"mmduet2 {name}: ") and len(error.splitlines()) == 1
    else:
        text = help_of(capsys, name)
        assert f"\nexample: mmduet2 {name}" in text and all(f" {line}\n" in text for line in cli.COMMANDS[name][2].split("\n"))  # none is wrapped


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_examples_are_understood_and_defaults_are_told(name):
    path, _, examples = cli.COMMANDS[name]
    parser = argparse.ArgumentParser()
    importlib.import_module(path).add_arguments(parser)
    for line in examples.split("\n"):
        start, command, *arguments = shlex.split(line)
        assert (start, command) == ("mmduet2", name) and getattr(parser.parse_args(arguments), "seed", 1) == 1
    untold = [action.dest for action in parser._actions if action.default not in (None, False, [], argparse.SUPPRESS) and "default" not in action.help]
    assert untold == [] and all(action.help for action in parser._actions)
    if name == "data":
        actions = next(action.choices for action in parser._actions if action.dest == "action")
        assert {line.split()[2] for line in examples.split("\n")} >= {*actions} - {"make"}


def test_every_profile_is_named_where_one_is_chosen(capsys):
    script = subprocess.run(["bash", "run_all.sh", "--help"], capture_output=True, text=True).stdout
    for text in (script, help_of(capsys, "run"), help_of(capsys, "evaluate")):
        assert all(path.stem in text for path in FOLDER.glob("*.yaml")) and "study@2" in text


@pytest.mark.parametrize("arguments, says", [
    (["data", "look"], "data: look: give the folder of a dataset"), (["data", "build"], "data: build: give a folder of videos"),
    (["data", "look", "x", "--count", "0"], "--count and --workers must be 1 or more")])
def test_what_is_missing_is_named(capsys, arguments, says):
    assert cli.main(arguments) == 2
    told = capsys.readouterr().err
    assert says in told and len(told.splitlines()) == 1


@pytest.mark.parametrize("arguments", [
    [], ["nonsense"], ["run", "--nonsense"], ["run", "--profile", "nonsense"],
    ["run", "--from", "1", "--only", "2"],
    ["figures", "--data", "nowhere"], ["figures", "--profile", "a", "--data", "b"]])
def test_bad_usage_exits_2_without_a_traceback(arguments):
    done = subprocess.run([sys.executable, "-m", "mmduet2kit", *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr and "Traceback" not in done.stderr


def test_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "sft", ("tests_nowhere.module", "text", "example"))
    assert cli.main(["sft"]) == 2 and "needs tests_nowhere" in capsys.readouterr().err

    def needs_vllm(_):
        raise ModuleNotFoundError("No module named 'vllm'", name="vllm")

    monkeypatch.setattr(cli.importlib, "import_module", needs_vllm)
    assert cli.main(["sft"]) == 2 and "needs vllm" in capsys.readouterr().err


COMMAND = """import sys, types
from mmduet2kit import cli
def end(_=None): {does}
cli.importlib.import_module = lambda _: {module}
sys.exit(cli.main(["score"]))"""


def ended(does, module="types.SimpleNamespace(add_arguments=lambda p: None, run=end)", **where):
    code = COMMAND.format(does=does, module=module)
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, **where)


@pytest.mark.parametrize("module", ["end()", "types.SimpleNamespace(add_arguments=lambda p: None, run=end)"])
def test_ctrl_c_while_modules_are_imported_or_a_model_is_loaded(module):
    done = ended("raise KeyboardInterrupt", module)
    assert done.returncode == 130 and done.stderr == ""


def test_a_full_disk_and_a_closed_pipe_are_named_as_the_output():
    with open("/dev/full", "w") as full:
        done = ended("print('x', flush=True)", stdout=full)
    assert done.returncode == 2 and done.stderr.startswith("mmduet2 score: its output: No space left") and done.stderr.count("\n") == 1
    reader, writer = os.pipe()
    os.close(reader)
    done = ended("print('x', flush=True)", stdout=writer)
    os.close(writer)
    assert done.returncode == 2 and done.stderr.startswith("mmduet2 score: its output: Broken pipe") and done.stderr.count("\n") == 1
    done = ended("open('/nowhere/at/all')")
    assert done.returncode == 2 and done.stderr.startswith("mmduet2 score: /nowhere/at/all: No such file")


def test_importing_the_command_line_is_light():
    code = "import sys, mmduet2kit.cli; assert not {'torch', 'papermill', 'yaml'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    code = "import runpy, sys, mmduet2kit.cli as c; c.main = lambda: int('pydantic' in sys.modules); runpy.run_module('mmduet2kit', None, '__main__')"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_doctor_says_what_is_there(capsys):
    code = cli.main(["doctor"])
    text = capsys.readouterr().out
    assert "Python 3.1" in text and "GB free" in text and code == (3 if "\nstop" in "\n" + text else 0)
