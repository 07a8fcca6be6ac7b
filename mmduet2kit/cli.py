"""`mmduet2 ...`: one table of commands; a command's module is imported only when that command is asked for.

Each module has `add_arguments(parser)` and `run(args) -> int | None`; those of this one are of `figures`.
"""

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .errors import UserError

COMMANDS = {  # name: (module, what it does, an example)
    "run": ("mmduet2kit.runner", "execute the notebooks in order", "mmduet2 run --profile tiny --from 04\nmmduet2 run --profile study@2 --dry-run"),
    "doctor": ("mmduet2kit.doctor", "is this machine fit for a profile?", "mmduet2 doctor --profile tiny"),
    "figures": ("mmduet2kit.cli", "redraw figures and tables", "mmduet2 figures --profile tiny"),
    "data": ("mmduet2kit.datasets", "build, check, look at and publish datasets",
             "mmduet2 data --profile tiny\nmmduet2 data check\nmmduet2 data check EgoExoLearn --corpus egoexolearn\nmmduet2 data build my_videos --out datasets/mine --profile paper\n"
             "mmduet2 data join datasets/all datasets/mine datasets/ego\nmmduet2 data look runs/tiny/data\nmmduet2 data card datasets/mine\nmmduet2 data export datasets/mine mine-hf"),
    "base": ("mmduet2kit.train.base", "teach a small model to caption", "mmduet2 base --profile tiny --seed 1"),
    "sft": ("mmduet2kit.train.sft", "supervised fine-tuning", "mmduet2 sft --profile tiny --seed 1\nmmduet2 sft --profile tiny --seed 1 --threshold"),
    "grpo": ("mmduet2kit.train.grpo", "multi-turn GRPO", "mmduet2 grpo --profile tiny --seed 1\nmmduet2 grpo --profile tiny --seed 1 --arm no_rep"),
    "evaluate": ("mmduet2kit.evaluation", "proactive and offline tests", "mmduet2 evaluate --profile tiny --seed 1 --model rl --extras offline,po"),
    "lmms": ("mmduet2kit.lmms", "Video-MME, MVBench and LongVideoBench by lmms-eval", "mmduet2 lmms --profile paper --model rl -- --limit 8"),
    "watch": ("mmduet2kit.watch", "watch a video and speak when there is something to say", "mmduet2 watch video.mp4 --question 'What is happening?' --ask 12.5:'Who came in?'\nmmduet2 watch rtsp://camera --question 'What is happening?' --speed 1 --late drop"),
    "score": ("mmduet2kit.scoring", "score anybody's predictions", "mmduet2 score --annotations WEB.json --predictions mine.jsonl --judge exact"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (2: bad usage or input, 130: Ctrl-C)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    listing = "\n".join(f"  {name:<9} {text}" for name, (_, text, _) in COMMANDS.items())
    top = argparse.ArgumentParser(
        prog="mmduet2", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"A reproducible research kit for MMDuet2.\n\ncommands:\n{listing}",
        epilog="example: mmduet2 run --profile tiny\nmmduet2 COMMAND --help says more about one command.")
    top.add_argument("--version", action="version", version=f"mmduet2kit {__version__}")
    top.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    name = top.parse_args(argv[:1]).command
    path, text, example = COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"mmduet2 {name}", description=text, epilog="example: " + example.replace("\n", "\n         "), formatter_class=argparse.RawDescriptionHelpFormatter)
    try:
        module = importlib.import_module(path)
        module.add_arguments(parser)
        return module.run(parser.parse_args(argv[1:])) or 0
    except KeyboardInterrupt:  # also while modules are imported or a model is loaded
        return 130
    except UserError as error:
        reason = str(error)
    except (OSError, RecursionError, UnicodeError) as error:
        full = getattr(error, "errno", None) in (errno.EPIPE, errno.ENOSPC)
        place = getattr(error, "filename", None) or ("its output" if full else "its input")
        sys.stdout = open(os.devnull, "w") if full else sys.stdout  # what is still buffered would fail again at the end
        reason = f"{place}: {getattr(error, 'strerror', None) or error}. Mend that, and start again."
    except ModuleNotFoundError as error:
        reason = f"it needs {error.name}, which is not installed here: ./run_all.sh installs what there is."
    print(f"mmduet2 {name}: {reason}", file=sys.stderr)
    return 2


def add_arguments(parser) -> None:
    """Arguments of `mmduet2 figures`."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--profile", help="draw the run of this profile (default: the committed reference run)")
    source.add_argument("--data", type=Path, help="draw the results files of this folder instead")
    parser.add_argument("--out", type=Path, help="where to put the drawings (default: figures/out, or runs/PROFILE/figures)")


def run(args) -> int:
    """`mmduet2 figures`: redraw every figure and table from results files; nothing is trained again."""
    from .profile import load_profile
    from .report import STUDY, redraw

    data, out = args.data or STUDY, args.out or Path("figures/out")
    if args.profile:
        profile = load_profile(args.profile)
        data, out = profile.results, args.out or profile.run_dir / "figures"
    if not any(data.glob("*.csv")):
        raise UserError(f"{data} holds no results: run a profile first (./run_all.sh), then give --profile.")
    redraw(data, out)
    print(f"Drawn from {data} into {out}")
    return 0
