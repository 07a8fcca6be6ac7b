"""Static rules for the notebooks: structure, literal parameters, thin cells, no outputs, links, headings, exercises."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

from mmduet2kit import plan, show
from mmduet2kit.profile import load_profile
from mmduet2kit.report import script

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NAMES = [
    "01_dataset_construction", "02_chat_template", "03_base_and_sft", "04_pauc_and_reward", "05_multi_turn_grpo",
    "06_evaluation", "07_reward_ablation", "08_frame_interval_ablation", "09_training_dynamics", "10_report",
]  # fmt: skip
CELL_LINES, BOOK_LINES, COLUMNS = 25, 150, 88
PRACTICE = {"key", "exercise", "solution"}

every = pytest.mark.parametrize("name", NAMES)


def book(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def cells(name, kind):
    """(tags, source) of the notebook's cells of a kind, in order."""
    return [(set(cell["metadata"].get("tags", [])), "".join(cell["source"]))
            for cell in book(name)["cells"] if cell["cell_type"] == kind]  # fmt: skip


def headings(name):
    text = "\n".join(source for _, source in cells(name, "markdown"))
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.+)$", text, re.M)]


def test_exactly_these_notebooks():
    assert [path.stem for path in sorted(FOLDER.glob("*.ipynb"))] == NAMES


@every
def test_file_is_stripped_and_regular(name):
    text, content = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"), book(name)
    assert text == json.dumps(content, indent=1, ensure_ascii=False) + "\n"  # as nbformat writes it: small diffs
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert content["metadata"]["kernelspec"] == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert set(content["metadata"]) <= {"kernelspec", "language_info", "mmduet2"}
    ids = [cell["id"] for cell in content["cells"]]
    assert ids == [f"nb{name[:2]}-{k:02d}" for k in range(len(ids))]
    for cell in content["cells"]:
        tags = cell["metadata"].get("tags", [])
        folded = {"jupyter": {"source_hidden": True}, "tags": tags}
        assert cell["metadata"] == folded if tags in (["key"], ["solution"]) else set(cell["metadata"]) <= {"tags"}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@every
def test_begins_with_purpose_objectives_and_facts(name):
    first = book(name)["cells"][0]
    title, purpose, able, bullets, facts = "".join(first["source"]).split("\n\n")
    assert first["cell_type"] == "markdown" and title.startswith(f"# {int(name[:2])}. ")
    assert len(re.findall(r"[.!?](?=\s|$)", purpose)) == 2  # two sentences
    assert able == "You will be able to" and len(re.findall(r"^- ", bullets, re.M)) == 3
    rows = dict(re.findall(r"^\| (\w+) \| (.+) \|$", facts, re.M))
    assert list(rows) == ["Paper", "Needs", "Inputs", "Outputs", "Previous", "Next", "Words"]
    assert rows["Words"] == "[glossary](../README.md#glossary)" and "\n## Glossary\n" in (FOLDER.parent / "README.md").read_text()
    place = NAMES.index(name)
    for label, other in (("Previous", place - 1), ("Next", place + 1)):
        near = NAMES[other] if 0 <= other < len(NAMES) else None
        assert rows[label] == (f"[{near}]({near}.ipynb)" if near else "none")


@every
def test_headings_are_in_order_and_there_is_one_title(name):
    levels = [level for level, _ in headings(name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))
    titles = [title for _, title in headings(name)]
    assert len(set(titles)) == len(titles) and titles[-1] == "Summary" and "Exercises" in titles


@every
def test_parameters_are_two_literals(name):
    code = cells(name, "code")
    tagged = [source for tags, source in code if "parameters" in tags]
    assert code[0][1] == tagged[0] and len(tagged) == 1
    found = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(tagged[0]).body}
    assert found == {"PROFILE": "tiny", "INTERACTIVE": False}
    assert "show.begin(PROFILE)" in code[1][1]  # prints the versions


@every
def test_code_is_thin(name):
    lines = 0
    for tags, source in cells(name, "code"):
        tree, length = ast.parse(source), len(source.splitlines())  # no `!` or `%`: those do not parse
        assert length <= CELL_LINES, source
        assert not source.endswith("\n") and not re.search(r"[ \t]+$", source, re.M)
        lines += length
        nodes = {type(node) for node in ast.walk(tree)}
        assert tags & PRACTICE or not nodes & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef}, source
    assert lines <= BOOK_LINES
    for kind in ("code", "markdown"):
        for _, source in cells(name, kind):
            assert not [line for line in source.splitlines() if len(line) > COLUMNS and not line.startswith("| ")]


@every
def test_only_names_that_exist_are_used_from_the_kit(name):
    import importlib

    used = {}
    for _, source in cells(name, "code"):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("mmduet2kit"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")
                    used[alias.asname or alias.name] = getattr(module, alias.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in used:
                found = used[node.value.id]  # `show.table`: also the attributes, of modules and classes
                assert not isinstance(found, ModuleType | type) or hasattr(found, node.attr), f"{node.value.id}.{node.attr}"


def test_the_first_picture_waits_for_no_command_and_no_torch():
    """5 s from opening a notebook to its first picture (issue 7): an import of torch alone takes longer."""
    imports = set()
    for name in NAMES:
        sources = [source for _, source in cells(name, "code")]
        first = next(k for k, source in enumerate(sources) if re.search(r"show\.(strip|timeline|curves|figure|row)\(", source))
        before = [node for source in sources[: first + 1] for node in ast.parse(source).body]
        assert "run_commands(" not in "".join(sources[: first + 1]), name
        imports |= {ast.unparse(node) for node in before if isinstance(node, ast.Import | ast.ImportFrom)}
    code = "\n".join(["from mmduet2kit import show", *sorted(imports), "import sys", "print('torch' in sys.modules)"])
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert said.stdout.strip() == "False"


@every
def test_commands_parse(name):
    """Every `mmduet2` command that a notebook starts begins with a command of the command line."""
    from mmduet2kit.cli import COMMANDS

    source = "\n".join(source for _, source in cells(name, "code"))
    for word in re.findall(r"[\"'](\w+) --(?:seed|model)", source):
        assert word in COMMANDS
    for first in re.findall(r"run_commands\(\s*(\w+)", source):
        assert first == "PROFILE"  # never another profile than the parameter's


RESULT = re.compile(r"\bshow\.(?:table|strip|timeline|curves|figure|row|reward_terms|tokens|dialogue)\(|\bwidgets\.\w+\(|\bexplore\(")


@every
def test_every_result_is_followed_by_what_to_look_for(name):
    """Several pictures and tables may share one, but no heading comes between."""
    waiting, bare = [], []
    for cell in book(name)["cells"]:
        source, tags = "".join(cell["source"]), set(cell["metadata"].get("tags", []))
        if cell["cell_type"] == "code":
            waiting += [source.splitlines()[0]] if RESULT.search(source) and not tags & PRACTICE else []
        elif source.startswith("**What to look for.** "):
            waiting = []
        elif source.startswith("#"):
            bare, waiting = bare + waiting, []
    assert bare + waiting == []


@every
def test_links_resolve(name):
    for _, source in cells(name, "markdown"):
        for target in re.findall(r"\]\(([^)]+)\)", source):
            assert "://" not in target and (FOLDER / target.split("#")[0]).exists(), target


@every
def test_every_exercise_has_a_solution_and_neither_stops_a_run(name):
    code = cells(name, "code")
    places = [k for k, (tags, _) in enumerate(code) if "exercise" in tags]
    assert 2 <= len(places) <= 4 and len(places) == sum("solution" in tags for tags, _ in code)
    for place in places:
        assert code[place - 1][0] == {"key"} and code[place + 1][0] == {"solution"}
        assert "expected = " in code[place - 1][1] and code[place][1].startswith("answer = None\nshow.check(answer, expected,")
        assert code[place + 1][1].endswith(code[place][1].partition("\n")[2])  # the same check
        assert "answer = " in code[place + 1][1] and "answer = None" not in code[place + 1][1]


def test_an_exercise_gives_its_hint_only_after_a_wrong_answer(capsys):
    for answer, said in ((None, "Replace None by your answer, and run the cell again."), (3, "Not yet: 3. Hint: count."), (0.5, "Not yet: 0.5. Hint: count."),
                         ("four", "Right.")):  # fmt: skip
        show.check(answer, "four", "count")
        assert capsys.readouterr().out == said + "\n"
    show.check(0.3334, 1 / 3, "count")
    assert capsys.readouterr().out == "Right.\n"


@every
def test_its_page_folds_what_jupyterlab_folds_and_links_to_pages(name):
    """Pages lie in runs/<profile>/executed/."""
    html = script("book").page(nbformat.reads(json.dumps(book(name)), as_version=4))
    folded = [tag for tags, _ in cells(name, "code") for tag in tags & {"key", "solution"}]
    assert html.count("<details>") == len(folded) >= 4
    links = {link.partition("#")[0] for link in re.findall(r'href="([^"]*\.(?:md|html|ipynb)[^"]*)"', html)}
    assert links <= {"../../../README.md", *(f"{other}.html" for other in NAMES)} and len(links) > 1


@every
def test_no_machine_in_the_text_and_no_onsets_in_training(name):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(home|root|tmp|usr|mnt|Users|opt)/|https?://|cuda:\d", text)
    if name[:2] not in ("06", "10"):  # evaluation and report
        code = "\n".join(source for _, source in cells(name, "code"))
        assert "onset" not in code


def test_the_runner_takes_them():
    stages = plan.load_stages(FOLDER)
    assert [stage.name for stage in stages] == NAMES
    for stage in stages:
        plan.check_parameters(stage, {"PROFILE": "smoke", "INTERACTIVE": False})
    assert stages[0].inputs == () and stages[-1].inputs == tuple(NAMES[:-1])  # the report reads everything


def test_smoke_profile_is_tiny_cut_down():
    smoke, tiny = load_profile("smoke"), load_profile("tiny")
    assert smoke.extends == "tiny" and not smoke.meaningful and tiny.meaningful
    assert set(smoke.world.counts) == set(tiny.world.counts)
    assert sum(n for split in smoke.world.counts.values() for n in split.values()) <= 150
    assert smoke.ablation.arms == tiny.ablation.arms and smoke.rl.steps <= 3


def test_a_notebook_begins_with_its_profile_and_says_when_numbers_mean_nothing(capsys, monkeypatch):
    from mmduet2kit import show
    from tables import SMOKE

    monkeypatch.chdir(".")
    for name in ("tiny", "smoke"):
        assert show.begin(name).name == name
        assert (SMOKE in capsys.readouterr().out) == (name == "smoke")
