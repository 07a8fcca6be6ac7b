"""Which stages must run, and why: every notebook is a stage, and its done-file says what it was made from.

A stage is up to date when nothing that can change its results has changed: its code cells (not its prose),
its parameters, the profile, the package modules it uses (found by following imports; comments and docstrings
do not count), what the stages before it wrote - and when the files it wrote itself are still there,
unchanged.

A notebook may name the stages it reads from in its metadata, `{"mmduet2": {"inputs": ["01", "03"]}}`; one
that does not is taken to read from all stages before it. Files outside the package that decide its
results are named there too, `"files": ["figures/*.py"]`. What one stage passes to another is files under
runs/<profile>, nothing else.
"""

import ast
import json
import re
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .cli import COMMANDS
from .errors import UserError
from .files import read_json, sha256_file, sha256_text

PACKAGE = Path(__file__).parent
LAUNCHER = "progress.py"  # starts `mmduet2` commands for others, who name them as strings
NOT_OUTPUT = ("done", "executed", "logs", "manifest.json", ".lock")  # the runner's own


@dataclass(frozen=True)
class Stage:
    """One notebook: its code with tags, the names of its parameters, the stages it reads, its code cells."""

    name: str
    path: Path
    code: str
    parameters: tuple[str, ...]
    inputs: tuple[str, ...]
    cells: int
    files: tuple[str, ...] = ()


def load_stages(folder: Path) -> list[Stage]:
    """The notebooks NN_*.ipynb of a folder in order; UserError when there are none, or one is broken."""
    stages: list[Stage] = []
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        book, names = read_json(path), [stage.name for stage in stages]
        try:
            cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
            code = [(cell["metadata"].get("tags", []), "".join(cell["source"])) for cell in cells]
            ours = book["metadata"].get("mmduet2", {})
            wanted, files = ours.get("inputs", names), ours.get("files", [])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a notebook of format 4 ({error!r}): save it anew.") from None
        inputs = [next((n for n in names if n == w or n.startswith(f"{w}_")), w) for w in wanted]
        if unknown := set(inputs) - set(names):
            raise UserError(f"{path} names {min(unknown)!r} as an input, which is no notebook before it.")
        stages.append(Stage(path.stem, path, json.dumps(code), _parameters(path, code), tuple(inputs),
                            len(cells), tuple(files)))
    if not stages:
        raise UserError(f"{folder}/ holds no notebooks NN_*.ipynb: start from the folder of the repository.")
    return stages


def _parameters(path: Path, code: list) -> tuple[str, ...]:
    tagged = [source for tags, source in code if "parameters" in tags]
    try:
        lines = ast.parse(tagged[0]).body if tagged else []
    except SyntaxError as error:
        raise UserError(f"{path}: the cell tagged `parameters` does not parse ({error}).") from None
    return tuple(node.id for line in lines for node in ast.walk(line)
                 if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))


def check_parameters(stage: Stage, given: dict) -> None:
    """Papermill only warns of an unknown parameter and runs on with the default; here it is an error."""
    for name in given:
        if name not in stage.parameters:
            raise UserError(f"{stage.path} has no parameter {name}: its cell tagged `parameters` must assign "
                            f"it (it assigns {', '.join(stage.parameters) or 'nothing'}).")


def components(stage: Stage, given: dict, profile, done: dict[str, dict]) -> dict[str, str]:
    """Everything a stage is made from, by name, as hashes; equal components: it need not run again."""
    parts = {"notebook": sha256_text(stage.code), "profile": profile.hash(),
             "parameters": sha256_text(json.dumps(given, sort_keys=True))}
    parts |= {f"module {path.relative_to(PACKAGE).as_posix()}": _source_hash(path)
              for path in sorted(modules_used(tuple(source for _, source in json.loads(stage.code))))}
    parts |= {f"file {path}": sha256_file(path)
              for pattern in stage.files for path in sorted(Path().glob(pattern)) if path.is_file()}
    return parts | {f"output of {name}": result_hash(done.get(name)) for name in stage.inputs}


def result_hash(record: dict | None) -> str:
    """One hash over all files a stage wrote; one that writes the same again changes nothing after it."""
    outputs = (record or {}).get("outputs", {})
    return sha256_text(json.dumps(sorted((name, entry["sha256"]) for name, entry in outputs.items())))


@cache
def _tree(path: Path) -> ast.Module:
    """A module's syntax tree without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, False):
            node.body.pop(0)
    return tree


@cache
def _source_hash(path: Path) -> str:
    return sha256_text(ast.dump(_tree(path))) if path.suffix == ".py" else sha256_file(path)


def _mentioned(tree: ast.AST, package: str, launcher: bool = False) -> set[str]:
    """Dotted names under mmduet2kit that code imports, or needs for a subprocess: a string `sft --profile ..`
    stands for that command's module; `mmduet2` alone, as in a list of arguments, for all of them."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split()
            if len(words) > 1 and words[0] in COMMANDS and words[1].startswith("--"):
                names.add(COMMANDS[words[0]][0])
            elif node.value in ("mmduet2", PACKAGE.name) and not launcher:
                names.add(f"{PACKAGE.name}.cli")
            elif re.fullmatch(rf"{PACKAGE.name}(\.\w+)+(:\w+)?", node.value):
                names.add(node.value.split(":")[0])
    return {name for name in names if name.split(".")[0] == PACKAGE.name}


def _dotted(path: Path) -> str:
    return ".".join([PACKAGE.name, *path.relative_to(PACKAGE).parts])


@cache
def modules_used(cells: tuple[str, ...]) -> frozenset[Path]:
    """Files of the package that notebook code can reach: modules by import, and data files beside them."""
    try:
        todo = set().union(*(_mentioned(ast.parse(cell), "") for cell in cells))
    except SyntaxError:  # magics: take the whole package, too much rather than too little
        todo = {_dotted(path.with_suffix("")) for path in PACKAGE.rglob("*.py")}
    found: set[Path] = set()
    while todo:
        parts = todo.pop().split(".")[1:]
        for depth in range(len(parts) + 1):
            base = PACKAGE.joinpath(*parts[:depth])
            for path in (base / "__init__.py", base.with_suffix(".py") if depth else base):
                if path.is_file() and path not in found:
                    found.add(path)
                    todo |= _mentioned(_tree(path), _dotted(path.parent), path.name == LAUNCHER)
    data = {path for folder in {module.parent for module in found} for path in folder.iterdir()
            if path.is_file() and path.suffix not in (".py", ".pyc")}
    return frozenset(found | data)


def read_done(run_dir: Path, stages: list[Stage]) -> tuple[dict[str, dict], set[str]]:
    """Done-files by stage, and the stages whose done-file is damaged (those count as not done)."""
    done, damaged = {}, set()
    for stage in stages:
        path = run_dir / "done" / f"{stage.name}.json"
        if path.exists():
            try:
                record = read_json(path)
                if record["key"] != sha256_text(json.dumps(record["components"], sort_keys=True)):
                    raise UserError(f"{path} does not match its own key")
                result_hash(record), record["finished"]
                done[stage.name] = record
            except (UserError, KeyError, TypeError, AttributeError):
                damaged.add(stage.name)
    return done, damaged


def why_run(stage: Stage, parts: dict[str, str], done: dict[str, dict], damaged: set[str],
            run_dir: Path) -> str | None:
    """The reason to run a stage, naming what decided; None when it is up to date."""
    if stage.name in damaged:
        return "its done-file is damaged"
    if stage.name not in done:
        return "not done yet"
    record = done[stage.name]
    old = record["components"]
    changed = [f"{name} {'is new' if name not in old else 'is gone' if name not in parts else 'changed'} "
               f"({old.get(name, 'none')[:8]} -> {parts.get(name, 'none')[:8]})"
               for name in sorted({*old, *parts}) if old.get(name) != parts.get(name)]
    if changed:
        return changed[0] + (f" and {len(changed) - 1} more" if len(changed) > 1 else "")
    for name, entry in record["outputs"].items():
        last = max((r["finished"], s) for s, r in done.items() if name in r["outputs"])[1]
        if last == stage.name:  # a file that a later stage added to is that stage's to check
            path = run_dir / name
            if not path.is_file():
                return f"its output {name} is missing"
            if (path.stat().st_size, path.stat().st_mtime_ns) != (entry["size"], entry["mtime_ns"]):
                if sha256_file(path) != entry["sha256"]:
                    return f"its output {name} was changed since"
    return None


def snapshot(run_dir: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every result file of a run, by path relative to the run folder."""
    found = {}
    for path in run_dir.rglob("*"):
        name = path.relative_to(run_dir)
        if path.is_file() and name.parts[0] not in NOT_OUTPUT and path.suffix != ".partial":
            found[name.as_posix()] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


def done_record(stage: Stage, parts: dict[str, str], run_dir: Path, before: dict, since: float,
                done: dict[str, dict]) -> dict:
    """What the done-file says. Its outputs: what changed while it ran, what it had written when last done,
    and what appeared since the first of a row of attempts cut short began and no other stage claims."""
    others = {name for other, record in done.items() if other != stage.name for name in record["outputs"]}
    own = done.get(stage.name, {"outputs": {}})["outputs"]
    outputs = {name: {"sha256": sha256_file(run_dir / name), "size": size, "mtime_ns": mtime}
               for name, (size, mtime) in snapshot(run_dir).items()
               if before.get(name) != (size, mtime) or name in own
               or (mtime >= since * 1e9 and name not in others)}
    return {"stage": stage.name, "key": sha256_text(json.dumps(parts, sort_keys=True)),
            "finished": time.time(), "components": parts, "outputs": outputs}
