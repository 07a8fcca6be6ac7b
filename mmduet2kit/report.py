"""Tables, figures, claims and the report page: pure functions of results files, by the scripts in figures/.

From the import of this module on, the modules of figures/ can be imported by name.
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from .progress import telling

FIGURES = Path(__file__).resolve().parents[1] / "figures"
PAPER, STUDY = FIGURES / "data" / "paper", FIGURES / "data" / "study"  # the paper's numbers, the committed run's
TINY = FIGURES / "data" / "tiny"  # manifest of the committed run of tiny
TEMPLATES = Environment(loader=FileSystemLoader([Path(__file__).parent, FIGURES]), autoescape=select_autoescape(["html"]),
                        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
SMOKE = "Smoke profile: these numbers mean nothing; they show that the code runs. The paper's are left out."

if str(FIGURES) not in sys.path:
    sys.path.append(str(FIGURES))
script = importlib.import_module  # of figures/, by its name


def scripts() -> dict[str, ModuleType]:
    """The scripts figures/fig*.py, tab*.py and ours*.py by name, in the order of their numbers, imported."""
    names = [path.stem for kind in ("fig[0-9]*", "tab[0-9]*", "ours[0-9]*") for path in sorted(FIGURES.glob(f"{kind}.py"))]
    return {name: script(name) for name in names}


def redraw(data: Path | str, out: Path | str) -> list[Path]:
    """Draw every figure and table of the results folder `data` into `out`, and claims.json; the files.

    Two runs over the same files write the same bytes. Missing input gives drawings that say NOT RUN.
    """
    return [*(path for *_, made in drawn(data, out) for path in made), script("claims").write_claims(data, Path(out) / "claims.json")]


def drawn(data: Path | str, out: Path | str) -> Iterator[tuple[str, ModuleType, list[Path]]]:
    """Each of `scripts()` by name, with the files that it draws into `out` when it is asked for; tells how far it is."""
    for name, one in telling("drawn", found := scripts().items(), len(found)):
        yield name, one, one.draw(Path(data), Path(out))


def write_report(run_dir: Path | str) -> Path:
    """Judge, draw and write claims.json, figures/ and report.html into runs/<profile> (figures/page.py); its path."""
    return script("page").write_report(run_dir)
