"""The README: its numbers come from the committed run, its links resolve, its commands exist."""

import importlib.util
import re
from pathlib import Path

import fake_results

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
    fake_results.make(tmp_path / "run")
    monkeypatch.setattr(module, "DATA", tmp_path / "study")
    module.take(tmp_path / "run")
    assert {"manifest.json", "table2.csv", "figure5.csv", "frames"} <= {path.name for path in (tmp_path / "study").iterdir()}


def test_links_resolve():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_notebook_and_profile_is_in_it():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{path.name}" in TEXT
    for path in (ROOT / "mmduet2kit" / "profiles").glob("*.yaml"):
        assert f"`{path.stem}`" in TEXT
