"""The authors' release (wangyueqian/MMDuet2-data) as a dataset that trains: its dialogues, RL segments and offline samples with their pictures.

Written from the released loader, not from the files, which could not be seen (readers.yaml). Pictures are `<file>.hdf5:::<index>`
(dataset `images`, uint8 [H, W, 3]) or image files, under `./data/datasets`, for which the user's folder stands. What is missing or
does not fit together is left out and stands in the ledger.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from .corpus import benchmarks  # noqa: F401 - so that whoever imports this has all readers
from .corpus.readers import WRONG, Bad, files, reader
from .corpus.video import CACHE, FilterLedger, fit_size, frames, resized
from .dialogue import NO_REPLY, Dialogue, Gold, Segment, Turn, from_sft_row, to_rl_row, to_sft_row
from .errors import UserError
from .files import STAMP, fingerprint, halfway, read_json, sha256_text, write_atomic, write_json, write_jsonl
from .progress import lines, side_by_side

FORCED = re.compile(r"^I must reply( now)?\.\n")  # upstream: a prefix that SFT masks and inference forces; no part of the reply
OFFLINE_S, OFFLINE_FRAMES, TO_THE_END = 1.0, 64, 1_000_000  # upstream: offline pictures are a second apart, 64 at most; a `video_end` from which on there is none
BROKEN = (*WRONG, RuntimeError, SyntaxError, Image.DecompressionBombError)  # what damaged pictures and HDF5 files raise
BATCH = 512  # rows whose pictures are made at a time


@dataclass(frozen=True)
class Sample:
    """A row of the release. `dialogue`'s frame k is picture k; an offline one gets its frames when its video has been opened."""

    file: str  # of the dataset, without its ending: sft_2s, rl_2s, offline_sft
    dialogue: Dialogue
    pictures: tuple[str, ...] = ()  # as the release names them
    film: str = ""  # offline: a video instead of pictures
    start: float = 0.0
    end: float | None = None
    segment: Segment | None = None

    @property
    def video(self) -> str:
        """The first file that it needs, under the user's folder."""
        return local(self.film or self.pictures[0])


def local(name: str) -> str:
    """A file's place under the user's folder."""
    return re.sub(r"^(\./)?(data/datasets/)?", "", name.partition(":::")[0])


def domain_of(*names: str) -> str:
    return "train_ego" if any("egoexo" in name.lower() for name in names) else "train_web"


@reader("mmduet2-data")
def mmduet2_data(folder: Path):
    """Every row as a Sample: SFT and offline rows of JSONL files, RL rows of parquet files with their file of user turns."""
    for path in files(folder, "sft/*.jsonl", "*-sft*.jsonl", "*_25k.jsonl", "rl/*-train.parquet", "*-train.parquet"):
        every = float(m[1]) if (m := re.search(r"(\d+)_sec_per_frame", path.name)) else 2.0
        if path.suffix == ".jsonl":
            with open(path, encoding="utf-8-sig", errors="replace") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield f"{path.name}, line {number}", partial(_of_line, line, every, path.stem, number)
        else:
            from pyarrow import parquet

            turns = path.with_name(path.name.replace("-train.parquet", "-user_turns.json"))
            told = read_json(turns) if turns.is_file() else {}
            for batch in parquet.ParquetFile(path).iter_batches(64):
                for row in batch.to_pylist():
                    yield "", partial(segment_sample, row, told, every)


def _of_line(line: str, every: float, name: str, number: int) -> Sample:
    row = json.loads(line)
    return offline_sample(row, f"{name}-{number}") if row.get("videos") else dialogue_sample(row, every, name)


def dialogue_sample(row: dict, interval: float, name: str) -> Sample:
    """A row of the SFT files; there are no spans in it."""
    meta = row.get("metadata") or {}
    pictures = tuple(image["path"] if isinstance(image, dict) else image for image in row["images"])
    messages = [m | {"content": FORCED.sub("", m["content"])} if m["role"] == "assistant" else m for m in row["messages"]]
    if not pictures or sum(m["content"].count("<image>") for m in messages) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures for another number of <image>")
    video = str(meta["video_id"])
    images = [{"path": f"{video}:::{k * interval:g}"} for k in range(len(pictures))]
    facts = {"question_id": str(meta.get("question_id", video)), "video_id": video, "domain": domain_of(name, pictures[0]),
             "kind": "released", "interval": interval, "gold": []}  # fmt: skip
    return Sample(f"sft_{interval:g}s", from_sft_row({"messages": messages, "images": images, "metadata": facts}), pictures)


def offline_sample(row: dict, name: str) -> Sample:
    """An offline row: one video (a file, or a list of pictures as JSON text), a stretch of it, questions and answers."""
    (film,) = row["videos"]
    listed = "[" in film["video"] and "]" in film["video"]
    pictures = tuple(json.loads(film["video"])) if listed else ()
    end = film.get("video_end")
    messages = [m | {"content": re.sub(r"<(video|image)>\n?", "", m["content"])} for m in row["messages"]]
    if messages[-1]["role"] != "assistant":
        raise ValueError("no answer")
    facts = {"question_id": name, "video_id": Path(local(pictures[0] if listed else film["video"])).stem, "domain": "offline",
             "kind": "offline-caption", "interval": OFFLINE_S, "gold": []}  # fmt: skip
    dialogue = from_sft_row({"messages": messages, "images": [], "metadata": facts})
    return Sample("offline_sft", dialogue, pictures, "" if listed else film["video"], float(film.get("video_start") or 0),
                  None if end is None or end >= TO_THE_END else float(end))  # fmt: skip


def segment_sample(row: dict, user_turns: dict, interval: float) -> Sample:
    """An RL row: the prompt is the history, the rest of the user's turns stands in the turn file; frames and times must fit together."""
    truth = row["reward_model"]["ground_truth"]
    name, replies, users = str(truth["question_id"]), {}, 0
    if name not in user_turns:
        raise ValueError(f"question {name} has no user turns (*-user_turns.json)")
    for message in row["prompt"]:
        users += message["role"] == "user"
        if message["role"] == "assistant":
            replies[users - 1] = FORCED.sub("", message["content"])
    first = users - (row["prompt"][-1]["role"] == "user")  # the turn that is rolled out first may stand in the prompt already
    turns, pictures = [], []
    for number, turn in enumerate(user_turns[name]):
        given = turn["content"] if isinstance(turn["content"], list) else [{"type": "text", "text": turn["content"]}]
        shown = [part["image"] for part in given if part["type"] == "image"]
        text = "".join(part["text"] for part in given if part["type"] == "text").replace("<image>", "")
        turns.append(Turn(tuple(range(len(pictures), len(pictures) + len(shown))), text or None, replies.get(number)))
        pictures += shown
    told = sum(m["content"].count("<image>") for m in row["prompt"])
    if told != sum(len(turn.frames) for turn in turns[:users]) or not pictures:
        raise ValueError(f"the prompt shows {told} pictures, its user turns another number")
    system = next((m["content"] for m in row["prompt"] if m["role"] == "system"), Dialogue.system)
    video = Path(local(pictures[0])).with_suffix("") if ":::" in pictures[0] else Path(local(pictures[0])).parent
    dialogue = Dialogue(name, str(video), interval, tuple(turns), (), domain_of(pictures[0]), "released", system)
    moments = truth["model_pred_timestamps"]
    rolled = [k for k in range(first, len(turns)) if turns[k].frames][: len(moments)]
    times = dialogue.times()
    if not rolled or any(abs(times[k] - moment) > 0.01 for k, moment in zip(rolled, moments)):
        raise ValueError(f"turns at {moments[:3]} s do not fit pictures {interval:g} s apart")
    gold = tuple(Gold(*answer["reply_timespan"], answer["content"], answer.get("question") or "") for answer in truth["answer"])
    return Sample(f"rl_{interval:g}s", dialogue, tuple(pictures), segment=Segment(dialogue, first, rolled[-1] + 1, gold))


def pixels(folder: Path, sample: Sample) -> Iterator[np.ndarray]:
    """A sample's pictures in order, uint8 [H, W, 3] of any size."""
    with ExitStack() as opened:
        books: dict[str, object] = {}
        for name in sample.pictures:
            place, (_, _, number) = local(name), name.partition(":::")
            path = folder / place if (folder / place).exists() else folder / name.partition(":::")[0]
            if not path.is_file():
                raise UserError(f"{place} is not there")
            if not number:
                yield np.asarray(Image.open(path).convert("RGB"))
                continue
            if place not in books:
                import h5py  # optional: see build_released

                books[place] = opened.enter_context(h5py.File(path))["images"]
            yield np.asarray(books[place][int(number)])


def filmed(folder: Path, sample: Sample, tokens: int) -> list[np.ndarray]:
    """An offline sample's pictures from its video, a second apart, at most OFFLINE_FRAMES."""
    shown = [image for time, image in frames(folder / sample.video, OFFLINE_S, max_tokens=tokens) if sample.start <= time < (sample.end or np.inf)]
    return [shown[k] for k in np.unique(np.linspace(0, len(shown) - 1, min(OFFLINE_FRAMES, len(shown))).round().astype(int))]


def store(folder: Path, out: Path, tokens: int, sample: Sample) -> tuple[str, int] | str:
    """Write a sample's pictures, resized like decoded ones, as a frame cache unless it is there: (its name, how many), or what is wrong."""
    films = [fingerprint(folder / place) for place in sorted({local(name) for name in sample.pictures or (sample.film,)})]
    key = sha256_text(json.dumps([sample.pictures, sample.film, sample.start, sample.end, films, tokens, CACHE]))
    cache = out / "frames" / f"{key}.npy"
    try:
        if not cache.exists():
            images, size = [], None
            for image in filmed(folder, sample, tokens) if sample.film else pixels(folder, sample):
                if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                    raise ValueError(f"a picture is {image.dtype} {image.shape}, not uint8 [H, W, 3]")
                size = size or fit_size(image.shape[1], image.shape[0], tokens)
                images.append(resized(image, size))
            if not images:
                raise ValueError("no picture between its start and its end")
            with halfway(cache) as half, open(half, "wb") as into:
                np.save(into, images)
        return cache.name, len(np.load(cache, mmap_mode="r"))
    except UserError as error:
        return str(error)
    except BROKEN as error:
        return f"{type(error).__name__}: {error}"[:200]


def build_released(samples: Iterator[Sample | Bad], folder: Path, out: Path, tokens: int, workers: int, progress: Callable[[int], None]) -> Counter:
    """The release under `folder` as a dataset in `out`: rows in the order of its files; {file: rows}. Memory does not grow with their number.

    A frame cache that is there is not made again, so a killed build goes on where it stopped. `progress(rows seen)` after each batch.
    """
    ledger, index, every, scenes, counts, seen = FilterLedger(), {}, {}, {"sft": {}, "rl": {}}, Counter({"offline_sft": 0}), 0
    (out / "frames").mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        into = {"offline_sft": opened.enter_context(open(out / ".offline_sft.partial", "w"))}
        while batch := list(islice(samples, BATCH)):
            good = [s for s in batch if ledger.check("record can be read", getattr(s, "id", ""), isinstance(s, Sample), getattr(s, "reason", ""))]
            if not find_spec("h5py") and any(":::" in name for s in good for name in s.pictures):
                raise UserError("The release's pictures lie in HDF5 files, which need h5py: pip install -e '.[dev]', then start again.")
            for sample, made in zip(good, side_by_side(partial(store, folder, out, tokens), good, workers, lines("pictures, rows of a batch"))):
                dialogue = sample.dialogue
                if not ledger.check("pictures are there", dialogue.id, not isinstance(made, str), made if isinstance(made, str) else ""):
                    continue
                if not ledger.check("dialogue has an answer", dialogue.id, sample.segment or any(t.reply not in (None, NO_REPLY) for t in dialogue.turns), "none"):
                    continue
                cache, many = made
                video = f"{dialogue.video}#{cache[:8]}"  # the same clip may be shown by other pictures elsewhere
                index[video], every[video] = cache, dialogue.interval
                kind = sample.file.partition("_")[0]
                if kind in scenes:
                    scenes[kind][video] = {"video": video, "name": dialogue.video, "domain": dialogue.domain, "duration": many * dialogue.interval, "scenes": []}
                if sample.file not in into:
                    into[sample.file] = opened.enter_context(open(out / f".{sample.file}.partial", "w"))
                into[sample.file].write(json.dumps(row_of(sample, video, many), ensure_ascii=False) + "\n")
                counts[sample.file] += 1
            seen += len(batch)
            progress(seen)
    for name in into:
        os.replace(out / f".{name}.partial", out / f"{name}.jsonl")
    write_index(out, index, every, [interval for video, interval in every.items() if any(video in some for some in scenes.values())])
    for split, records in scenes.items():
        write_jsonl(out / "scenes" / f"{split}.jsonl", records.values())
    for split in ("dev", "test"):  # benchmarks lie elsewhere
        write_json(out / f"{split}.json", [])
    write_json(out / "ledger.json", ledger.rows())
    write_atomic(out / STAMP, sha256_text(json.dumps([index, counts], sort_keys=True)))
    return counts


def write_index(out: Path, index: dict[str, str], every: dict[str, float], intervals: Sequence[float]) -> None:
    """frames.json; the pictures of a video that are not at the smallest interval of all have theirs beside it."""
    stored = min(intervals, default=OFFLINE_S)
    write_json(out / "frames.json", {"interval": stored, "videos": index, "every": {video: one for video, one in every.items() if one != stored}})


def row_of(sample: Sample, video: str, many: int) -> dict:
    """A sample's row in the kit's files."""
    dialogue = replace(sample.dialogue, video=video)
    if sample.segment:
        return to_rl_row(replace(sample.segment, dialogue=dialogue))
    if sample.file == "offline_sft":
        first, *others = dialogue.turns
        dialogue = replace(dialogue, turns=(replace(first, frames=tuple(range(many))), *others))
    return to_sft_row(dialogue)
