"""`mmduet2 data`: a profile's dataset; `data check`: what corpora the kit reads, and how well it reads a folder of one; `data
build`: a dataset from own videos or from a corpus."""

from collections import Counter
from pathlib import Path

from .corpus import benchmarks  # noqa: F401 - it registers its readers
from .corpus.annotate import get_annotator
from .corpus.build import Dataset, build
from .corpus.pipeline import VIDEOS, Plan, build_corpus, join, own_videos
from .corpus.readers import READERS, Bad, Clip
from .doctor import unmeasured
from .errors import UserError
from .files import read_json
from .manifest import cores
from .profile import add_profile_arguments, load_profile
from .progress import lines
from .score import judge_of

from illustrate import table1  # isort: skip - of figures/, which doctor makes importable


def add_arguments(parser) -> None:
    parser.add_argument("action", nargs="?", choices=("make", "check", "build"), default="make",
                        help="make the profile's data (default), check a corpus, or build a dataset from videos")  # fmt: skip
    parser.add_argument("folder", nargs="?", type=Path, help="of videos, or where a corpus was unpacked (check without: the list of corpora)")
    parser.add_argument("--corpus", choices=sorted(READERS), help="which one it is (build without: own videos)")
    build_group = parser.add_argument_group("build")
    build_group.add_argument("--out", type=Path, help="the dataset's folder")
    build_group.add_argument("--annotator", choices=("llm", "template"), default="llm", help="who writes captions and questions (default: llm)")
    build_group.add_argument("--domain", choices=("web", "ego"), default="web", help="of own videos (default: web)")
    build_group.add_argument("--shard", default="0/1", metavar="I/N", help="this machine's part of the work, from 0/N to N-1/N (default: 0/1)")
    build_group.add_argument("--workers", type=int, default=cores(), help="processes that decode (default: one a core)")
    add_profile_arguments(parser, seeded=False)


def run(args) -> None:
    """`mmduet2 data`: build a profile's dataset under runs/<profile>/data and write table1.csv; one that it names is only looked at."""
    if args.action == "check":
        return check(args.folder, args.corpus)
    if args.action == "build":
        return build_dataset(args)
    if args.folder or args.corpus or args.out:
        raise UserError("mmduet2 data makes a profile's data and takes no folder: say `check` or `build` before it, or leave it out.")
    profile = load_profile(args.profile)
    if profile.dataset:
        dataset = Dataset(profile.data)
        dataset.check(profile.video.train_interval)
        print("; ".join([f"The dataset {profile.data} is used as it is", *unmeasured(dataset)]) + ".")
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
            video = one["video"] if isinstance(one, dict) else one.video
            there += (folder / video).exists()
            counts["scenes"] += len(one.scenes) if isinstance(one, Clip) else 0
            counts["sentences"] += len(one.speech) if isinstance(one, Clip) else 0
    print(f"{corpus} ({READERS[corpus].seen}) in {folder}: " + ", ".join(f"{counts[name]} {name}" for name in ("read", "left out", "scenes", "sentences")))
    print(f"videos that are there: {there} of {counts['read']}")
    for reason, many in reasons.most_common(5):
        print(f"left out, {many} times: {reason}")


def build_dataset(args) -> None:
    """`mmduet2 data build DIR --out DATASET`: this machine's shards; the dataset is put together once all shards are there."""
    index, _, count = args.shard.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UserError(f"--shard {args.shard!r}: give this machine's number and how many there are, from 0/4 to 3/4.")
    if args.corpus and READERS[args.corpus].gives != "clips":
        raise UserError(f"{args.corpus} holds {READERS[args.corpus].gives}, of which no dataset is built: choose from "
                        f"{', '.join(name for name, one in READERS.items() if one.gives == 'clips')}.")
    if not (args.folder and args.folder.is_dir() and args.out):
        raise UserError(f"{args.folder}: give a folder of videos that is there, and --out, the dataset's folder.")
    profile = load_profile(args.profile)
    plan, out = Plan(profile, args.annotator), args.out
    out.mkdir(parents=True, exist_ok=True)
    annotator = get_annotator(args.annotator, out / "annotations.sqlite")
    clips = READERS[args.corpus].read(args.folder) if args.corpus else own_videos(args.folder, args.domain)
    judge = judge_of(profile, out / "judgements.sqlite")
    say = lambda shards, seen: print(f"building: {shards} shards, {seen} clips", flush=True)  # noqa: E731
    shards = build_corpus(plan, annotator, judge, clips, args.folder, out, part=(int(index), int(count)), workers=args.workers, progress=say)
    if not shards:
        raise UserError(f"{args.folder} holds no videos ({', '.join(VIDEOS)}): give their folder.")
    missing = sum(not shard.is_dir() for shard in shards)
    if missing:
        print(f"{len(shards) - missing} of {len(shards)} shards are there; the dataset is put together when the other parts are done.")
        return
    join(plan, out, shards)
    counts = {name: sum(1 for _ in open(out / f"{name}.jsonl")) for name in (f"sft_{profile.video.train_interval:g}s", f"rl_{profile.video.train_interval:g}s", "dev", "test")}
    print(f"{out}: " + ", ".join(f"{many} {name}" for name, many in counts.items()))
    for rule in (row for row in read_json(out / "ledger.json") if row["out"] < row["in"]):
        print(f"left out by '{rule['rule']}': {rule['in'] - rule['out']} of {rule['in']}, for example {rule['examples'][0]['item'][:60]}: {rule['examples'][0]['reason'][:80]}")
    if counts_of := dict(getattr(annotator, "counts", {})):
        print("annotator: " + ", ".join(f"{name} {many}" for name, many in sorted(counts_of.items())))
