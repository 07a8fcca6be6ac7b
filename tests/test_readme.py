"""The README: its numbers come from the committed run, its links resolve, its commands exist."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def script():
    spec = importlib.util.spec_from_file_location("readme_script", ROOT / "figures" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_numbers_are_the_committed_runs():
    module = script()
    if not (module.DATA / "manifest.json").exists():
        pytest.skip("there is no committed run yet")
    assert module.filled(TEXT) == TEXT, "run `python figures/readme.py`"


def test_links_resolve():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_notebook_and_profile_is_in_it():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{path.name}" in TEXT
    for path in (ROOT / "mmduet2kit" / "profiles").glob("*.yaml"):
        assert f"`{path.stem}`" in TEXT
