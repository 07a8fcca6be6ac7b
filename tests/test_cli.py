"""`mmduet2`: every command has an example, bad input is one line and exit 2, nothing heavy is imported."""

import importlib
import subprocess
import sys

import pytest

from mmduet2kit import cli


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
        assert f"example: mmduet2 {name}" in help_of(capsys, name)


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


def test_importing_the_command_line_is_light():
    code = "import sys, mmduet2kit.cli; assert not {'torch', 'papermill', 'yaml'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_doctor_says_what_is_there(capsys):
    code = cli.main(["doctor"])
    text = capsys.readouterr().out
    assert "Python 3.1" in text and "GB free" in text and code == (3 if "\nstop" in "\n" + text else 0)
