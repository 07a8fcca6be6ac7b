"""The reference run: `python figures/readme.py runs/tiny` takes a run's results into figures/data/study, redraws them into
figures/drawn, and writes the README's numbers from them; without a folder it only does the last two.

Tests fail when the README's block or the drawings are not what the scripts make of figures/data/study.
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path

from mmduet2kit.files import write_atomic
from mmduet2kit.report import redraw
from mmduet2kit.report.tables import STUDY, Run

ROOT = Path(__file__).parents[1]
DATA, DRAWN = STUDY, ROOT / "figures" / "drawn"
BLOCK = re.compile(r"(<!-- run: [^>]*-->\n).*?(<!-- /run -->)", re.S)
NAMES = {"base": "base model", "sft": "SFT", "threshold": "threshold baseline", "rl": "SFT + GRPO"}


def block(data: Path = DATA) -> str:
    """Markdown: how long each stage of the committed run took, how much memory, and its Table 2."""
    run = Run(data)
    stages = {name: attempts for name, attempts in run.manifest["stages"].items()}
    minutes = {name: sum(a["minutes"] or 0 for a in attempts) for name, attempts in stages.items()}
    upto = sum(m for name, m in minutes.items() if name <= "06_evaluation")
    peak = max(a["peak_gb"] or 0 for attempts in stages.values() for a in attempts)
    set_up = run.manifest.get("set_up_minutes")
    set_up = f"after {set_up:.1f} minutes of set-up, " if set_up else ""
    seeds = len(run.manifest["seeds"])
    lines = [
        f"The committed run (profile `{run.profile}`, {seeds} seed{'s' * (seeds > 1)}, {run.manifest['cores']} cores, "
        f"{run.manifest['cpu']}; failed attempts counted) took {sum(minutes.values()):.0f} minutes, {upto:.0f} of them to "
        f"Table 2 and Figure 5, {set_up}and at most {peak:.1f} GB of memory.",
        "",
        "| stage | minutes | peak memory, GB |",
        "|---|---|---|",
    ]
    for name, attempts in stages.items():
        lines.append(f"| {name} | {minutes[name]:.1f} | {max(a['peak_gb'] or 0 for a in attempts):.1f} |")
    lines += ["", "PAUC / reply duplicates (percent) / seconds after the onset on its test videos; silence gives a PAUC of 25:", ""]
    lines += ["| | WEB | EGO | TV | VAD |", "|---|---|---|---|---|"]
    rows = run.rows("table2.csv")
    for model, name in NAMES.items():
        cells = [_cell([r for r in rows if (r["model"], r["domain"]) == (model, d)]) for d in ("WEB", "EGO", "TV", "VAD")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(rows: list[dict]) -> str:
    if not rows or any(row["status"] != "ok" for row in rows):
        return rows[0]["status"] if rows else "NOT RUN"
    means = []
    for key in ("pauc", "duplicate", "latency_s"):
        values = [float(row[key]) for row in rows if row[key]]
        means.append(f"{sum(values) / len(values):.1f}" if values else "-")
    return " / ".join(means)


def filled(readme: str, data: Path = DATA) -> str:
    """The README with its block made anew."""
    return BLOCK.sub(lambda m: m[1] + block(data) + m[2], readme)


def take(run: Path) -> None:
    """Copy a run's results and manifest, without models, videos and single predictions, in place of the old ones."""
    shutil.rmtree(DATA, ignore_errors=True)
    shutil.copytree(run / "results", DATA, ignore=shutil.ignore_patterns("eval", "*_seed*.partial", ".*"))
    shutil.copy(run / "manifest.json", DATA)


def draw() -> None:
    """The figures as SVG with their alt texts and the tables as Markdown, for those who only look."""
    shutil.rmtree(DRAWN, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        for path in redraw(DATA, folder):
            if path.suffix in (".svg", ".txt", ".md", ".json"):
                write_atomic(DRAWN / path.name, path.read_bytes())


if __name__ == "__main__":
    if sys.argv[1:]:
        take(Path(sys.argv[1]))
    draw()
    write_atomic(ROOT / "README.md", filled((ROOT / "README.md").read_text()))
