"""`mmduet2 data`: a profile's dataset; `mmduet2 data check`: what corpora the kit reads, and how well it reads a folder of one."""

from collections import Counter
from pathlib import Path

from ..errors import UserError
from ..profile import add_profile_arguments, load_profile
from ..progress import lines
from . import benchmarks  # noqa: F401 - it registers its readers
from .build import Dataset, build, table1
from .readers import READERS, Bad, Clip


def add_arguments(parser) -> None:
    parser.add_argument("action", nargs="?", choices=("make", "check"), default="make", help="make the profile's data (default), or check a corpus")
    parser.add_argument("folder", nargs="?", type=Path, help="check: where the corpus was unpacked (without: the list of corpora)")
    parser.add_argument("--corpus", choices=sorted(READERS), help="check: which one it is")
    add_profile_arguments(parser, seeded=False)


def run(args) -> None:
    """`mmduet2 data`: build a profile's dataset under runs/<profile>/data and write table1.csv; one that it names is only looked at."""
    if args.action == "check":
        return check(args.folder, args.corpus)
    if args.folder or args.corpus:
        raise UserError("mmduet2 data makes a profile's data and takes no folder: say `check` before it, or leave it out.")
    profile = load_profile(args.profile)
    if profile.dataset:
        dataset = Dataset(profile.data)
        if missing := dataset.missing([profile.video.train_interval]):
            raise UserError(f"The dataset {profile.data} lacks {', '.join(missing)}: put or link a built one there, or change `dataset`.")
        print(f"The dataset {profile.data} is used as it is.")
    else:
        dataset = build(profile, profile.data, lines)
    table1(profile, dataset, profile.results / "table1.csv")


def check(folder: Path | None, corpus: str | None) -> None:
    """The readers and what each was written from; for a folder: records read, left out and why, videos that are there."""
    if folder is None:
        for one in READERS.values():
            print(f"{one.name:<17} {one.seen:<11} reads {one.files}\n{'':<17} from {one.source}\n{'':<17} licence: {one.licence}; access: {one.access}")
        print("SEEN: a data file or the owners' code was read; DOCUMENTED: their documentation; UNVERIFIED: neither, claims nothing.")
        return
    if corpus is None or not folder.is_dir():
        raise UserError(f"{folder}: give a folder that is there, and --corpus, one of {', '.join(READERS)}.")
    counts, reasons, there = Counter(), Counter(), 0
    for one in READERS[corpus].read(folder):
        counts["left out" if isinstance(one, Bad) else "read"] += 1
        if isinstance(one, Bad):
            reasons[one.reason] += 1
        else:
            video = one.video if isinstance(one, Clip) else one["video"] if isinstance(one, dict) else one.video
            there += (folder / video).exists()
            counts["scenes"] += len(one.scenes) if isinstance(one, Clip) else 0
            counts["sentences"] += len(one.speech) if isinstance(one, Clip) else 0
    print(f"{corpus} ({READERS[corpus].seen}) in {folder}: " + ", ".join(f"{counts[name]} {name}" for name in ("read", "left out", "scenes", "sentences")))
    print(f"videos that are there: {there} of {counts['read']}")
    for reason, many in reasons.most_common(5):
        print(f"left out, {many} times: {reason}")
