"""Tables, figures, claims and the report page: pure functions of results files; nothing is measured here."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from ..errors import UserError
from .claims import judge_all, write_claims
from .page import write_report
from .tables import FIGURES

__all__ = ["judge_all", "redraw", "scripts", "write_claims", "write_report"]


def scripts() -> dict[str, ModuleType]:
    """The scripts figures/fig*.py, tab*.py and ours*.py by name, in the order of their numbers, imported."""
    if str(FIGURES) not in sys.path:  # they share figures/drawings.py
        sys.path.append(str(FIGURES))
    found = {}
    for pattern in ("fig[0-9]*.py", "tab[0-9]*.py", "ours[0-9]*.py"):
        for path in sorted(FIGURES.glob(pattern)):
            found[path.stem] = importlib.import_module(path.stem)
    if not found:
        raise UserError(f"{FIGURES} holds no scripts: work in a checkout of the repository.")
    return found


def redraw(data: Path | str, out: Path | str) -> list[Path]:
    """Draw every figure and table of the results folder `data` into `out`, and claims.json; the files.

    Two runs over the same files write the same bytes. Missing input gives drawings that say NOT RUN.
    """
    paths = [path for script in scripts().values() for path in script.draw(Path(data), Path(out))]
    return [*paths, write_claims(data, Path(out) / "claims.json")]
