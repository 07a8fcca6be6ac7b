"""report.html: verdicts, tables, figures, and what the run was made with, in one file without a network."""

import re
from collections import Counter
from pathlib import Path

import yaml
from markupsafe import Markup, escape

import claims
from artifact import artifact_table
from mmduet2kit.files import read_json, write_atomic
from mmduet2kit.report import drawn
from tables import FIGURES, SMOKE, TEMPLATES, Run

MADE = {"fig1": ("figure1.json", "01"), "fig2": ("figure2.json", "02"), "fig3": ("figure3.json", "01"), "fig4": ("", "04"), "fig5": ("figure5.csv", "05"),
        **{f"tab{k}": (f"table{k}.csv", notebook) for k, notebook in zip(range(1, 8), ("01", "06", "06", "06", "06", "07", "08"))},
        "ours1": ("threshold_sweep.csv", "06"), "ours2": ("variants.csv", "05"), "ours3": ("silence.csv", "08"), "ours4": ("formats.csv", "08"),
        "ours5": ("before_after.json", "06"), "log": ("", "05")}  # by the start of a drawing's name: its results file, and the notebook that makes it  # fmt: skip
PLACES = {"silence": "ours3", "sweep": "ours1", "log": "log", "both": "tab2", "at": "fig5"}  # where an explanation's function reads
NOTEBOOKS = {path.name[:2]: path.stem for path in sorted((FIGURES.parent / "notebooks").glob("[0-9]*.ipynb"))}

# What claims.yaml calls a unit, in words.
UNITS = {"pauc": "PAUC points", "reply_turns": "replies a video", "s": "seconds", "percent points": "percentage points", "ratio": "times (a ratio)"}


def write_report(run_dir: Path | str) -> Path:
    """Judge, draw, and write claims.json, figures/ and report.html into `run_dir` (runs/<profile>); its path.

    What the results lack stands in it as NOT RUN.
    """
    run_dir = Path(run_dir)
    run = Run(run_dir / "results")
    verdicts = read_json(claims.write_claims(run.data, run_dir / "claims.json"))
    tables, figures = [], []
    for name, script, files in drawn(run.data, run_dir / "figures"):
        paths = {path.suffix: path for path in files}
        if hasattr(script.draw, "table"):
            tables.append((name, script.draw.table(run.data)))
        else:
            alt = paths[".txt"].read_text(encoding="utf-8").strip()
            figures.append({"name": name, "title": script.draw.title, "alt": alt,
                            "svg": _inline(paths[".svg"], name)})
    page = TEMPLATES.get_template("page.html")
    counts = Counter(claim["verdict"] for claim in verdicts)
    return write_atomic(run_dir / "report.html", page.render(
        css=Markup(Path(__file__).with_name("page.css").read_text()), run=run, claims=verdicts, targets=claims.judge_all(run.data, claims.TARGETS), tables=tables,
        figures=figures, profile=run.manifest.get("settings"), command=f"./run_all.sh --profile {asked(run.profile, run.manifest.get('seeds', []))}",
        smoke=SMOKE, made=made, sources=sources, units=UNITS, prose=prose, gigabytes=_gigabytes(run_dir),
        experiments=experiments(run, verdicts), artifact=artifact_table(), yaml=lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True),
        counts=[(counts[word], word) for word in claims.VERDICTS]))


def prose(text: str) -> Markup:
    """A note as HTML: `code` in a typewriter's letters."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def made(name: str) -> list[tuple[str, str]]:
    """[(path from the page, words)]: the results file of a drawing, and the executed notebook that made it."""
    file, notebook = MADE[name.partition("_")[0]]
    return ([(f"results/{file}", file)] if file else []) + [(f"executed/{NOTEBOOKS[notebook]}.html", f"notebook {notebook}")]


def asked(profile: str, seeds: list[int]) -> str:
    """What `--profile` takes for a run: `study@1` of the run study-1, which is one seed of a study."""
    name, _, seed = profile.rpartition("-")
    return f"{name}@{seed}" if name and list(map(str, seeds)) == [seed] else profile


def sources(claim: dict) -> list[str]:
    """The drawings whose files a claim's numbers stand in: those of its rule, then those of the experiments that explain it."""
    entry = next((one for path in (claims.CLAIMS, claims.TARGETS) for one in claims.read_claims(path) if one["id"] == claim["id"]), {})
    told = [*(entry.get("because", ()) if claim["explained"] else ()), *entry.get("beside", ())]
    found = re.findall(rf"\b(?:[tf]\d|{'|'.join(PLACES)})(?=\()", " ".join([claim["rule"], *(str(text) for one in told for text in one["values"])]))
    return list(dict.fromkeys({"t": "tab", "f": "fig"}[name[0]] + name[1] if name[1:].isdigit() else PLACES[name] for name in found))


def of_claim(claim: dict) -> str:
    """The drawing whose numbers a claim's rule reads first (t2(...): Table 2; f5(...): Figure 5)."""
    kind, number = re.search(r"\b([tf])(\d)\(", claim["rule"]).groups()
    return f"{'tab' if kind == 't' else 'fig'}{number}"


def experiments(run: Run, verdicts: list[dict]) -> list[dict]:
    """The artifact appendix's rows: a notebook, the claims that rest on it, its results files, minutes of all its attempts (None: not run)."""
    rows = []
    for number, stage in NOTEBOOKS.items():
        minutes = [one["minutes"] for one in run.manifest.get("stages", {}).get(stage, ()) if one["minutes"] is not None]
        rows.append({"stage": stage, "number": number, "minutes": sum(minutes) if minutes else None,
                     "claims": [claim["id"] for claim in verdicts if MADE[of_claim(claim)][1] == number],
                     "files": sorted({file for file, by in MADE.values() if file and by == number})})  # fmt: skip
    return rows


def _gigabytes(run_dir: Path) -> float | None:
    """GB on disk of a run's dataset and models, which are nearly all of it; None where they are not there."""
    sizes = [path.stat().st_size for name in ("data", "models") for path in (run_dir / name).rglob("*") if path.is_file()]
    return sum(sizes) / 1e9 if sizes else None


def _inline(path: Path, name: str) -> Markup:
    """A drawing as an element; its names get a prefix, since several drawings stand in one page."""
    svg = path.read_text(encoding="utf-8")
    svg = re.sub(r'(<image [^>]*?) id="[^"]*"', r"\1", svg[svg.index("<svg"):])  # equal pictures would have equal names
    return Markup(re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg))
