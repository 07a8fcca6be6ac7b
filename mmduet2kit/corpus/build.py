"""The dataset of a run: videos -> frames -> dialogues -> JSONL in the upstream schemas, the filter ledger."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..dialogue import NO_REPLY, Dialogue, Segment, from_rl_row, from_sft_row, to_rl_row, to_sft_row
from ..errors import UserError
from ..files import STAMP, Lines, made_for, read_json, sha256_text, write_json, write_jsonl
from ..profile import Profile
from .dialogues import benchmark_record, build_dialogue, build_segments, offline_dialogue
from .films import load_scenes, make_films
from .video import FilterLedger, decode_many
from .world import COLOURS

KINDS = {"TV": ("single",), "PO": tuple(COLOURS)}  # kinds of question a test domain asks; the others ask any
SEGMENTS = 3  # RL segments drawn from one dialogue
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Dataset:
    """A built dataset in a folder: dialogues, segments, benchmark records, and frames through the decoder's cache."""

    folder: Path

    @property
    def key(self) -> str:
        """What this dataset was made from."""
        return (self.folder / STAMP).read_text()

    @property
    def interval(self) -> float:
        """Seconds between the frames that it stores."""
        return self._read("frames.json", lambda _: float(read_index(self.folder)["interval"]))

    def has(self, name: str) -> bool:
        """Whether it holds this file: a dataset of real videos has no onsets, and may have no offline questions."""
        return (self.folder / name).is_file()

    def check(self, interval: float) -> None:
        """Open what a run at this interval reads: of each file of rows the first, and its frames; UserError for what would stop it."""
        wanted = [f"sft_{interval:g}s.jsonl", f"rl_{interval:g}s.jsonl", "offline_sft.jsonl", "dev.json", "test.json", "frames.json"]
        if missing := [name for name in (*wanted, "scenes/sft.jsonl", "scenes/rl.jsonl", "ledger.json", STAMP) if not self.has(name)]:
            raise UserError(f"The dataset {self.folder} lacks {', '.join(missing)}: put or link a built one there, or change `dataset`.")
        step = interval / self.interval
        for name, rows in (("sft", self.sft(interval)[:1]), ("rl", [s.dialogue for s in self.rl(interval)[:1]]), ("offline", self.offline("sft")[:1])):
            if name != "offline" and not rows:
                raise UserError(f"{self.folder} holds no {name} dialogues with a frame every {interval:g} s: build it from more videos (of 100 "
                                "`mmduet2 data build` takes about 4 for RL, 1 for development, 2 for tests; --shares changes that).")  # fmt: skip
            if name != "offline" and [d.interval for d in rows] != [interval] or abs(step - round(step)) > 1e-6:
                raise UserError(f"{self.folder}: {name} does not begin with a frame every {interval:g} s: build it with the profile's intervals.")
            self._read("frames.json", lambda _, rows=rows: [self.frames(d) for d in rows])
        self.benchmark("dev"), self.benchmark("test"), self._lines("scenes/sft.jsonl", dict)[:1], self._lines("scenes/rl.jsonl", dict)[:1]

    def domains(self, split: str) -> list[str]:
        """The domains of a split's benchmark records (dev, test), in their order."""
        return list(dict.fromkeys(record["domain"] for record in self.benchmark(split)))

    def _read(self, name: str, get: Callable[[Path], Any]):
        """get(path), where a file that is damaged, or another interval's, is one sentence."""
        try:
            return get(self.folder / name)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, EOFError) as error:
            raise UserError(f"{self.folder / name} is damaged ({error!r}): delete it and make the data anew.") from None

    def _lines(self, name: str, make: Callable[[dict], Any]) -> Lines:
        """A file's rows, made when they are asked for: a large dataset is never held in memory."""
        return Lines(self.folder / name, lambda row: self._read(name, lambda _: make(row)))

    def sft(self, interval: float) -> Sequence[Dialogue]:
        return self._lines(f"sft_{interval:g}s.jsonl", from_sft_row)

    def offline(self, split: str) -> Sequence[Dialogue]:
        return self._lines(f"offline_{split}.jsonl", from_sft_row)

    def rl(self, interval: float) -> Sequence[Segment]:
        return self._lines(f"rl_{interval:g}s.jsonl", from_rl_row)

    def benchmark(self, split: str) -> list[dict]:
        def sound(row: dict) -> tuple:  # raises what `_read` tells
            times = row["duration"], *(turn["time"] for turn in row["conversation"]), *(t for gold in row["answer"] for t in gold["reply_timespan"])
            return row["question_id"], row["domain"], sum(times)

        return self._read(f"{split}.json", lambda path: [row for row in read_json(path) if sound(row)])

    @lru_cache(maxsize=4096)  # noqa: B019 - memory maps; a dataset lives as long as its process
    def _video(self, video: str) -> tuple[np.ndarray, float]:
        index = read_index(self.folder)
        name = self._read("frames.json", lambda _: index["videos"][video])
        pictures = self._read(f"frames/{name}", lambda path: np.load(path, mmap_mode="r"))
        return pictures[index.get("first", {}).get(video, 0) :], index.get("every", {}).get(video, index["interval"])

    def frames(self, dialogue: Dialogue, indices: list[int] | None = None) -> np.ndarray:
        """The dialogue's frames (or these of them) in order: uint8 [N, H, W, 3]."""
        pictures, stored = self._video(dialogue.video)
        wanted = dialogue.frame_indices() if indices is None else indices
        return self._read("frames.json", lambda _: np.asarray(pictures[[round(i * dialogue.interval / stored) for i in wanted]]))


@lru_cache(maxsize=8)
def read_index(folder: Path) -> dict:
    """Which cache file holds which video's frames, and at what interval."""
    return read_json(folder / "frames.json")


def made_by(settings: dict) -> str:
    """Digest of what data is made by: settings and the code of this folder."""
    source = "".join(path.read_text() for path in sorted([*Path(__file__).parent.glob("*.py"), Path(__file__).with_name("prompts.yaml")]))
    return sha256_text(json.dumps(settings, sort_keys=True) + source)


def build(profile: Profile, folder: Path, progress: Callable[[str], Progress]) -> Dataset:
    """Make, decode and annotate everything a run needs under `folder`; resumable, the same bytes for the same profile.

    Training reads only the MP4 files and `scenes/*.jsonl`; the onsets' folder is not opened here.
    """
    sections = {name: getattr(profile, name).model_dump(mode="json") for name in ("world", "video", "dialogue")}
    made_for(folder, made_by(sections | {"segment": [profile.rl.segment_turns, profile.rl.segment_seconds]}))
    make_films(profile, folder, profile.parallel, progress("filming"))
    stored = min(profile.video.intervals)
    ledger = FilterLedger()
    scenes = {split: load_scenes(folder, split) for split in profile.world.counts}
    paths = [folder / record["video"] for records in scenes.values() for record in records]
    caches = decode_many(paths, stored, profile.video.visual_tokens, folder / "frames", profile.parallel, ledger, progress("decoding"))
    index = {str(Path(path).relative_to(folder)): cache.name for path, cache in caches.items()}
    write_json(folder / "frames.json", {"interval": stored, "videos": index})
    usable = {split: [r for r in records if r["video"] in index] for split, records in scenes.items()}
    for interval in sorted(set(profile.video.intervals)):
        _training(profile, folder, usable, interval, ledger)
    for split in profile.world.counts:
        rng, most = _rng(profile, f"offline-{split}"), {"base": 2, "sft": 12}.get(split, 1)
        rows = [offline_dialogue(r, rng, stored, (1, 3)) for r in usable[split] if r["scenes"] for _ in range(most)]
        write_jsonl(folder / f"offline_{split}.jsonl", map(to_sft_row, rows))
    for split in ("dev", "test"):
        rng = _rng(profile, f"benchmark-{split}")
        records = [benchmark_record(r, rng, KINDS.get(r["domain"], ("any",))) for r in usable[split] if r["scenes"]]
        write_json(folder / f"{split}.json", records)
    write_json(folder / "ledger.json", ledger.rows())
    for row in ledger.rows():
        if row["rule"] == "video decodes" and row["out"] < row["in"]:
            print(f"{row['in'] - row['out']} videos were left out, see {folder / 'ledger.json'}; delete them to make them anew.")
    return Dataset(folder)


def _rng(profile: Profile, name: str) -> np.random.Generator:
    return np.random.default_rng((profile.world.seed, *name.encode()))


def _training(profile: Profile, folder: Path, usable: dict, interval: float, ledger: FilterLedger) -> None:
    """SFT dialogues and RL segments at one frame interval."""
    rng = _rng(profile, f"sft-{interval:g}")
    dialogues = [build_dialogue(profile, r, rng, interval) for r in usable["sft"] if r["scenes"]]
    speaks = [any(turn.reply not in (None, NO_REPLY) for turn in d.turns) for d in dialogues]
    rule = "SFT dialogue has an answer"
    answered = [d for d, ok in zip(dialogues, speaks) if ledger.check(rule, d.id, ok, "no answer fits")]
    write_jsonl(folder / f"sft_{interval:g}s.jsonl", map(to_sft_row, answered))
    rng = _rng(profile, f"rl-{interval:g}")
    segments: list[Segment] = []
    for record in usable["rl"]:
        found = build_segments(profile, build_dialogue(profile, record, rng, interval), rng, SEGMENTS)
        if ledger.check("RL video has a segment", record["name"], bool(found), "no gold span fits a segment"):
            segments += found
    write_jsonl(folder / f"rl_{interval:g}s.jsonl", map(to_rl_row, segments))
