"""The README: its numbers come from the committed run, its links resolve, its commands exist."""

import importlib.util
import re
from pathlib import Path

import fake_results
import pytest

from mmduet2kit.errors import UserError
from mmduet2kit.files import read_csv, read_json, write_json

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
    for name, file in (("DATA", "study"), ("DRAWN", "drawn"), ("LEDGER", "reruns.csv")):
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
    first, second = read_csv(tmp_path / "reruns.csv")
    assert (first["seeds"], second["seeds"], second["reason"]) == ("1", "1 2", "a second seed") and "MATCH" in second["verdicts"]
    write_json(tmp_path / "run-2" / "manifest.json", manifest | {"profile_hash": "another"})
    with pytest.raises(UserError, match="not parts of one study"):
        module.take([tmp_path / "study", tmp_path / "run-2"], "a mixture")
    assert read_csv(tmp_path / "study" / "table2.csv") == both


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
