"""`mmduet2 data`: a profile's dataset; `data check`: what corpora the kit reads, and how well it reads a folder of one; `data
build`: a dataset from own videos, a corpus or a benchmark; `data join`: several built datasets as one; `data look`, `card`,
`export`: a page, a card, a copy to publish."""

import glob
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from . import __version__
from .corpus.annotate import get_annotator
from .corpus.build import Dataset, build
from .corpus.pipeline import VIDEOS, Plan, build_corpus, join, own_videos
from .corpus.readers import READERS, Bad, Clip
from .doctor import unmeasured
from .errors import UserError
from .files import read_json, write_json
from .joined import join_datasets
from .manifest import cores
from .profile import add_profile_arguments, load_profile, share
from .progress import lines
from .released import build_released
from .report import script
from .score import judge_of

from illustrate import table1  # isort: skip - of figures/, which doctor makes importable

SHOW = ("look", "card", "export")  # what is done with a dataset that is there


def add_arguments(parser) -> None:
    parser.add_argument("action", nargs="?", choices=("make", "check", "build", "join", *SHOW), default="make", help="make the profile's data (default), check a corpus, build a dataset from videos, join built ones, look at one, write its card, export it")
    parser.add_argument("folder", nargs="?", type=Path, help="of videos, where a corpus was unpacked (check without: the list of corpora), or of a dataset; join: the new one")
    parser.add_argument("datasets", nargs="*", type=Path, help="join: the built datasets; export: the copy's folder")
    parser.add_argument("--corpus", choices=sorted(READERS), help="which one it is (build without: own videos)")
    build_group = parser.add_argument_group("build")
    build_group.add_argument("--out", type=Path, help="the dataset's folder (look, card: the file to write; default: look.html or README.md in the dataset's folder)")
    build_group.add_argument("--annotator", choices=("llm", "template"), default="llm", help="who writes captions and questions (default: llm)")
    build_group.add_argument("--domain", choices=("web", "ego"), default="web", help="of own videos (default: web)")
    build_group.add_argument("--shard", type=share, default="0/1", metavar="I/N", help="this machine's part of the work, from 0/N to N-1/N (default: 0/1)")
    build_group.add_argument("--shares", type=shares, default=Plan.shares, metavar="RL,DEV,TEST", help="of the videos, the rest for SFT (default: 0.04,0.01,0.02)")
    build_group.add_argument("--workers", type=int, default=cores(), help="processes that decode (default: one a core)")
    parser.add_argument("--count", type=int, default=12, help="look: how many dialogues (default: 12)")
    parser.add_argument("--pictures", choices=("jpeg", "png"), default="jpeg", help="export: PNG loses nothing and takes several times as much (default: jpeg)")
    add_profile_arguments(parser, seeded=False)


def shares(text: str) -> tuple[float, ...]:
    """An argument "RL,DEV,TEST": the shares of the videos for these splits; some must be left for SFT."""
    try:
        found = tuple(map(float, text.split(",")))
    except ValueError:
        found = ()
    if len(found) != 3 or not all(0 <= one < 1 for one in found) or sum(found) >= 1:
        raise UserError(f"--shares {text!r}: give the shares for RL, development and tests, such as 0.2,0.1,0.1; below 1 together, as the rest is for SFT.")
    return found


def run(args) -> None:
    """`mmduet2 data`: build a profile's dataset under runs/<profile>/data and write table1.csv; one that it names is only looked at."""
    if min(args.count, args.workers) < 1:
        raise UserError("--count and --workers must be 1 or more.")
    if args.action == "check":
        return check(args.folder, args.corpus)
    if args.action == "build":
        return build_dataset(args)
    if args.action in SHOW:
        return show(args)
    if args.action == "join":
        if not args.folder:
            raise UserError("give the new dataset's folder and those to be joined: mmduet2 data join datasets/all datasets/ego datasets/bench.")
        return tell(join_datasets(args.folder, args.datasets))
    if args.folder or args.corpus or args.out:
        raise UserError("mmduet2 data makes a profile's data and takes no folder: say `check`, `build` or `join` before it, or leave it out.")
    profile = load_profile(args.profile)
    if profile.dataset:
        dataset = Dataset(profile.data)
        dataset.check(profile.video.train_interval)
        print("; ".join([f"The dataset {profile.data} is used as it is", *unmeasured(dataset)]) + ".")
    else:
        dataset = build(profile, profile.data, lines)
        about(profile, profile.data, "procedural", "template")
    table1(profile, dataset, profile.results / "table1.csv")


def show(args) -> None:
    """`mmduet2 data look | card | export`: the page, the card, the copy of a dataset."""
    if not (args.folder and args.folder.is_dir()):
        raise UserError(f"{args.folder or args.action}: give the folder of a dataset that is there, such as runs/tiny/data.")
    if args.action == "export":
        from .export import export  # only here: it imports datasets and pyarrow

        path = export(args.folder, next(iter(args.datasets), args.out), args.pictures, args.workers)
    else:
        page = script("dataset")
        path = page.look(args.folder, args.out, args.count) if args.action == "look" else page.card(args.folder, args.out)
    print(f"written: {path}")


def about(profile, folder: Path, corpus: str, annotator: str, **more) -> None:
    """Write about.json: from what and with what a dataset was made, for its card."""
    settings = {name: getattr(profile, name).model_dump(mode="json") for name in ("video", "dialogue")}
    source = {"corpus": corpus, "annotator": annotator, "kit": __version__, "profile": profile.name, "settings": settings}
    write_json(folder / "about.json", {"sources": [source | more]})


def check(folder: Path | None, corpus: str | None) -> None:
    """The readers and what each was written from; for a folder: records read, left out and why, videos that are there."""
    if folder is None:
        for one in READERS.values():
            print(f"{one.name:<17} {one.seen:<11} reads {one.files}\n{'':<17} fields: {one.fields}\n{'':<17} from {one.source}\n{'':<17} licence: {one.licence}; access: {one.access}")
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
            there += (folder / video).is_file()
            counts["scenes"] += len(one.scenes) if isinstance(one, Clip) else 0
            counts["sentences"] += len(one.speech) if isinstance(one, Clip) else 0
    print(f"{corpus} ({READERS[corpus].seen}) in {folder}: " + ", ".join(f"{counts[name]} {name}" for name in ("read", "left out", "scenes", "sentences")))
    print(f"videos that are there: {there} of {counts['read']}")
    for reason, many in reasons.most_common(5):
        print(f"left out, {many} times: {reason}")
    if not counts["read"]:
        raise UserError(f"{folder} holds no record of {corpus} that can be read ({READERS[corpus].files}): give the folder of its files.")


def build_dataset(args) -> None:
    """`mmduet2 data build DIR --out DATASET`: this machine's shards; the dataset is put together once all shards are there."""
    if args.corpus == "mmduet2-data":
        return build_release(args)
    gives = READERS[args.corpus].gives if args.corpus else "clips"
    if not (args.folder and args.folder.is_dir() and args.out):
        raise UserError(f"{args.folder or args.action}: give a folder of videos that is there, and --out, the dataset's folder.")
    profile = load_profile(args.profile)
    annotator, judge, endpoints, out, made_with = None, None, [], args.out, gives
    unmixed(out, (out / "shards").is_dir() or (out / "annotations.sqlite").is_file())
    (out / "shards").mkdir(parents=True, exist_ok=True)
    if gives == "clips":
        annotator, judge = get_annotator(args.annotator, out / "annotations.sqlite"), judge_of(profile, out / "judgements.sqlite")
        endpoints = [one.endpoint for one in (annotator, judge.judge) if hasattr(one, "endpoint")]
        made_with = " ".join([args.annotator, profile.judge.name, *(one.model for one in endpoints)])
    plan = Plan(profile, made_with, args.shares)
    read = partial(READERS[args.corpus].read, args.folder) if args.corpus else partial(own_videos, args.folder, args.domain)
    clips, total = asked(args.corpus, read(), args.folder) if gives == "records" else read(), sum(1 for _ in read())
    say = lines("building, clips")
    left = lambda made, seen: say(made, made + (total - seen) // args.shard[1])  # noqa: E731 - of what this call makes
    shards = build_corpus(plan, annotator, judge, clips, args.folder, out, part=args.shard, workers=args.workers, progress=left)
    if not shards:
        raise UserError(f"{args.folder} holds no {args.corpus or 'videos'} ({READERS[args.corpus].files if args.corpus else ', '.join(VIDEOS)}): give their folder.")
    for one in (one for one in endpoints if one.counts):
        print(one.told(endpoints[0].paid()["questions"]))
    missing = sum(not shard.is_dir() for shard in shards)
    if missing:
        print(f"{len(shards) - missing} of {len(shards)} shards are there; the dataset is put together when the other parts are done.")
        return
    join(plan, out, shards)
    about(profile, out, args.corpus or "own videos", annotator.name if annotator else "", **({"model": annotator.endpoint.model} if hasattr(annotator, "endpoint") else {}))
    tell(out)


def unmixed(out: Path, ours: bool) -> None:
    """UserError where the dataset's folder holds what is not `ours`, of an earlier or a killed build."""
    if out.is_dir() and any(out.iterdir()) and not ours:
        raise UserError(f"{out} holds something else, with which the dataset would be mixed: give another name, or move it away.")


def build_release(args) -> None:
    """`mmduet2 data build FOLDER --corpus mmduet2-data`: the authors' dialogues with their pictures (released.py); one machine makes all."""
    if not (args.folder and args.folder.is_dir() and args.out) or args.shard != (0, 1):
        raise UserError(f"{args.folder or args.action}: give the folder of the release, --out, the dataset's folder, and no --shard: --workers share this corpus.")
    unmixed(args.out, (args.out / "frames").is_dir() and not (args.out / "shards").is_dir())
    profile, read = load_profile(args.profile), partial(READERS[args.corpus].read, args.folder)
    total, say = sum(1 for _ in read()), lines("building, rows")
    build_released(read(), args.folder, args.out, profile.video.visual_tokens, args.workers, lambda seen: say(seen, total))
    about(profile, args.out, args.corpus, "")
    tell(args.out)


def asked(corpus: str, records: Iterator[dict | Bad], folder: Path) -> Iterator[Clip | Bad]:
    """A benchmark's questions as clips, each about a video; StreamingBench's own file names videos from the folder it is run in."""
    for one in records:
        if isinstance(one, dict) and corpus == "streamingbench" and not (folder / one["video"]).is_file():
            found = sorted(folder.glob(f"**/{glob.escape(one['video'])}"))
            one["video"] = str(found[0].relative_to(folder)) if found else one["video"]
        yield one if isinstance(one, Bad) else Clip(one["question_id"], corpus, one["video"], one["domain"], record=one)


def tell(dataset: Path) -> None:
    """How many rows a dataset has, file by file, and what each rule left out; UserError where nothing is left."""
    lines = {path.stem: sum(1 for _ in open(path, "rb")) for path in sorted(dataset.glob("*_*.jsonl"))}
    counts = lines | {split: len(read_json(dataset / f"{split}.json")) for split in ("dev", "test")}
    print(f"{dataset}: " + ", ".join(f"{many} {name}" for name, many in counts.items()))
    for rule in (row for row in read_json(dataset / "ledger.json") if row["out"] < row["in"]):
        print(f"left out by '{rule['rule']}': {rule['in'] - rule['out']} of {rule['in']}, for example {rule['examples'][0]['item'][:60]}: {rule['examples'][0]['reason'][:80]}")
    if not any(counts.values()):
        raise UserError(f"Nothing could be used for {dataset}; {dataset / 'ledger.json'} says why.")
