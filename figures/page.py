"""report.html: verdicts, tables, figures, and what the run was made with, in one file without a network."""

import re
from collections import Counter
from pathlib import Path

from markupsafe import Markup

import claims
from mmduet2kit.files import read_json, write_atomic
from mmduet2kit.report import scripts
from tables import SMOKE, TEMPLATES, Run


def write_report(run_dir: Path | str) -> Path:
    """Judge, draw, and write claims.json, figures/ and report.html into `run_dir` (runs/<profile>); its path.

    What the results lack stands in it as NOT RUN.
    """
    run_dir = Path(run_dir)
    run = Run(run_dir / "results")
    verdicts = read_json(claims.write_claims(run.data, run_dir / "claims.json"))
    tables, figures = [], []
    for name, script in scripts().items():
        paths = {path.suffix: path for path in script.draw(run.data, run_dir / "figures")}
        if hasattr(script.draw, "table"):
            tables.append(script.draw.table(run.data))
        else:
            alt = paths[".txt"].read_text(encoding="utf-8").strip()
            figures.append({"name": name, "title": script.draw.title, "alt": alt,
                            "svg": _inline(paths[".svg"], name)})
    page = TEMPLATES.get_template("page.html")
    counts = Counter(claim["verdict"] for claim in verdicts)
    return write_atomic(run_dir / "report.html", page.render(
        css=Markup(Path(__file__).with_name("page.css").read_text()), run=run, claims=verdicts, tables=tables,
        figures=figures, profile=run.manifest.get("settings"), smoke=SMOKE,
        counts=[(counts[word], word) for word in claims.VERDICTS]))


def _inline(path: Path, name: str) -> Markup:
    """A drawing as an element; its names get a prefix, since several drawings stand in one page."""
    svg = path.read_text(encoding="utf-8")
    return Markup(re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg[svg.index("<svg"):]))
