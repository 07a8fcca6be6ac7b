"""Several built datasets as one that a profile can name (`mmduet2 data join`): training corpora, offline corpora, benchmarks."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from .corpus.video import FilterLedger
from .errors import UserError
from .files import STAMP, each_row, is_made_for, read_json, sha256_text, write_atomic, write_json, write_jsonl

ROWS = re.compile(r"((sft|rl)_[\d.]+s|offline_\w+|scenes/\w+)\.jsonl")
ALWAYS = ("offline_sft.jsonl", "dev.json", "test.json", "scenes/sft.jsonl", "scenes/rl.jsonl")  # what a run opens, if empty


def join_datasets(out: Path, parts: Sequence[Path]) -> Path:
    """The datasets of `parts` as one in `out`, which appears whole or not at all; the same parts give the same bytes.

    Rows stand in the order of the parts and are copied a line at a time. Videos are named `<part's folder>/<video>`, as two
    corpora may use a name for two videos; a question of a split whose id is there already gets that prefix too. Frames are
    linked, not copied (see `_link`), ledgers added. What a part lacks is empty. Hidden onsets stay behind: they belong to the
    procedural world's own evaluation. UserError for what is no dataset, a part that is given twice, tests with frames
    at other intervals, and an `out` with something else in it.
    """
    for part in parts:
        if missing := [name for name in ("frames.json", "ledger.json", STAMP) if not (part / name).is_file()]:
            raise UserError(f"{part} is no built dataset (it lacks {', '.join(missing)}): give folders that `mmduet2 data build` has finished.")
    if len({part.resolve() for part in parts}) < len(parts) or not parts:
        raise UserError("a dataset is given twice, or none: give each folder once, behind the new one's.")
    indices = [read_json(part / "frames.json") for part in parts]
    stored = min(index["interval"] for index in indices)
    for part, index in zip(parts, indices):  # rows know their frames' interval; a benchmark is played at the run's
        if index["interval"] != stored and any((part / f"{split}.json").is_file() and read_json(part / f"{split}.json") for split in ("dev", "test")):
            raise UserError(f"{part} stores a frame every {index['interval']:g} s, another every {stored:g} s, and has test videos: build them by one profile.")
    named = list(zip(_labels(parts), parts))
    key = sha256_text(json.dumps([[label, (part / STAMP).read_text()] for label, part in named]))
    if is_made_for(out, key):
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something else: move it away, or give another name.")
    half = out.absolute().with_name(f".{out.name}.joining")
    shutil.rmtree(half, ignore_errors=True)
    found = (str(path.relative_to(part)) for part in parts for path in (*part.glob("*.jsonl"), *part.glob("scenes/*.jsonl")))
    for name in sorted({*ALWAYS, *filter(ROWS.fullmatch, found)}):
        rows = (row for label, part in named if (part / name).is_file() for row in _rows(part / name, label))
        if name.endswith(".json"):
            write_json(half / name, _distinct(rows))
        else:
            write_jsonl(half / name, rows)
    ledger, videos, first, every = FilterLedger(), {}, {}, {}
    (half / "frames").mkdir()
    for (label, part), index in zip(named, indices):
        ledger.add(read_json(part / "ledger.json"))
        videos |= {f"{label}/{video}": cache for video, cache in index["videos"].items()}
        first |= {f"{label}/{video}": at for video, at in index.get("first", {}).items()}
        every |= {f"{label}/{video}": at for video in index["videos"] if (at := index.get("every", {}).get(video, index["interval"])) != stored}
        for cache in dict.fromkeys(index["videos"].values()):
            _link(part / "frames" / cache, half / "frames" / cache)
    write_json(half / "frames.json", {"interval": stored, "videos": videos, "first": first, "every": every})
    told = [read_json(part / "about.json")["sources"] if (part / "about.json").is_file() else [] for part in parts]
    if all(told):  # what is not known of one part is not known of the whole
        write_json(half / "about.json", {"sources": sum(told, [])})
    write_json(half / "ledger.json", ledger.rows())
    write_atomic(half / STAMP, key)
    os.replace(half, out)
    return out


def _labels(parts: Sequence[Path]) -> list[str]:
    """What the parts are called: their folders' names, numbered where two have the same."""
    names = [part.resolve().name for part in parts]
    return names if len(set(names)) == len(names) else [f"{k}-{name}" for k, name in enumerate(names, start=1)]


def _rows(path: Path, label: str) -> Iterator[dict]:
    """A file's rows with their videos' names prefixed; UserError for one that is no row of a dataset."""
    for number, row in enumerate(each_row(path) if path.suffix == ".jsonl" else read_json(path), start=1):
        try:
            yield _apart(row, label)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, row {number}, is no row of a dataset ({error!r}): build that dataset anew.") from None


def _apart(row: dict, label: str) -> dict:
    """A row of any of a dataset's files, with its videos' names prefixed."""
    for image in row.get("images", ()):
        image |= {key: f"{label}/{image[key]}" for key in ("path", "image") if key in image}
    if "metadata" in row:
        row["metadata"]["video_id"] = f"{label}/{row['metadata']['video_id']}"
    if "extra_info" in row:
        _apart(row["extra_info"]["dialogue"], label)
    return row | {"video": f"{label}/{row['video']}"} if "video" in row else row


def _distinct(rows: Iterator[dict]) -> list[dict]:
    """Records whose ids are there once."""
    out: dict[str, dict] = {}
    for row in rows:
        name = row["question_id"] if row["question_id"] not in out else f"{row['video'].partition('/')[0]}/{row['question_id']}"
        out[name] = row | {"question_id": name}
    return list(out.values())


def _link(source: Path, target: Path) -> None:
    """The same file at another place: a hard link, else a symbolic one, else a copy, as the filesystem allows."""
    if target.exists():  # named by what is in it: two parts may hold the same
        return
    if not source.is_file():
        raise UserError(f"{source} is missing, though {source.parents[1] / 'frames.json'} names it: build that dataset anew.")
    for make in (os.link, os.symlink, shutil.copyfile):
        try:
            return make(source.resolve(), target)
        except OSError as error:
            failed = error
    raise failed
