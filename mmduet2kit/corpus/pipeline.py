"""From videos and what is known of them to a dataset (paper section 3): scenes, captions, questions, gates, dialogues; in shards.

A shard is SHARD clips. Its folder is named by what it is made from (clips, files, settings, annotator, this code) and appears whole
or not at all, so a killed build goes on where it stopped, machines may share the shards (`part` i of N), and the result has the same
bytes. When all shards are there, `join` puts them together in the layout that training reads. Memory does not grow with the
number of videos: a shard is the most that is held.
"""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path

import numpy as np

from ..dialogue import DEFAULT_SYSTEM, NO_REPLY, Dialogue, Turn, to_rl_row, to_sft_row
from ..errors import UserError
from ..files import STAMP, fingerprint, read_json, sha256_text, write_atomic, write_json, write_jsonl
from ..profile import Profile
from ..progress import lines, side_by_side, telling
from .annotate import Annotator, Scene
from .build import SEGMENTS, made_by
from .dialogues import benchmark_record, build_dialogue, build_segments, frame_count
from .gates import Limits, gate
from .readers import Bad, Clip
from .scenes import LOOK_S, beside, between, cuts, evened, speech
from .video import FilterLedger, cached_frames, frames

SHARD = 64  # clips
VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv")
OFFLINE_FRAMES = 64  # upstream: of an offline video, at most, a second apart


@dataclass(frozen=True)
class Plan:
    """What a build is made with. annotator: which, by what model, and the judge. shares: of the clips for rl, dev and test; the rest is for SFT."""

    profile: Profile
    annotator: str
    shares: tuple[float, float, float] = (0.04, 0.01, 0.02)

    @cached_property
    def key(self) -> str:
        """What every shard is made by, its clips apart."""
        sections = {name: getattr(self.profile, name).model_dump(mode="json") for name in ("video", "dialogue")}
        sections["segment"] = self.profile.rl.segment_turns, self.profile.rl.segment_seconds, self.profile.world.seed
        return made_by(sections | {"annotator": self.annotator, "shares": self.shares})

    def split(self, video: str) -> str:
        """Where a video's clips go, by its name alone: the same on every machine and in every build."""
        at, limit = int(sha256(video.encode()).hexdigest()[:12], 16) / 16**12, 0.0
        for split, share in zip(("rl", "dev", "test"), self.shares):
            limit += share
            if at < limit:
                return split
        return "sft"


def stretch(clip: Clip) -> str:
    """What a clip shows, as dialogues name it: the file, and which part of it."""
    return clip.video if not clip.start and clip.end is None else f"{clip.video}@{clip.start:g}-{'' if clip.end is None else f'{clip.end:g}'}"


def own_videos(folder: Path, domain: str) -> Iterator[Clip | Bad]:
    """Somebody's own videos under a folder, in order; files whose name is no video's are passed over, linked folders told."""
    paths = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if (p.suffix.lower() in VIDEOS or p.is_dir()) and (p.is_file() or p.is_symlink())]
    names = Counter(path.with_suffix("") for path in paths)
    for path in paths:
        told, name = str(path).encode(errors="replace").decode(), path.with_suffix("")
        fault = "its name is not UTF-8: rename it" if told != str(path) else "a linked folder: build from it by itself" if (folder / path).is_dir() else ""
        yield Bad(told, fault) if fault else Clip(str(name if names[name] == 1 else path), "own", str(path), domain)


def look(source: Path, out: Path, stored: float, tokens: int, clip: Clip) -> dict:
    """Decode a clip and find its scenes: {"cache", "duration", "spans": [(start, end, speech, note)]}, or {"error"}."""
    path = source / clip.video
    try:
        cache, pictures = cached_frames(path, stored, tokens, out / "frames")
        first = int(clip.start / stored)  # the clip begins at the last frame before it
        last = len(pictures) if clip.end is None else min(len(pictures), frame_count(clip.end, stored))
        duration = (last - first) * stored
        if last - first < 2:
            raise UserError(f"{clip.video} shows {max(0, last - first)} frames between {clip.start:g} s and {clip.end} s: nothing to talk about.")
        said = list(clip.speech or (speech(path, duration) if clip.corpus == "own" and not clip.qa else ()))
        if clip.qa or clip.record:
            spans = []
        elif clip.scenes:
            spans = [(a, min(b, duration), " ".join(t for s, e, t in said if s < b and e > a), note) for a, b, note in clip.scenes if a < duration]
        elif said:
            spans = [(a, b, text, "") for a, b, text in evened(said) if a < duration]
        else:
            marks = [mark - clip.start for mark in cuts(frames(path, LOOK_S, max_tokens=8))]
            spans = [(a, b, "", "") for a, b, _ in evened((a, b, "") for a, b in between(marks, duration))]
        return {"cache": cache.name, "first": first, "duration": duration, "spans": spans}
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and not str(error.filename or "").startswith(str(path.with_suffix(""))):
            raise  # neither the film nor its subtitles: a full disk, a folder that cannot be written
        return {"error": str(error)}


def annotate(plan: Plan, annotator: Annotator, judge, pictures: np.ndarray, clip: Clip, seen: dict, ledger: FilterLedger) -> dict | None:
    """A clip's record: scenes with captions, questions with answers, through the gates; None where nothing is left."""
    stored, scenes = min(plan.profile.video.intervals), []
    for start, end, said, note in seen["spans"]:
        shown = pictures[seen["first"] + int(start / stored) : seen["first"] + max(int(start / stored) + 1, frame_count(end, stored))]
        caption = annotator.caption(Scene(np.asarray(shown), said, note))
        if ledger.check("scene has a caption", f"{clip.id} at {start:.1f} s", bool(caption), "the annotator gave no answer, or none that fits"):
            scenes.append({"start": round(start, 3), "end": round(end, 3), "caption": caption})
    seed = int(sha256(clip.id.encode()).hexdigest()[:8], 16)
    asked = annotator.questions([s["caption"] for s in scenes], plan.profile.dialogue.questions[1], seed) if scenes else None
    if not ledger.check("video has questions", clip.id, bool(asked), "the annotator gave no answer, or none that fits"):
        return None
    record = {"video": stretch(clip), "name": clip.id, "domain": f"train_{clip.domain}", "duration": seen["duration"], "scenes": scenes, "subtitles": [],
              "questions": [{"question": question, "answers": given} for question, given in asked]}  # fmt: skip
    return gate(record, ledger, judge, Limits(turn=plan.profile.video.train_interval * plan.profile.video.train_frames_per_turn))


def offline(clip: Clip, seen: dict, stored: float) -> list[Dialogue]:
    """Offline samples of a clip: pictures of the whole of it, at most OFFLINE_FRAMES and a second apart; a dialogue a question."""
    count = frame_count(seen["duration"], stored)
    shown = np.unique(np.linspace(0, count - 1, min(OFFLINE_FRAMES, max(1, int(seen["duration"])))).round().astype(int))
    return [Dialogue(f"{clip.id}-{k}", stretch(clip), stored, (Turn(tuple(map(int, shown)), question, answer),), (), "offline", "offline-caption", DEFAULT_SYSTEM)
            for k, (question, answer) in enumerate(clip.qa)]  # fmt: skip


def file_names(plan: Plan) -> list[str]:
    """The JSONL files of a shard, without their endings; each is there, if empty."""
    at = [f"{kind}_{every:g}s" for kind in ("sft", "rl") for every in sorted(set(plan.profile.video.intervals))]
    return [*at, "offline_sft", "dev", "test", *(f"scenes/{split}" for split in ("sft", "rl", "dev", "test"))]


def clip_rows(plan: Plan, annotator: Annotator, judge, pictures: np.ndarray, clip: Clip, seen: dict) -> tuple[dict[str, list[dict]], FilterLedger]:
    """What a clip gives to each of a shard's files, by name, and what of it was left out."""
    profile, ledger = plan.profile, FilterLedger()
    if clip.record:  # its videos are as long as they are: a file may state a little more than it shows
        record = clip.record | {"duration": min(clip.record["duration"] or seen["duration"], seen["duration"])}
        inside = any(turn["time"] < record["duration"] for turn in record["conversation"][:1])
        return {"test": [record]} if ledger.check("question is asked within its video", clip.id, inside, "it ends before") else {}, ledger
    if clip.qa:
        return {"offline_sft": [*map(to_sft_row, offline(clip, seen, min(profile.video.intervals)))]}, ledger
    record = annotate(plan, annotator, judge, pictures, clip, seen, ledger)
    if record is None:
        return {}, ledger
    split, rng = plan.split(clip.video), np.random.default_rng((profile.world.seed, *clip.id.encode()))
    rows: dict[str, list[dict]] = {f"scenes/{split}": [record]}
    if split in ("dev", "test"):
        return rows | {split: [benchmark_record(record, rng, ("any",)) | {"domain": clip.domain.upper()}]}, ledger
    for every in sorted(set(profile.video.intervals)):
        dialogue = build_dialogue(profile, record, rng, every, annotator.summary)
        spoken = any(turn.reply not in (None, NO_REPLY) for turn in dialogue.turns)
        if split == "sft" and ledger.check("SFT dialogue has an answer", dialogue.id, spoken, "no answer fits"):
            rows[f"sft_{every:g}s"] = [to_sft_row(dialogue)]
        if split == "rl":
            segments = build_segments(profile, dialogue, rng, SEGMENTS)
            if ledger.check("RL video has a segment", clip.id, bool(segments), "no gold span fits a segment"):
                rows[f"rl_{every:g}s"] = [*map(to_rl_row, segments)]
    return rows, ledger


def shard_folder(plan: Plan, source: Path, out: Path, number: int, clips: Sequence[Clip | Bad]) -> Path:
    """Where a shard lies; the name says what it is made from."""
    films = [fingerprint(source / c.video) if isinstance(c, Clip) else "" for c in clips]
    said = [fingerprint(file) for c in clips if isinstance(c, Clip) and c.corpus == "own" and (file := beside(source / c.video))]
    key = sha256_text(plan.key + json.dumps([[asdict(c) for c in clips], films, said], sort_keys=True))
    return out / "shards" / f"{number:06d}-{key[:16]}"


def make_shard(plan: Plan, annotator: Annotator, judge, source: Path, out: Path, folder: Path, clips: Sequence[Clip | Bad], workers: int) -> None:
    """Make one shard, whole or not at all."""
    video, ledger, gates = plan.profile.video, FilterLedger(SHARD), FilterLedger()  # what cannot be read is named, each of it
    stored = min(video.intervals)
    good = [c for c in clips if ledger.check("record can be read", c.id, isinstance(c, Clip), getattr(c, "reason", ""))]
    found = side_by_side(partial(look, source, out, stored, video.visual_tokens), good, workers, lines("decoding, clips of a shard"))
    usable = [(c, one) for c, one in zip(good, found) if ledger.check("video decodes", c.id, "error" not in one, one.get("error", ""))]
    # Opened here: a numpy header is read by Python's ast, which CPython 3.11.7 does not keep apart between threads.
    pictures = [np.load(out / "frames" / one["cache"], mmap_mode="r") for _, one in usable]
    began = time.monotonic()
    with ThreadPoolExecutor(getattr(annotator, "parallel", 1)) as threads:
        made = list(telling("annotated, clips of a shard", threads.map(partial(clip_rows, plan, annotator, judge), pictures, *zip(*usable)), len(usable)))
    for asks in (one for one in (annotator, getattr(judge, "judge", judge)) if hasattr(one, "endpoint")):
        asks.endpoint.settle(time.monotonic() - began)
    rows: dict[str, list[dict]] = {name: [] for name in file_names(plan)}
    for some, one in made:
        gates.add(one.rows())
        for name, more in some.items():
            rows[name] += more
    partial_folder = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial_folder, ignore_errors=True)
    for name, some in rows.items():
        write_jsonl(partial_folder / f"{name}.jsonl", some)
    write_json(partial_folder / "frames.json", {stretch(c): {"cache": one["cache"], "first": one["first"]} for c, one in usable})
    write_json(partial_folder / "ledger.json", ledger.rows() + gates.rows())
    try:
        os.replace(partial_folder, folder)
    except OSError:  # another process was quicker: what it made has the same bytes
        if not folder.is_dir():
            raise
        shutil.rmtree(partial_folder)


def build_corpus(plan: Plan, annotator: Annotator, judge, clips: Iterable[Clip | Bad], source: Path, out: Path, *, part: tuple[int, int] = (0, 1),
                 workers: int = 1, progress: Callable[[int, int], None] = lambda *_: None) -> list[Path]:  # fmt: skip
    """Make the shards `number` with number % N == i of part (i, N) that are not there; the folders of all shards, there or not.

    `progress(clips made by this call, clips seen)` is called after each that was made.
    """
    folders, clips, made, seen = [], iter(clips), 0, 0
    while shard := list(islice(clips, SHARD)):
        folder = shard_folder(plan, source, out, len(folders), shard)
        folders.append(folder)
        seen += len(shard)
        if (len(folders) - 1) % part[1] == part[0] and not folder.is_dir():
            make_shard(plan, annotator, judge, source, out, folder, shard, workers)
            made += len(shard)
            progress(made, seen)
    return folders


def join(plan: Plan, out: Path, shards: Sequence[Path]) -> None:
    """The shards, in order, as one dataset in the layout of training; written a shard at a time."""
    ledger, index = FilterLedger(SHARD * len(shards)), {}
    names = sorted({str(path.relative_to(shard)) for shard in shards for path in shard.rglob("*.jsonl")})
    for name in names:
        write_atomic(out / name, (row for shard in shards for row in open(shard / name, "rb")))
    for old in {path.name for path in out.glob("*_*.jsonl")} - {*names}:  # of a build at other intervals
        (out / old).unlink()
    for shard in shards:
        ledger.add(read_json(shard / "ledger.json"))
        index |= read_json(shard / "frames.json")
    for name in ("dev", "test"):
        rows = (b"," * (k > 0) + row for k, row in enumerate(open(out / f"{name}.jsonl", "rb")))
        write_atomic(out / f"{name}.json", chain([b"[\n"], rows, [b"]\n"]))
    write_json(out / "frames.json", {"interval": min(plan.profile.video.intervals), "videos": {name: one["cache"] for name, one in index.items()},
                                     "first": {name: one["first"] for name, one in index.items() if one["first"]}})  # fmt: skip
    write_json(out / "ledger.json", ledger.rows())
    write_atomic(out / STAMP, sha256_text(" ".join(shard.name for shard in shards)))
