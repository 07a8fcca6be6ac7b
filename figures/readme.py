"""The README's numbers, from the committed run's own manifest and tables: `python figures/readme.py` rewrites the block.

A test fails when the block is not what this script makes of figures/data/study.
"""

import re
from pathlib import Path

from mmduet2kit.files import write_atomic
from mmduet2kit.report.tables import Run

ROOT = Path(__file__).parents[1]
DATA = ROOT / "figures" / "data" / "study"
BLOCK = re.compile(r"(<!-- run: [^>]*-->\n).*?(<!-- /run -->)", re.S)
NAMES = {"base": "base model", "sft": "SFT", "threshold": "threshold baseline", "rl": "SFT + GRPO"}


def block(data: Path = DATA) -> str:
    """Markdown: how long each stage of the committed run took, how much memory, and its Table 2."""
    run = Run(data)
    stages = {name: attempts for name, attempts in run.manifest["stages"].items()}
    minutes = {name: sum(a["minutes"] for a in attempts) for name, attempts in stages.items()}
    upto = sum(m for name, m in minutes.items() if name <= "06_evaluation")
    peak = max(a["peak_gb"] or 0 for attempts in stages.values() for a in attempts)
    seeds = len(run.manifest["seeds"])
    lines = [
        f"The committed run (profile `{run.profile}`, {seeds} seed{'s' * (seeds > 1)}, {run.manifest['cores']} cores, "
        f"{run.manifest['cpu']}; failed attempts counted) took {sum(minutes.values()):.0f} minutes after set-up, "
        f"{upto:.0f} of them to Table 2 and Figure 5, and at most {peak:.1f} GB of memory.",
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


if __name__ == "__main__":
    write_atomic(ROOT / "README.md", filled((ROOT / "README.md").read_text()))
