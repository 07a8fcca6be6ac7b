"""Experiments apart from the study, each of which varies one cause of what there differs from the paper; claims.yaml reads the results.

`python tests/benchmarks/apart.py offline_share`: does the share of offline samples in SFT decide on offline ability (Table 4)?
`python tests/benchmarks/apart.py early_silence`: does RL fall silent in its first steps because SFT says little, or because of what
speaking costs (Table 2's TV and VAD, Figure 5)? SFT with other weights of NO REPLY turns; RL without r_pfx.
Data, base, SFT and RL are made as the study makes them, but for that cause, in folders of their own (--work; a killed run goes on
there). On two cores 12 and 40 minutes a seed. Written: tests/benchmarks/results/EXPERIMENT.csv (or --out).
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
WEIGHTS = (0.25, 1.0, 0.5)  # the study's is the last one


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
            there.unlink(missing_ok=True)  # a link to where --work was before
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(first.model_dir("base", seed).resolve(), target_is_directory=True)


def tested(profile: Profile, seed: int, model: str, *words: str) -> dict:
    """The evaluation's file of a model."""
    kit("evaluate", profile, seed, "--model", model, *words)
    return read_json(profile.results / "eval" / f"{model}-seed{seed}.json")


def offline_share(profile: Profile, seed: int, share: float) -> list[dict]:
    """{model, seed, offline_share (empty: the base), task, accuracy in percent, n}."""
    rows = []
    kit("sft", profile, seed)
    for model in ("base", "sft") if share == SHARES[0] else ("sft",):
        part = tested(profile, seed, model, "--domains", "VAD", "--extras", "offline")["offline"]
        rows += [{"model": model, "seed": seed, "offline_share": share if model == "sft" else "", "task": task,
                  "accuracy": round(100 * part[task][0], 4), "n": part[task][1]} for task in ("caption", "attribute_qa")]  # fmt: skip
    return rows


def early_silence(profile: Profile, seed: int, weight: float) -> list[dict]:
    """{seed, no_reply_weight, model, step, domain, pauc, reply_turns}: dev WEB and dev EGO during RL (development videos), TV and VAD at the end."""
    kit("sft", profile, seed)
    kit("grpo", profile, seed)
    for arm in profile.ablation.arms:
        kit("grpo", profile, seed, "--arm", arm)
    found = [("rl", row["step"], f"dev {row['domain']}", row) for row in read_csv(profile.results / f"figure5_seed{seed}.csv")]
    trained = {"sft": 0, "rl": profile.rl.steps} | {f"rl-{arm}": profile.ablation.rl_steps for arm in profile.ablation.arms}
    for model, step in trained.items():
        parts = tested(profile, seed, model, "--domains", "TV,VAD")["proactive"]
        found += [(model, step, part["domain"], pooled(part["rows"])) for part in parts]
    return [{"seed": seed, "no_reply_weight": weight, "model": model, "step": step, "domain": domain, "pauc": row["pauc"], "reply_turns": row["reply_turns"]}
            for model, step, domain, row in found]  # fmt: skip


EXPERIMENTS = {
    offline_share: {share: {"dialogue": {"offline_share": share}} for share in SHARES},
    early_silence: {weight: {"sft": {"no_reply_weight": weight}, "ablation": {"arms": ["no_pfx"] if weight == WEIGHTS[-1] else []}} for weight in WEIGHTS},
}


def main() -> None:
    named = {experiment.__name__: experiment for experiment in EXPERIMENTS}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("experiment", choices=named)
    parser.add_argument("--work", type=Path, help="where models lie (default: runs/apart/EXPERIMENT)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--parallel", type=int, default=2, help="trainings side by side (default: 2)")
    parser.add_argument("--out", type=Path, help="default: tests/benchmarks/results/EXPERIMENT.csv; other seeds' rows there stay")
    args = parser.parse_args()
    out, experiment = (args.out or RESULTS / f"{args.experiment}.csv").resolve(), named[args.experiment]
    work = args.work or Path("runs/apart") / args.experiment
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    profiles = made(EXPERIMENTS[experiment])

    with ThreadPoolExecutor(args.parallel) as side:
        list(side.map(lambda seed: same_base(profiles, seed), args.seeds))
        each = [(seed, value) for seed in args.seeds for value in profiles]
        rows = [row for part in side.map(lambda one: experiment(profiles[one[1]], *one), each) for row in part]
    kept = [row for row in read_csv(out) if int(row["seed"]) not in args.seeds] if out.is_file() else []
    write_csv(out, sorted(kept + rows, key=lambda row: int(row["seed"])))
    print(f"{out}: {len(rows)} rows of seeds {args.seeds}, {len(kept)} of others")


if __name__ == "__main__":
    main()
