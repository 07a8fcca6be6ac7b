"""Does the share of offline samples in SFT decide on offline ability (Table 4)? The study's models at its share and at the paper's.

`python tests/benchmarks/offline_share.py --out tests/benchmarks/results/offline_share.csv`: data, base and SFT as notebooks 01 and 03
make them, in a folder of its own (--work; a killed run goes on there), about 12 minutes a seed on two cores. Nothing else varies:
the proactive dialogues, steps and the base are the same. figures/claims.yaml reads the file where the offline claims differ.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmduet2kit.corpus.build import build
from mmduet2kit.files import read_json, write_csv
from mmduet2kit.profile import load_profile

SHARES = (0.2, 0.4957)  # the study's; the paper's (section 4.2: 50k of 100.9k)
TASKS = ("caption", "attribute_qa")


def kit(*words) -> None:
    """One command of the kit, or the end of this script with its words."""
    subprocess.run([sys.executable, "-m", "mmduet2kit", *map(str, words)], check=True)


def profiles() -> dict[float, str]:
    """A profile's file for each share; data and bases of the first serve both."""
    found = {}
    for share in SHARES:
        path = Path(f"offline_share_{share:g}.yaml")
        data = f"dataset: runs/offline-{SHARES[0]:g}/data\n" if share != SHARES[0] else ""
        path.write_text(f"extends: study\nname: offline-{share:g}\n{data}dialogue: {{offline_share: {share:g}}}\n")
        found[share] = str(path)
    return found


def seed_rows(named: dict[float, str], seed: int) -> list[dict]:
    """Train a seed's models, test them; {seed, share (empty: the base), task, accuracy in percent, n}."""
    first, rows = named[SHARES[0]], []
    kit("base", "--profile", first, "--seed", seed)
    base = load_profile(first).model_dir("base", seed).resolve()
    for share, profile in named.items():
        here = load_profile(profile).model_dir("base", seed)
        if not here.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(base, target_is_directory=True)
        kit("sft", "--profile", profile, "--seed", seed)
        for model in ("base", "sft") if share == SHARES[0] else ("sft",):
            kit("evaluate", "--profile", profile, "--seed", seed, "--model", model, "--domains", "VAD", "--extras", "offline")
            part = read_json(load_profile(profile).results / "eval" / f"{model}-seed{seed}.json")["offline"]
            rows += [{"model": model, "seed": seed, "offline_share": share if model == "sft" else "", "task": task,
                      "accuracy": round(100 * part[task][0], 4), "n": part[task][1]} for task in TASKS]  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/offline_share"), help="where models lie (default: runs/offline_share)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--parallel", type=int, default=2, help="seeds side by side (default: 2)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = args.out and args.out.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    os.chdir(args.work)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    named = profiles()
    first = load_profile(named[SHARES[0]])
    build(first, first.data, lambda what: lambda done, of: None)
    with ThreadPoolExecutor(args.parallel) as side:
        rows = [row for part in side.map(lambda seed: seed_rows(named, seed), args.seeds) for row in part]
    for row in rows:
        print(row)
    if out:
        write_csv(out, rows)


if __name__ == "__main__":
    main()
