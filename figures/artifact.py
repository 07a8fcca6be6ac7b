"""What artifact evaluation asks for (EuroSys 2024 and 2026, NeurIPS, ML Code Completeness), checked where a program can.

A check that fails says `fail`; what only the authors can do says `author action`.
"""

import json
import re
from collections.abc import Callable
from functools import cache

from mmduet2kit.errors import UserError
from mmduet2kit.manifest import pins
from mmduet2kit.profile import FOLDER, load_profile
from mmduet2kit.report import FIGURES, STUDY, scripts

ROOT = FIGURES.parent
PASS, FAIL, AUTHOR = "pass", "fail", "author action"
TERMS = ("1QnA", "nQnA", "NO REPLY", "PAUC", "r_in_span", "r_rep", "r_pfx", "rollout", "advantage", "frame interval")
MACHINES = re.compile(r"/(?:home|Users|root|tmp|work)/\w")  # paths of somebody's machine


@cache
def _text(*patterns: str) -> str:
    """All files that match, joined; empty where there are none."""
    return "\n".join(path.read_text(encoding="utf-8") for pattern in patterns for path in sorted(ROOT.glob(pattern)))


def _sourced() -> bool:
    """Every number of a profile has a source behind it, or in the comment of its block."""
    wanted = [line for path in FOLDER.glob("*.yaml") for line in path.read_text().splitlines() if re.match(r"  \w+: [\d.\[]", line)]
    return sum("#" in line for line in wanted) > 0.8 * len(wanted)


def _claims() -> list[dict]:
    path = FIGURES / "drawn" / "claims.json"
    return json.loads(path.read_text()) if path.is_file() else []


def _stages() -> list[dict]:
    path = STUDY / "manifest.json"
    return [one for tries in json.loads(path.read_text())["stages"].values() for one in tries] if path.is_file() else []


def _loads() -> bool:
    try:
        return all(load_profile(path.stem) for path in FOLDER.glob("*.yaml"))
    except UserError:
        return False


CHECKS: list[tuple[str, str, Callable[[], bool], str]] = [
    ("A1", "an archived version with a DOI (CITATION.cff)", lambda: "doi:" in _text("CITATION.cff"), AUTHOR),
    ("A2", "a licence, the paper cited", lambda: all(map(_text, ("LICENSE", "CITATION.cff"))) and "MMDuet2" in _text("README.md"), FAIL),
    ("F1", "README: every notebook, and what of the paper it is",
     lambda: all(path.stem in _text("README.md") for path in ROOT.glob("notebooks/*.ipynb")), FAIL),
    ("F2", "the paper's own terms", lambda: all(term in _text("mmduet2kit/**/*.py", "notebooks/*.ipynb") for term in TERMS), FAIL),
    ("F3", "a minimal example (profile smoke)", lambda: (FOLDER / "smoke.yaml").is_file(), FAIL),
    ("F4", "minutes and memory from the run itself", lambda: bool(_stages()) and "<!-- run:" in _text("README.md"), FAIL),
    ("F5", "what may look odd is explained", lambda: "## When something looks wrong" in _text("README.md"), FAIL),
    ("F6", "exact versions", lambda: all(version for group in pins().values() for version in group.values()), FAIL),
    ("F7", "nothing paid or closed is needed",
     lambda: load_profile("tiny").judge.name == "exact" and load_profile("tiny").model.path is None, FAIL),
    ("F8", "a configuration for each kind of run", _loads, FAIL),
    ("F9", "no paths of somebody's machine", lambda: not MACHINES.search(_text("mmduet2kit/**/*.py", "notebooks/*.ipynb", "run_all.sh", "figures/drawn/*")), FAIL),
    ("F10", "what the data pipeline left out (ledger)", lambda: "ledger" in _text("notebooks/01*.ipynb"), FAIL),
    ("R1", "one script, safe to run twice", lambda: (ROOT / "run_all.sh").stat().st_mode & 0o111 > 0, FAIL),
    ("R2", "no expected value within reach of the computation",
     lambda: "data/paper" not in _text("mmduet2kit/train/*.py", "mmduet2kit/score/*.py", "mmduet2kit/corpus/*.py", "mmduet2kit/evaluate.py"), FAIL),
    ("R3", "tables and figures as in the paper, both numbers", lambda: {f"tab{k}" for k in range(1, 8)} <= {name[:4] for name in scripts()}, FAIL),
    ("R4", "at most three commands", lambda: len(re.findall(r"^\./run_all\.sh", _text("README.md").partition("```bash")[2].partition("```")[0], re.M)) <= 3, FAIL),
    ("R5", "claims, each with its experiment", lambda: bool(_claims()) and all(claim.get("source") for claim in _claims()), FAIL),
    ("N6", "hyper-parameters with their sources", _sourced, FAIL),
    ("N7", "error bars, their method stated", lambda: any(claim.get("interval") for claim in _claims()), FAIL),
    ("N8", "time in all, failed attempts too", lambda: bool(_stages()) and all("status" in one for one in _stages()), FAIL),
    ("N12", "licences of all data that can be used", lambda: "licen" in _text("DATA_CARD.md", "README.md").lower() and "Ego-Exo4D" in _text("README.md"), FAIL),
    ("P5", "trained weights to download", lambda: "doi:" in _text("CITATION.cff"), AUTHOR),
]  # fmt: skip


def artifact_table() -> list[tuple[str, str, str]]:
    """[(number, what is asked for, pass, fail or author action)]."""
    return [(name, text, PASS if check() else otherwise) for name, text, check, otherwise in CHECKS]
