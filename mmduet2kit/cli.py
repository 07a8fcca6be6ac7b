"""`mmduet2 ...`: one table of commands; a command's module is imported only when that command is asked for.

A module that stands in the table has `add_arguments(parser)` and `run(args) -> int | None`.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from . import __version__
from .errors import UserError

COMMANDS = {  # name: (module, what it does, an example)
    "run": ("mmduet2kit.runner", "execute the notebooks in order", "mmduet2 run --profile tiny --from 04"),
    "doctor": ("mmduet2kit.doctor", "is this machine fit for a profile?", "mmduet2 doctor --profile tiny"),
    "figures": ("mmduet2kit.figures", "redraw figures and tables", "mmduet2 figures --profile tiny"),
    "watch": ("mmduet2kit.watch", "watch a video and speak when there is something to say",
              'mmduet2 watch street.mp4 --question "What is happening?" --json'),
    "score": ("mmduet2kit.score.command", "score predictions with PAUC",
              "mmduet2 score --annotations A.json --predictions P.jsonl --judge exact"),
    "data": ("mmduet2kit.corpus.build", "build the data of a profile", "mmduet2 data --profile tiny"),
    "base": ("mmduet2kit.train.base", "teach a small model to caption", "mmduet2 base --profile tiny"),
    "sft": ("mmduet2kit.train.sft", "supervised fine-tuning", "mmduet2 sft --profile tiny --seed 0"),
    "grpo": ("mmduet2kit.train.grpo", "multi-turn GRPO", "mmduet2 grpo --profile tiny --seed 0"),
    "evaluate": ("mmduet2kit.evaluate", "proactive and offline tests", "mmduet2 evaluate --profile tiny"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (2: bad usage or input)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    listing = "\n".join(f"  {name:<9} {text}" for name, (_, text, _) in COMMANDS.items())
    top = argparse.ArgumentParser(
        prog="mmduet2", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"A reproducible research kit for MMDuet2.\n\ncommands:\n{listing}",
        epilog="example: mmduet2 run --profile tiny\nmmduet2 COMMAND --help says more about one command.")
    top.add_argument("--version", action="version", version=f"mmduet2kit {__version__}")
    top.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    name = top.parse_args(argv[:1]).command
    try:
        module = _module(name)
        _, text, example = COMMANDS[name]
        parser = argparse.ArgumentParser(prog=f"mmduet2 {name}", description=text[0].upper() + text[1:] + ".",
                                         epilog=f"example: {example}")
        module.add_arguments(parser)
        return module.run(parser.parse_args(argv[1:])) or 0
    except UserError as error:
        print(f"mmduet2 {name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `mmduet2 ... | head`
        sys.stderr.close()
        return 0


def _module(name: str):
    """Import a command's module; a sentence, not a traceback, when it or a package it needs is not there."""
    path = COMMANDS[name][0]
    absent = UserError(f"this version of mmduet2kit does not have the command {name!r} yet ({path}).")
    try:
        module = importlib.import_module(path)
        if hasattr(module, "add_arguments"):
            return module
        raise absent
    except ModuleNotFoundError as error:
        if path == error.name or path.startswith(f"{error.name}."):
            raise absent from None
        raise UserError(f"it needs the package {error.name}, which is not installed here: "
                        "./run_all.sh sets up an environment that has it.") from None


if __name__ == "__main__":
    sys.exit(main())
