"""Which stages must run, and why: every notebook is a stage, and its done-file says what it was made from.

A stage is up to date when nothing that can change its results has changed: its code cells (not its prose),
its parameters, the profile, the dataset that it names, the package modules it reaches, what the stages before it wrote under
runs/<profile> - and when the files it wrote there itself are unchanged. Its metadata may name the stages it
reads from (else: all before it), and files outside the package that decide its results:
`{"mmduet2": {"inputs": ["01", "03"], "files": ["figures/*.py"]}}`.
"""

import ast
import io
import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path

from .cli import COMMANDS
from .errors import UserError
from .files import STAMP, read_json, sha256_file, sha256_text, write_json

PACKAGE = Path(__file__).parent
NOT_OUTPUT = ("done", "executed", "logs", "manifest.json", ".lock")  # the runner's own


@dataclass(frozen=True)
class Stage:
    """One notebook: its code, the names of its parameters, the stages it reads, the files it names."""

    name: str
    path: Path
    code: str
    parameters: tuple[str, ...]
    inputs: tuple[str, ...]
    files: tuple[str, ...]


def load_stages(folder: Path) -> list[Stage]:
    """The notebooks NN_*.ipynb of a folder in order; UserError when there are none, or one is broken."""
    stages: list[Stage] = []
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        book, before = read_json(path), {stage.name[:2]: stage.name for stage in stages}
        try:
            cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
            tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
            code, defaults = ("\n".join("".join(cell["source"]) for cell in some) for some in (cells, tagged))
            ast.parse(code)  # plain Python, no magics: see modules_used
            ours = {"inputs": before, "files": []} | book["metadata"].get("mmduet2", {})
        except (KeyError, TypeError, AttributeError, SyntaxError) as error:
            raise UserError(f"{path} is not a notebook of format 4 in plain Python: {error!r}") from None
        if unknown := set(ours["inputs"]) - set(before):
            raise UserError(f"{path} names {min(unknown)!r} as an input, which is no notebook before it.")
        stages.append(Stage(path.stem, path, code, tuple(re.findall(r"^(\w+) *=", defaults, re.MULTILINE)),
                            tuple(before[number] for number in ours["inputs"]), tuple(ours["files"])))
    if not stages:
        raise UserError(f"{folder}/ holds no notebooks NN_*.ipynb: start from the folder of the repository.")
    return stages


def check_parameters(stage: Stage, given: dict) -> None:
    """Papermill only warns of an unknown parameter and runs on with the default; here it is an error."""
    if unknown := set(given) - set(stage.parameters):
        raise UserError(f"{stage.path} has no parameter {min(unknown)} in its cell tagged `parameters`.")


def _hash(value) -> str:
    return sha256_text(json.dumps(value, sort_keys=True))


def _result(outputs: dict[str, dict]) -> str:
    """One hash over all files a stage wrote; one that writes the same again changes nothing after it."""
    return _hash({name: entry["sha256"] for name, entry in outputs.items()})


def components(stage: Stage, given: dict, profile, done: dict[str, dict]) -> dict[str, str]:
    """Everything a stage is made from, by name, as hashes; equal components: it need not run again."""
    named = Path(getattr(profile, "dataset", None) or "", STAMP)  # a dataset that is named may be built anew
    return {"notebook": _hash(stage.code), **({"dataset": sha256_file(named)} if named.is_file() else {}), "profile": profile.hash(), "seeds": _hash(profile.seeds), "parameters": _hash(given),
            **{f"module {path.relative_to(PACKAGE.parent)}": sha256_file(path) for path in modules_used(stage.code)},
            **{f"file {path}": sha256_file(path) for pattern in stage.files for path in Path().glob(pattern)},
            **{f"output of {name}": done.get(name, {"result": "none"})["result"] for name in stage.inputs}}


@cache
def modules_used(code: str) -> frozenset[Path]:
    """Modules of the package that notebook code reaches: by import, and, where it uses `run_commands`, those
    of the commands that its strings begin with."""
    finder = ModuleFinder(path=[str(PACKAGE.parent), str(PACKAGE.parent / "figures")])
    finder.load_module("__main__", io.StringIO(code), "", ("", "r", 1))  # 1: Python source
    if "run_commands" in code:
        for command in set(COMMANDS).intersection(re.findall(r"""["'](\w+)""", code)):
            finder.import_hook(COMMANDS[command][0])
    return frozenset(Path(module.__file__) for module in finder.modules.values() if module.__file__)


def read_done(run_dir: Path, stages: list[Stage]) -> dict[str, dict]:
    """Done-files by stage; one that is damaged counts as not done."""
    done = {}
    for stage in stages:
        with suppress(UserError, KeyError, TypeError, AttributeError):
            record = read_json(run_dir / "done" / f"{stage.name}.json")
            if (record["key"], record["result"]) == (_hash(record["components"]), _result(record["outputs"])):
                done[stage.name] = record
    return done


def why_run(stage: Stage, parts: dict[str, str], done: dict[str, dict], run_dir: Path) -> str | None:
    """The reason to run a stage, naming what decided; None when it is up to date."""
    if stage.name not in done:
        there = (run_dir / "done" / f"{stage.name}.json").exists()
        return "its done-file is damaged" if there else "not done yet"
    old = done[stage.name]["components"]
    changed = [name for name in sorted({*old, *parts}) if old.get(name) != parts.get(name)]
    if changed:
        name, more = changed[0], f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return f"{name} changed ({old.get(name, 'none')[:8]} -> {parts.get(name, 'none')[:8]}){more}"
    for name, entry in done[stage.name]["outputs"].items():
        path, writers = run_dir / name, [one for one in done if name in done[one]["outputs"]]
        if stage.name != max(writers, key=lambda one: done[one]["finished"]):
            continue  # a later stage added to the file: that stage checks it
        if not path.is_file():
            return f"its output {name} is missing"
        if path.stat().st_mtime_ns != entry["mtime_ns"] and sha256_file(path) != entry["sha256"]:
            return f"its output {name} was changed since"
    return None


def begin(stage: Stage, done: dict[str, dict], run_dir: Path) -> None:
    """Note that the stage is not done from now on; the note of an attempt that was cut short stays."""
    note = run_dir / "logs" / f"{stage.name}.begun"
    if not note.exists():
        write_json(note, list(done.get(stage.name, {"outputs": []})["outputs"]))
    (run_dir / "done" / f"{stage.name}.json").unlink(missing_ok=True)


def finish(stage: Stage, parts: dict[str, str], run_dir: Path, **facts) -> None:
    """Write the done-file. Outputs: what was written since the note, and last time's that still stand."""
    note, outputs = run_dir / "logs" / f"{stage.name}.begun", {}
    since, earlier = note.stat().st_mtime_ns, read_json(note)
    for path in filter(Path.is_file, run_dir.rglob("*")):
        name, written = path.relative_to(run_dir), path.stat().st_mtime_ns
        own = name.parts[0] in NOT_OUTPUT or path.suffix == ".partial"
        if not own and (written >= since or name.as_posix() in earlier):
            outputs[name.as_posix()] = {"sha256": sha256_file(path), "mtime_ns": written}
    record = facts | {"key": _hash(parts), "result": _result(outputs), "finished": time.time()}
    write_json(run_dir / "done" / f"{stage.name}.json", record | {"components": parts, "outputs": outputs})
    note.unlink()
