"""The reference run: `python figures/readme.py runs/tiny --reason WHY` takes a run's results into figures/data/study,
redraws them into figures/drawn, and writes the README's numbers from them; without a folder it only does the last two.

With --minutes a run of the README's first command gives its minutes and memory alone. Several folders are the same study,
seed by seed (`runs/study-1 runs/study-2`, or figures/data/study itself and a new seed). Every taking is a line of
figures/data/reruns.csv, which is never shortened. A run is taken only if the rules that judge it stood before it: those of
its commit and today's must decide alike (`freeze` in its manifest). Tests fail when the README's blocks or the drawings are
not what the scripts make of figures/data/study.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mmduet2kit import released  # noqa: F401 - with it all readers are registered
from mmduet2kit.corpus.readers import READERS
from mmduet2kit.errors import UserError
from mmduet2kit.files import read_csv, read_json, write_atomic, write_csv, write_json
from mmduet2kit.profile import load_profile
from mmduet2kit.report import redraw
import claims
from claims import rules_hash
from said import NAMES
from scaling import page
from tables import FAIL, NOT_RUN, STUDY, Run, figure_of

ROOT = Path(__file__).parents[1]
DATA, DRAWN = STUDY, ROOT / "figures" / "drawn"
DEFAULT = ROOT / "figures" / "data" / "tiny"  # manifest of the last reference run of the README's first command
LEDGER = ROOT / "figures" / "data" / "reruns.csv"
SPEED = ROOT / "tests" / "benchmarks" / "results" / "engine_cpu.json"
MEANS = {  # figures/claims.py, `verdict`
    claims.MATCH: "the claim's rule holds, and the kit's value lies within the claim's tolerance of the paper's",
    claims.TREND: "the rule holds, but the value lies further away than that, or the paper prints no number to match",
    claims.FAIL_AS_PAPER: f"{FAIL} (a reply at nearly every turn, or silence) in the kit's run where the paper has it too",
    claims.DIFFERS: f"the rule does not hold, or holds in fewer than {100 * claims.SURE:g} percent of the resampled runs, or what it presumes does not hold",
    claims.NOT_RUN: "a number that the rule needs is not there; the reason says which",
}
MACHINE = ("seeds", "commit", "platform", "cpu", "cores", "gpu")  # what may differ between the parts of a study
PICTURES = {  # the first of these that was drawn stands at the top of the README, with these words
    "ours5_before_after": "A test video of the committed run: what each model says of it, and when.",
    "fig5_dynamics": "The committed run: what the model does on development videos while reinforcement learning trains it.",
}


def block(data: Path = DATA, default: Path = DEFAULT) -> str:
    """Markdown: minutes and memory of the README's first command, and the committed run's Table 2.

    They are of one run, unless the committed one is a longer study: its minutes stand apart then.
    """
    run = Run(data)
    apart = run.profile.partition("-")[0] != "tiny" and (default / "manifest.json").exists()
    return "\n".join([*_minutes(Run(default) if apart else run, "A run of the first command" if apart else "The committed run"), *([_took(run), ""] if apart else []), *_numbers(run)]) + "\n"


def _stages(run: Run) -> tuple[dict[str, float], dict[str, float]]:
    """({stage: minutes of all attempts}, {stage: largest peak of memory in GB})."""
    stages = run.manifest["stages"].items()
    return ({name: sum(a["minutes"] or 0 for a in attempts) for name, attempts in stages},
            {name: max(a["peak_gb"] or 0 for a in attempts) for name, attempts in stages})


def _took(run: Run) -> str:
    minutes, seeds = sum(_stages(run)[0].values()), run.manifest["seeds"]
    return (f"The numbers below and the drawings are those of the profile `{run.profile.partition('-')[0]}`, seed{'s' * (len(seeds) > 1)} "
            f"{', '.join(map(str, seeds))}: {minutes / len(seeds):.0f} minutes a seed on {run.manifest['cores']} cores.")


def _minutes(run: Run, what: str) -> list[str]:
    minutes, memory = _stages(run)
    upto = sum(m for name, m in minutes.items() if name <= "06_evaluation")
    set_up = run.manifest.get("set_up_minutes")
    set_up = f"after {set_up:.1f} minutes of set-up, " if set_up else ""
    seeds = len(run.manifest["seeds"])
    lines = [
        f"{what} (profile `{run.profile}`, {seeds} seed{'s' * (seeds > 1)}, {run.manifest['cores']} cores, "
        f"{run.manifest['cpu']}; failed attempts counted) took {sum(minutes.values()):.0f} minutes, {upto:.0f} of them to "
        f"Table 2 and Figure 5, {set_up}and at most {max(memory.values()):.1f} GB of memory.",
        "",
        f"| notebook | {' | '.join(name[:2] for name in minutes)} |",
        "|---" * (len(minutes) + 1) + "|",
    ]
    rows = {"minutes": minutes, "peak memory, GB": memory}
    return lines + [f"| {what} | {' | '.join(f'{of[name]:.1f}' for name in minutes)} |" for what, of in rows.items()] + [""]


def _numbers(run: Run) -> list[str]:
    lines = ["PAUC / reply duplicates (percent) / seconds after the onset on its test videos: WEB (scene after scene), EGO (long, a "
              "moving camera), TV (subtitles arrive as user turns), VAD (a static camera, one rare event). Silence has a PAUC of 25. Means of the "
             "seeds that have a figure, of PAUC with the deviation.", ""]
    lines += ["| | WEB | EGO | TV | VAD |", "|---|---|---|---|---|"]
    rows = run.rows("table2.csv")
    for model, name in NAMES.items():
        cells = [_cell([r for r in rows if (r["model"], r["domain"]) == (model, d)], spread=True) for d in ("WEB", "EGO", "TV", "VAD")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, "", "-: fewer than 10 gold spans have more than one reply. FAIL: a reply at more than 90 percent of the turns."]


def _cell(rows: list[dict], spread: bool = False) -> str:
    if not rows or any(row["status"] != "ok" for row in rows):
        return rows[0]["status"] if rows else "NOT RUN"
    means = []
    for key in ("pauc", "duplicate", "latency_s"):
        values = [value for row in rows if (value := figure_of(row, key)) is not None]
        means.append(f"{statistics.mean(values):.1f}" if values else "-")
        if spread and key == "pauc" and len(values) > 1:
            means[-1] += f" ± {statistics.stdev(values):.1f}"
    return " / ".join(means)


def filled(readme: str, data: Path = DATA) -> str:
    """The README with its blocks made anew; each stands between `<!-- name: ... -->` and `<!-- /name -->`."""
    for name, make in (BLOCKS | {"run": lambda: block(data)}).items():
        readme = re.sub(rf"(<!-- {name}: [^>]*-->\n).*?(<!-- /{name} -->)", lambda m, text=make(): m[1] + text + m[2], readme, flags=re.S)
    return readme


def picture() -> str:
    """Markdown: the first of PICTURES that was drawn and is not NOT RUN, its alt text as drawn, and its words; nothing where there is none."""
    for name, words in PICTURES.items():
        told = DRAWN / f"{name}.txt"
        alt = " ".join(told.read_text(encoding="utf-8").split()) if told.is_file() else NOT_RUN
        if NOT_RUN not in alt:
            return f"![{alt.replace('[', '(').replace(']', ')')}](figures/drawn/{name}.svg)\n\n*{words}*\n"
    return ""


def verdicts() -> str:
    """Markdown: how many claims have which verdict in the committed run, what it means, and what the paper's own numbers get."""
    judged = read_json(DRAWN / "claims.json")
    counts, theirs = (Counter(claim[key] for claim in judged) for key in ("verdict", "paper_verdict"))
    lines = [f"| verdict | of {len(judged)} claims | meaning |", "|---|---|---|"]
    lines += [f"| {word} | {counts[word]} | {means} |" for word, means in MEANS.items()]
    paper = ", ".join(f"{theirs[word]} {word}" for word in MEANS if theirs[word])
    return "\n".join([*lines, "", f"The same rules over the paper's own numbers: {paper} (it prints no number)."]) + "\n"


def deviations() -> str:
    """Markdown: where the profiles of the tiny study and of the paper part from the paper, in their own words; the others extend these two."""
    lines = ["| profiles | what is not as in the paper |", "|---|---|"]
    for name, who in ("tiny", "`tiny`, `smoke`, `study`"), ("paper", "`paper`, `single_gpu`"):
        lines.append(f"| {who} | • {' <br>• '.join(load_profile(name).deviations)} |")
    return "\n".join(lines) + "\n"


def speed() -> str:
    """Markdown: how many times faster the stream is than its alternatives, from the committed benchmark on CPUs."""
    told = read_json(SPEED)
    a, b, c, d = (told[part] for part in "abcd")
    lines = [f"| on {told['hardware']}, {told['date']}, the tiny model | times faster |", "|---|---|"]
    for what, times in (
        ("turn 200 of a stream, against encoding everything again", a["full_over_kit_at_the_last_turn"]),
        ("the same, against the released inference's way", a["released_over_kit_at_the_last_turn"]),
        ("64 short videos one after another, against transformers' `generate` on everything again", b["kit_alone"]["times_faster_than_full_by_generate"]),
        ("the same, against bare forwards that keep their cache within a turn", b["kit_alone"]["times_faster_than_full"]),
        ("the same again, of the two the stream compiled, in a cache of just that length", b["kit_alone_graphs"]["times_faster_than_full"]),
        ("a silent turn alone, compiled in a cache of 4,096 tokens, against the plain stream", round(d["silent_turn_ms"]["p50"] / d["silent_turn_graphs_ms"]["p50"], 1)),
        ("the same 64 in one batch, against everything again in a batch of 64", b["kit_batched"]["times_faster_than_full_batched"]),
        ("the same 64 in one batch, against those bare forwards one after another", b["kit_batched"]["times_faster_than_full"]),
        ("a GRPO step's rollout of 20 turns, against TRL's loop", c["trl_over_kit"]),
    ):
        lines.append(f"| {what} | {times:g} |")
    return "\n".join(lines) + "\n"


def corpora() -> str:
    """Markdown: the corpora that the kit reads, by their readers' own words."""
    lines = ["| corpus | written from | | licence | access |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {r.name} | {r.source} | {r.seen} | {r.licence} | {r.access} |" for r in READERS.values())]) + "\n"


BLOCKS: dict[str, Callable[[], str]] = {  # by the name in their marks
    "picture": picture, "run": block, "verdicts": verdicts, "scaling": page, "corpora": corpora, "engine": speed, "deviations": deviations}  # fmt: skip


def frozen(commit: str) -> str:
    """Digest of the claims' rules, today's and those of the commit a run was made with; UserError when they differ."""
    then = subprocess.run(["git", "show", f"{commit}:figures/claims.yaml"], cwd=ROOT, capture_output=True, check=False)
    if then.returncode:
        raise UserError(f"Commit {commit or '(none)'} of the run is not known here: fetch it, its rules decide whether the run counts.")
    rules = rules_hash()
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(then.stdout)
        file.flush()
        if rules_hash(Path(file.name)) != rules:
            raise UserError(f"figures/claims.yaml decides otherwise than at {commit[:7]}, where the run was made: run it anew.")
    return rules


def _run(folder: Path) -> Run:
    """Of a run's folder, or of a results folder with its manifest inside."""
    return Run(folder / "results" if (folder / "results").is_dir() else folder)


def take(runs: list[Path], reason: str) -> None:
    """Put the results and manifests of these runs in place of the old ones, without models, videos and single predictions.

    runs: run folders, or results folders with their manifest inside; UserError when their settings differ.
    """
    made = list(map(_run, runs))
    heads = [run.manifest for run in made]
    if len({head.get("profile_hash") for head in heads}) > 1:
        raise UserError(f"{', '.join(map(str, runs))} are not parts of one study: their settings differ (profile_hash).")
    commits = list(dict.fromkeys(commit for head in heads for commit in head.get("commits", [head["commit"]])))  # of all seeds
    (rules,) = set(map(frozen, commits))
    with tempfile.TemporaryDirectory(dir=DATA.parent) as folder:
        new = Path(folder) / "study"
        shutil.copytree(made[0].data, new, ignore=shutil.ignore_patterns("eval", "*_seed*.partial", ".*"))
        for path in [path for run in made[1:] for path in sorted(run.data.glob("*.csv"))]:
            rows, more = read_csv(new / path.name) if (new / path.name).exists() else [], read_csv(path)
            seeds = {row.get("seed") for row in rows}
            write_csv(new / path.name, rows + [row for row in more if row.get("seed") not in seeds], list((rows + more)[0]))
        stages = {name: [a for head in heads for a in head["stages"].get(name, [])] for name in heads[0]["stages"]}
        seeds = sorted({seed for head in heads for seed in head["seeds"]})
        freeze = {"rules": rules, "settings": heads[0]["profile_hash"]}
        parts = [part for head in heads for part in head.get("machines", [{key: head.get(key) for key in MACHINE}])]  # of each seed's
        name = re.sub(r"-\d+$", "", heads[0]["profile"]) if len(heads) > 1 else heads[0]["profile"]  # study-1 is one seed of study
        manifest = heads[0] | {"profile": name, "commits": commits, "seeds": seeds, "stages": stages, "machines": parts, "freeze": freeze}
        write_json(new / "manifest.json", manifest)
        if heads[0]["profile"] == DEFAULT.name:
            write_json(DEFAULT / "manifest.json", manifest)
        shutil.rmtree(DATA, ignore_errors=True)
        shutil.move(new, DATA)
    draw()
    _into_ledger(Run(DATA), manifest, DRAWN, reason)


def take_minutes(folder: Path, reason: str) -> None:
    """Put what a run of the README's first command took (its manifest alone) in place of the old; its results are a line of the ledger."""
    run = _run(folder)
    if run.profile != DEFAULT.name or Run(DATA).profile == DEFAULT.name:
        raise UserError(f"{folder} is of the profile {run.profile}, the committed run of {Run(DATA).profile}: --minutes takes {DEFAULT.name} beside a study.")
    unfinished = [name for name, tries in run.manifest["stages"].items() if tries[-1]["status"] != "done"]
    if unfinished or len(run.manifest["stages"]) < len(list((ROOT / "notebooks").glob("*.ipynb"))):
        raise UserError(f"{folder} is not a whole run ({', '.join(unfinished) or 'stages are missing'}): its minutes would be too few.")
    head = run.manifest | {"freeze": {"rules": frozen(run.manifest["commit"]), "settings": run.manifest["profile_hash"]}}
    with tempfile.TemporaryDirectory() as drawn:
        redraw(run.data, drawn)
        write_json(DEFAULT / "manifest.json", head)
        _into_ledger(run, head, Path(drawn), f"for its minutes alone: {reason}")


def _into_ledger(run: Run, head: dict, drawn: Path, reason: str) -> None:
    """One more line of figures/data/reruns.csv. head: the run's manifest; drawn: where the claims' verdicts are."""
    counts = Counter(claim["verdict"] for claim in read_json(drawn / "claims.json"))
    row = {"date": max(a["started"] for tries in head["stages"].values() for a in tries)[:10], "profile": head["profile"],
           "seeds": " ".join(map(str, head["seeds"])), "commit": " ".join(commit[:7] for commit in head.get("commits", [head["commit"]])),
           "settings": head["profile_hash"][:12], "rules": head["freeze"]["rules"][:12],
           **{f"{model}_{domain}": _cell([r for r in run.rows("table2.csv") if (r["model"], r["domain"]) == (model, domain)])
              for model in ("sft", "rl") for domain in ("WEB", "EGO")},
           "verdicts": ", ".join(f"{n} {name}" for name, n in sorted(counts.items())), "reason": reason}  # fmt: skip
    before = read_csv(LEDGER) if LEDGER.exists() else []
    write_csv(LEDGER, [{key: line.get(key, "") for key in row} for line in [*before, row]])


def draw() -> None:
    """The figures as SVG with their alt texts, the tables as Markdown, the data of both: for those who only look."""
    shutil.rmtree(DRAWN, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        for path in redraw(DATA, folder):
            if path.suffix in (".svg", ".txt", ".md", ".json", ".csv"):
                write_atomic(DRAWN / path.name, path.read_bytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path, help="run folders to take")
    parser.add_argument("--minutes", action="store_true", help="take a run of the first command for its minutes and memory alone")
    parser.add_argument("--reason", help="why the reference run is made (anew)")
    args = parser.parse_args()
    if args.runs and not args.reason:
        parser.error("a new reference run needs its --reason: it becomes a line of figures/data/reruns.csv")
    if args.minutes and len(args.runs) != 1:
        parser.error("--minutes takes one run folder")
    try:
        if args.minutes:
            take_minutes(args.runs[0], args.reason)
        else:
            take(args.runs, args.reason) if args.runs else draw()
    except UserError as error:
        sys.exit(str(error))
    write_atomic(ROOT / "README.md", filled((ROOT / "README.md").read_text()))
