"""The README: its numbers come from the committed run, its links resolve, its commands exist."""

import ast
import importlib.util
import re
import subprocess
from pathlib import Path

import fake_results
import page
import pytest
import yaml
from claims import rules_hash

from mmduet2kit.errors import UserError
from mmduet2kit.files import read_csv, read_json, write_json
from mmduet2kit.profile import load_profile
from mmduet2kit.report import scripts

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def script():
    spec = importlib.util.spec_from_file_location("readme_script", ROOT / "figures" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_numbers_are_the_committed_runs():
    assert script().filled(TEXT) == TEXT, "run `python figures/readme.py`"


def test_committed_drawings_are_the_committed_runs(tmp_path, monkeypatch):
    module = script()
    kept = {path.name: path.read_bytes() for path in module.DRAWN.iterdir()}
    monkeypatch.setattr(module, "DRAWN", tmp_path)
    module.draw()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept, "run `python figures/readme.py`"


def test_a_run_becomes_the_reference_run(tmp_path, monkeypatch):
    module = script()
    monkeypatch.setattr(module, "frozen", lambda commit: "rules")
    for name, file in (("DATA", "study"), ("DRAWN", "drawn"), ("LEDGER", "reruns.csv"), ("DEFAULT", "tiny")):
        monkeypatch.setattr(module, name, tmp_path / file)
    for seed in (1, 2):
        fake_results.make(tmp_path / f"run-{seed}", (seed,))
    module.take([tmp_path / "run-1"], "the first")
    assert {"manifest.json", "table2.csv", "figure5.csv", "frames"} <= {path.name for path in (tmp_path / "study").iterdir()}
    alone = read_csv(tmp_path / "study" / "table2.csv")
    module.take([tmp_path / "study", tmp_path / "run-2"], "a second seed")
    both = read_csv(tmp_path / "study" / "table2.csv")
    assert both == alone + read_csv(tmp_path / "run-2" / "results" / "table2.csv")
    manifest = read_json(tmp_path / "study" / "manifest.json")
    once = read_json(tmp_path / "run-1" / "manifest.json")["stages"]
    assert manifest["seeds"] == [1, 2] and manifest["stages"] == {name: 2 * tries for name, tries in once.items()}
    assert manifest["commits"] == [manifest["commit"]] and [one["seeds"] for one in manifest["machines"]] == [[1], [2]]
    first, second = read_csv(tmp_path / "reruns.csv")
    assert (first["seeds"], second["seeds"], second["reason"]) == ("1", "1 2", "a second seed") and "MATCH" in second["verdicts"]
    study = manifest | {"profile": "study-2", "seeds": [2]}
    write_json(tmp_path / "run-2" / "manifest.json", study)
    shown = module.block(tmp_path / "run-2" / "results", tmp_path / "tiny")  # a study's numbers, the first command's minutes
    assert "(profile `tiny`, 2 seeds" in shown and "of the profile `study`, seed 2:" in shown and "| SFT |" in shown
    write_json(tmp_path / "study" / "manifest.json", manifest | {"profile": "study-1", "commits": ["a" * 40, "b" * 40]})
    module.take([tmp_path / "study", tmp_path / "run-2"], "seeds of one study")
    assert read_json(tmp_path / "study" / "manifest.json")["commits"] == ["a" * 40, "b" * 40, manifest["commit"]]
    assert read_json(tmp_path / "study" / "manifest.json")["profile"] == read_csv(tmp_path / "reruns.csv")[2]["profile"] == "study"
    write_json(tmp_path / "run-2" / "manifest.json", manifest | {"profile_hash": "another"})
    with pytest.raises(UserError, match="not parts of one study"):
        module.take([tmp_path / "study", tmp_path / "run-2"], "a mixture")
    assert read_csv(tmp_path / "study" / "table2.csv") == both


def test_a_run_may_be_taken_for_its_minutes_alone(tmp_path, monkeypatch):
    module = script()
    monkeypatch.setattr(module, "frozen", lambda commit: "rules")
    for name, file in (("DATA", "study"), ("LEDGER", "reruns.csv"), ("DEFAULT", "tiny")):
        monkeypatch.setattr(module, name, tmp_path / file)
    fake_results.make(tmp_path / "run", (1,))
    head = read_json(tmp_path / "run" / "manifest.json")
    head["stages"] = {path.stem: [head["stages"]["03_base_and_sft"][-1] | {"status": "done"}] for path in (ROOT / "notebooks").glob("*.ipynb")}
    write_json(tmp_path / "run" / "manifest.json", head)
    module.take_minutes(tmp_path / "run", "a new machine")
    assert read_json(tmp_path / "tiny" / "manifest.json") == head | {"freeze": {"rules": "rules", "settings": head["profile_hash"]}}
    (row,) = read_csv(tmp_path / "reruns.csv")
    assert (row["profile"], row["seeds"], row["reason"]) == ("tiny", "1", "for its minutes alone: a new machine") and "MATCH" in row["verdicts"]
    assert not (tmp_path / "study").exists()
    stages = head["stages"] | {"03_base_and_sft": [head["stages"]["03_base_and_sft"][-1] | {"status": "failed"}]}
    for change, says in (({"profile": "study"}, "of the profile study"), ({"stages": stages}, "not a whole run .03_base_and_sft"), (
            {"stages": {"10_report": head["stages"]["10_report"]}}, "stages are missing")):  # fmt: skip
        write_json(tmp_path / "run" / "manifest.json", head | change)
        with pytest.raises(UserError, match=says):
            module.take_minutes(tmp_path / "run", "another")
    assert len(read_csv(tmp_path / "reruns.csv")) == 1


def test_a_run_is_judged_by_the_rules_that_stood_before_it(tmp_path, monkeypatch):
    """Prose may be mended after a run; what decides may not. The rules stand in a repository of their own here."""
    module, rules = script(), tmp_path / "figures" / "claims.yaml"
    rules.parent.mkdir()
    text = (ROOT / "figures" / "claims.yaml").read_text()
    rules.write_text(text)
    for command in ("init -q", "add .", "-c user.name=x -c user.email=x@x commit -qm x"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "rules_hash", lambda path=rules: rules_hash(path))
    assert module.frozen("HEAD") == rules_hash(rules)
    rules.write_text(text.replace("RL raises PAUC above SFT", "PAUC is higher after RL than after SFT"))
    assert module.frozen("HEAD") == rules_hash(rules)
    rules.write_text(text.replace("rule: value > 0", "rule: value > -1", 1))
    with pytest.raises(UserError, match="decides otherwise"):
        module.frozen("HEAD")
    with pytest.raises(UserError, match="not known here"):
        module.frozen("0" * 40)


def test_rules_and_settings_are_those_that_were_frozen():
    """The committed run's; a setting that came later is no change of those it was made with."""
    manifest = read_json(ROOT / "figures" / "data" / "study" / "manifest.json")
    assert manifest["freeze"] == {"rules": rules_hash(), "settings": manifest["profile_hash"]}
    last = [row for row in read_csv(ROOT / "figures" / "data" / "reruns.csv") if row["rules"] and row["profile"] == manifest["profile"]][-1]
    assert manifest["freeze"]["rules"].startswith(last["rules"]) and manifest["profile_hash"].startswith(last["settings"])
    now = load_profile(manifest["profile"].partition("-")[0]).model_dump(mode="json")

    def kept(then, today):
        if not isinstance(then, dict):
            return then == today
        return all(name in today and kept(value, today[name]) for name, value in then.items())

    prose = ("name", "extends", "seeds", "purpose", "deviations")
    changed = [name for name, value in manifest["settings"].items() if name not in prose and not kept(value, now.get(name))]
    assert changed == [], "the settings of the committed run are frozen: run it anew, or make a profile of your own"


FILLED = r"\.\.\.|\.venv|\b(?:tiny|model|judge)\b|\d+"  # what stands in a quoted message for a name or number of the reader's case


def messages():
    """All texts of the package and of run_all.sh; what is filled in when they are printed is one null character."""
    for path in (ROOT / "mmduet2kit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
    yield from re.sub(r"\$\{[^}]*\}|\$\([^)]*\)|\$\w+", "\0", (ROOT / "run_all.sh").read_text()).splitlines()


def test_the_table_of_troubles_quotes_what_the_sources_say():
    quoted = re.findall(r"^\| `([^`]+)` \|", re.search(r"## Troubleshooting\n(.*?)\n## ", TEXT, re.S)[1], re.M)
    said, patterns = list(messages()), {text: ".*".join(map(re.escape, re.split(FILLED, text))) for text in quoted}
    assert len(quoted) > 20 and all(len(re.sub(FILLED, "", text)) > 12 for text in quoted)
    assert [text for text, pattern in patterns.items() if not any(re.search(pattern, one, re.S) for one in said)] == []


def test_the_profile_that_changes_one_thing_is_one(tmp_path):
    (tmp_path / "mine.yaml").write_text(re.search(r"```yaml\n(.*?)```", TEXT, re.S)[1])
    mine, tiny = load_profile(str(tmp_path / "mine.yaml")), load_profile("tiny")
    assert mine.name == "mine" and mine.rl != tiny.rl and mine.sft == tiny.sft


def test_the_map_names_files_that_are_there_and_every_drawing():
    """A script stands beside the notebook that makes its results file; Figure 5 beside the one that shows it."""
    rows = re.search(r"## From the paper to the code\n(.*?)\n\n[^|\n]", TEXT, re.S)[1].splitlines()[3:]
    named = {}
    for row in rows:
        notebook, kit, drawn = row.split("|")[3:6]
        for folder, cell in (("mmduet2kit", kit), ("figures", drawn)):
            assert all((ROOT / folder / name).exists() for name in re.findall(r"`([^`]+)`", cell)), row
        assert "`" in kit
        named |= {name: notebook[2:4] for name in re.findall(r"`(\w+).py`", drawn) if name in scripts()}
    assert len(rows) == 10 and named == {name: page.MADE[name.partition("_")[0]][1] for name in scripts()} | {"fig5_dynamics": "09"}


def test_a_new_reader_meets_things_in_this_order():
    found = re.findall(r"^## (.+)$", TEXT, re.M)
    wanted = ["Two commands", "What came out", "From the paper to the code", "To play with it", "Commands", "Profiles", "GPU nodes",
              "Your own data and real corpora", "Troubleshooting", "Glossary", "GPU nodes in detail", "Citing"]  # fmt: skip
    assert [title for title in found if title in wanted] == wanted and TEXT.index("<!-- picture: ") < TEXT.index("## Two commands")
    links = re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert set(links) <= {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", TEXT, re.M)}


def test_every_block_stands_in_it_once():
    for name in script().BLOCKS:
        assert TEXT.count(f"<!-- {name}: ") == TEXT.count(f"<!-- /{name} -->") == 1


def test_the_picture_is_the_first_that_was_drawn(tmp_path, monkeypatch):
    module = script()
    monkeypatch.setattr(module, "DRAWN", tmp_path)
    assert module.picture() == ""
    (tmp_path / "fig5_dynamics.txt").write_text("Curves of\n[WEB].\n")
    (tmp_path / "ours5_before_after.txt").write_text("Ours. NOT RUN: no file.\n")
    assert module.picture().startswith("![Curves of (WEB).](figures/drawn/fig5_dynamics.svg)\n\n*")
    (tmp_path / "ours5_before_after.txt").write_text("One video.\n")
    assert module.picture().startswith("![One video.](figures/drawn/ours5_before_after.svg)\n\n*")


def test_every_verdict_is_explained():
    module = script()
    assert set(module.MEANS) == set(module.claims.VERDICTS)


def test_what_to_cite_is_what_the_citation_file_says():
    kit = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper, block = kit["preferred-citation"], re.search(r"```bibtex\n(.*?)```", TEXT, re.S)[1]
    names = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"])
    for text in (paper["title"], names, str(paper["year"]), kit["title"], kit["version"], kit["authors"][0]["name"]):
        assert f"{{{text}}}" in block


def test_links_resolve():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_notebook_and_profile_is_in_it():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{path.name}" in TEXT
    for path in (ROOT / "mmduet2kit" / "profiles").glob("*.yaml"):
        assert f"`{path.stem}`" in TEXT


def test_every_reference_run_stands_in_the_ledger_with_its_reason():
    rows = read_csv(ROOT / "figures" / "data" / "reruns.csv")
    assert all(row["reason"] and row["profile"] and row["seeds"] for row in rows)
    commit = read_json(ROOT / "figures" / "data" / "study" / "manifest.json")["commit"][:7]
    assert any(commit in row["commit"] for row in rows)
