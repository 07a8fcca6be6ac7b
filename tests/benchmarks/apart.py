"""Experiments apart from the study, each of which varies one cause of what there differs from the paper; claims.yaml reads the results.

`python tests/benchmarks/apart.py offline_share`: does the share of offline samples in SFT decide on offline ability (Table 4)?
`python tests/benchmarks/apart.py no_reply_weight`: does how much the SFT model says decide on what RL becomes of it (Table 2, Figure 5)?
Data, base, SFT and RL are made as the study makes them, but for that cause, in folders of their own (--work; a killed run goes on
there). On two cores a pair of seeds takes 25 minutes and two hours. Written: tests/benchmarks/results/EXPERIMENT.csv (or --out).
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from mmduet2kit.corpus.build import build
from mmduet2kit.evaluate import pooled
from mmduet2kit.files import read_csv, read_json, write_atomic, write_csv
from mmduet2kit.profile import Profile, load_profile

RESULTS = Path(__file__).resolve().parent / "results"
SHARES = (0.2, 0.4957)  # the study's; the paper's (section 4.2: 50k of 100.9k)
WEIGHTS = (0.25, 1.0, 0.5)  # the study's is the last one; its RL goes on to twice the steps, and stays as rl-short where the study ends


def kit(command: str, profile: Profile, seed: int, *words) -> None:
    """One command of the kit, or the end of this script with its words."""
    subprocess.run([sys.executable, "-m", "mmduet2kit", command, "--profile", f"{profile.name}.yaml", "--seed", str(seed), *words], check=True)


def made(settings: dict[float, dict]) -> dict[float, Profile]:
    """A profile for each value of the cause; the first one's data serve all."""
    found, first = {}, None
    for value, changes in settings.items():
        name = f"apart-{value:g}"
        over = {"extends": "study", "name": name, **({"dataset": str(first.data)} if first else {}), **changes}
        write_atomic(Path(f"{name}.yaml"), yaml.safe_dump(over))
        found[value] = load_profile(f"{name}.yaml")
        first = first or found[value]
    build(first, first.data, lambda what: lambda done, of: None)
    return found


def same_base(profiles: dict[float, Profile], seed: int) -> None:
    """Train the seed's base once, and let all start from it."""
    first, *others = profiles.values()
    kit("base", first, seed)
    for other in others:
        there = other.model_dir("base", seed)
        if not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(first.model_dir("base", seed).resolve(), target_is_directory=True)


def tested(profile: Profile, seed: int, model: str, *words: str) -> dict:
    """The evaluation's file of a model."""
    kit("evaluate", profile, seed, "--model", model, *words)
    return read_json(profile.results / "eval" / f"{model}-seed{seed}.json")


def offline_share(profiles: dict[float, Profile], seed: int) -> list[dict]:
    """{model, seed, offline_share (empty: the base), task, accuracy in percent, n}."""
    rows = []
    for share, profile in profiles.items():
        kit("sft", profile, seed)
        for model in ("base", "sft") if share == SHARES[0] else ("sft",):
            part = tested(profile, seed, model, "--domains", "VAD", "--extras", "offline")["offline"]
            rows += [{"model": model, "seed": seed, "offline_share": share if model == "sft" else "", "task": task,
                      "accuracy": round(100 * part[task][0], 4), "n": part[task][1]} for task in ("caption", "attribute_qa")]  # fmt: skip
    return rows


def no_reply_weight(profiles: dict[float, Profile], seed: int) -> list[dict]:
    """{seed, no_reply_weight, model, step, domain, pauc, reply_turns}: on development videos during RL, of TV and VAD at the end."""
    rows = []
    for weight, profile in profiles.items():
        kit("sft", profile, seed)
        kit("grpo", profile, seed)
        for row in read_csv(profile.results / f"figure5_seed{seed}.csv"):
            rows.append({"model": "rl", **{key: row[key] for key in ("step", "domain", "pauc", "reply_turns")}, "domain": f"dev {row['domain']}"})
        longer = profile.rl.steps > profile.ablation.rl_steps
        for model, step in (("sft", 0), *([("rl-short", profile.ablation.rl_steps)] if longer else []), ("rl", profile.rl.steps)):
            for part in tested(profile, seed, model, "--domains", "TV,VAD")["proactive"]:
                found = pooled(part["rows"])
                rows.append({"model": model.split("-")[0], "step": step, "domain": part["domain"], "pauc": found["pauc"], "reply_turns": found["reply_turns"]})
        for row in rows:
            row.setdefault("no_reply_weight", weight)
    return [{"seed": seed, **row} for row in rows]


EXPERIMENTS = {
    offline_share: {share: {"dialogue": {"offline_share": share}} for share in SHARES},
    no_reply_weight: {weight: {"sft": {"no_reply_weight": weight}, "rl": {"steps": 200 if weight == WEIGHTS[-1] else 100}} for weight in WEIGHTS},
}


def main() -> None:
    named = {experiment.__name__: experiment for experiment in EXPERIMENTS}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("experiment", choices=named)
    parser.add_argument("--work", type=Path, help="where models lie (default: runs/apart/EXPERIMENT)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--parallel", type=int, default=2, help="seeds side by side (default: 2)")
    parser.add_argument("--out", type=Path, help="default: tests/benchmarks/results/EXPERIMENT.csv; other seeds' rows there stay")
    args = parser.parse_args()
    out, experiment = (args.out or RESULTS / f"{args.experiment}.csv").resolve(), named[args.experiment]
    work = args.work or Path("runs/apart") / args.experiment
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    profiles = made(EXPERIMENTS[experiment])

    def rows_of(seed: int) -> list[dict]:
        same_base(profiles, seed)
        return experiment(profiles, seed)

    with ThreadPoolExecutor(args.parallel) as side:
        rows = [row for part in side.map(rows_of, args.seeds) for row in part]
    kept = [row for row in read_csv(out) if int(row["seed"]) not in args.seeds] if out.is_file() else []
    write_csv(out, sorted(kept + rows, key=lambda row: int(row["seed"])))
    print(f"{out}: {len(rows)} rows of seeds {args.seeds}, {len(kept)} of others")


if __name__ == "__main__":
    main()
