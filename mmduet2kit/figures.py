"""`mmduet2 figures`: redraw every figure and table from results files; nothing is trained again."""

from pathlib import Path

from .errors import UserError


def add_arguments(parser) -> None:
    """Arguments of `mmduet2 figures`."""
    parser.add_argument("--profile", help="draw this run (default: the committed reference run)")
    parser.add_argument("--data", type=Path, help="draw the results files of this folder instead")
    parser.add_argument("--out", type=Path, help="where to put the drawings (default: figures/out)")


def run(args) -> int:
    """Draw; exit 2 when there is nothing to draw from."""
    if args.profile and args.data:
        raise UserError("--profile and --data exclude each other: give one of them.")
    data, out = args.data or Path("figures/data/study"), args.out or Path("figures/out")
    if args.profile:
        from .profile import load_profile

        profile = load_profile(args.profile)
        data, out = profile.results, args.out or profile.run_dir / "figures"
    if not data.is_dir() or not any(data.iterdir()):
        raise UserError(f"{data} holds no results: run a profile first (./run_all.sh), then give --profile.")
    from .report import redraw

    redraw(data, out)
    print(f"Drawn from {data} into {out}")
    return 0
