"""Public corpora, from their own published files, as clips: where the video is, its scenes, what is said in it, questions on it.

readers.yaml says what each was written from and how far that could be seen. Nothing is downloaded: `folder` is where the user
has put the corpus. A record that cannot be read is yielded as `Bad`, with its reason, for the ledger; it stops nothing.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import yaml

from ..errors import UserError
from ..files import each_row

Span = tuple[float, float, str]  # seconds of the clip, text


@dataclass(frozen=True)
class Clip:
    """A stretch [start, end) of a video file (seconds; end None: to its end), and what its corpus says of it.

    scenes: annotated spans; speech: sentences; times of both are seconds from `start`. qa: offline questions and answers.
    record: of a benchmark's clip, its question in ProactiveVideoQA's schema; nothing else is then made of it.
    """

    id: str
    corpus: str
    video: str  # relative to the corpus' folder
    domain: str  # web, ego, or offline
    start: float = 0.0
    end: float | None = None
    scenes: tuple[Span, ...] = ()
    speech: tuple[Span, ...] = ()
    qa: tuple[tuple[str, str], ...] = ()
    title: str = ""
    record: dict | None = None


@dataclass(frozen=True)
class Bad:
    """A record that was left out, and why."""

    id: str
    reason: str


FACTS = yaml.safe_load(Path(__file__).with_name("readers.yaml").read_text())
READERS: dict[str, SimpleNamespace] = {}  # name, read(folder) -> Iterator[Clip | Bad], and what readers.yaml says of each
WRONG = (KeyError, IndexError, TypeError, ValueError, AttributeError, OSError, RecursionError, OverflowError)  # what a bad record raises


def reader(name: str):
    """Register a function (folder) -> iterator of raw (id, make): `make()` gives the Clip or raises what a bad record raises."""
    def register(rows: Callable[[Path], Iterator[tuple[str, Callable[[], Clip | None]]]]):
        def read(folder: Path) -> Iterator[Clip | Bad]:
            found, number = rows(Path(folder)), 0
            while True:
                number += 1
                try:
                    identity, make = next(found)
                except StopIteration:
                    return
                except WRONG as error:
                    raise UserError(f"{folder} is laid out otherwise than {name} ({type(error).__name__}: {error}): see `mmduet2 data check`.") from None
                try:
                    clip = make()
                except WRONG as error:
                    yield Bad(str(identity)[:80] or f"record {number}", f"{type(error).__name__}: {error}"[:200])
                else:
                    if clip is not None:
                        yield clip

        READERS[name] = SimpleNamespace(name=name, read=read, **FACTS[name])
        return read

    return register


def files(folder: Path, *patterns: str) -> list[Path]:
    """The files of a corpus that match; UserError when there are none."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not found:
        raise UserError(f"{folder} holds none of {', '.join(patterns)}: give the folder into which the corpus was unpacked.")
    return found


def _json(path: Path):
    """A JSON file, or one JSON value a line; UserError when it is neither."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        try:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is neither JSON nor JSON Lines ({error}): mend it or leave it out.") from None


def first(some: Iterable, what: str):
    """The first of them; ValueError when there is none."""
    for one in some:
        return one
    raise ValueError(f"no {what}")


def named(row, key: str) -> str:
    """What a record calls itself; nothing where it is none."""
    return str(row.get(key, "")) if isinstance(row, dict) else ""


def seconds(value) -> float:
    """A time in seconds, from a number, "12.5", "MM:SS" or "HH:MM:SS"; ValueError for what is negative or no time."""
    total = 0.0
    for part in str(value).strip().split(":"):
        total = 60 * total + float(part)
    if not 0 <= total < math.inf:
        raise ValueError(f"{value!r} is no time")
    return total


def span(start, end, text: str) -> Span:
    """A span in seconds; ValueError where it ends before it starts or says nothing."""
    start, end = seconds(start), seconds(end)
    if end <= start or not str(text).strip():
        raise ValueError(f"span {start:g} to {end:g} of {text!r}")
    return start, end, " ".join(str(text).split())


def sentences(words: list, gap: float = 3.0) -> Iterator[Span]:
    """Timed words [(start, end, word)] as sentences: a full stop, question or exclamation mark ends one, and so does a gap in s."""
    said: list = []
    for start, end, word in words:
        if said and (start - said[-1][1] > gap or re.search(r"[.?!][\"')\]]*$", said[-1][2])):
            yield said[0][0], said[-1][1], " ".join(one[2] for one in said)
            said = []
        said.append((start, end, str(word).strip()))
    if said:
        yield said[0][0], said[-1][1], " ".join(one[2] for one in said)


@reader("live-whisperx")
def live_whisperx(folder: Path):
    """Rows [user, assistant] with timed words; times are the whole YouTube video's, the files that are shipped are cut clips."""
    for path in files(folder, "*.jsonl"):
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if re.match(r"\s*\[\s*(\d|\])", line):  # the last line: where each row begins
                    continue

                def make(line=line):
                    user, assistant = json.loads(line)
                    video = first((part for part in user["content"] if part["type"] == "video"), "video")
                    title = next((part.get("title", "") for part in user["content"] if part["type"] == "text"), "")
                    start, end = seconds(video["video_start"]), seconds(video["video_end"])
                    words = [word for part in assistant["content"] if part["type"] == "text_stream" for word in part["text_stream"]]
                    said = tuple(span(a - start if a > start else 0.0, b - start, text) for a, b, text in sentences(words))
                    name = f"{Path(video['video']).stem}_{start:.2f}-{end:.2f}"
                    shipped = next(iter(sorted(folder.glob(f"**/{name}_*.mp4"))), None)
                    whole = (video["video"], start, end)
                    at = (str(shipped.relative_to(folder)), 0.0, None) if shipped else whole
                    return Clip(name, "live-whisperx", at[0], "web", at[1], at[2], speech=said, title=title)

                yield line[:60], make


def _ego(takes: dict, name: str) -> str:
    """The egocentric RGB video of an Ego-Exo4D take: the small copy's path, if that is how it is laid out."""
    cameras = takes[name]["frame_aligned_videos"]
    aria = first((camera for camera in sorted(cameras) if camera.startswith("aria")), "view from the head")
    path = Path(takes[name]["root_dir"]) / cameras[aria]["rgb"]["relative_path"]
    return str(path.parent / "downscaled" / "448" / path.name)


@reader("ego-exo4d")
def ego_exo4d(folder: Path):
    """Key steps: segments in seconds from the take's start, with what the annotator wrote."""
    takes = {take["take_uid"]: take for take in _json(files(folder, "takes.json")[0])}
    for path in files(folder, "annotations/keystep_*.json"):
        noted = _json(path)["annotations"]
        for entry in noted.values() if isinstance(noted, dict) else noted:
            def make(entry=entry):
                steps = [span(s["start_time"], s["end_time"], s.get("step_description") or s["step_name"])
                         for s in entry["segments"] if s["start_time"] is not None and s["end_time"] is not None]  # fmt: skip
                return Clip(entry["take_name"], "ego-exo4d", _ego(takes, entry["take_uid"]), "ego", scenes=tuple(sorted(steps)),
                            title=entry.get("scenario", ""))  # fmt: skip

            yield named(entry, "take_name"), make


@reader("egoexolearn")
def egoexolearn(folder: Path):
    """A row a fine-grained action, in no order; those of one video seen from the head are one clip."""
    rows = []
    for path in files(folder, "annotations/fine_annotation_*_en.csv", "fine_annotation_*_en.csv"):
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as lines:
            rows += [row for row in csv.DictReader(lines) if row.get("view", "ego") == "ego"]
    for name, group in groupby(sorted(rows, key=lambda row: str(row.get("video_uid"))), lambda row: str(row.get("video_uid"))):
        def make(name=name, group=tuple(group)):
            said = [(row["start_sec"], row["end_sec"], row.get("narration_en_no_hand_prompt") or row["narration_en"]) for row in group]
            return Clip(name, "egoexolearn", f"{name}.mp4", "ego", scenes=tuple(sorted(span(*one) for one in said)), title=group[0]["scene"])

        yield name, make


@reader("llava-video")
def llava_video(folder: Path):
    """Conversations about whole videos: captions and open questions; multiple choice is left out."""
    for path in files(folder, "*/*cap*.json", "*/*oe*.json"):
        for row in _json(path):
            def make(row=row, path=path):
                said = [(turn["from"], re.sub(r"\s*<(?:image|video)>\s*", " ", turn["value"]).strip()) for turn in row["conversations"]]
                pairs = tuple((q, a) for (who, q), (other, a) in zip(said[::2], said[1::2], strict=True) if (who, other) == ("human", "gpt"))
                return Clip(str(row["id"]), "llava-video", str(path.parent.relative_to(folder) / row["video"]), "offline", qa=pairs)

            yield named(row, "id"), make


@reader("tarsier2")
def tarsier2(folder: Path):
    """Recaptioned clips: messages with a video and a caption; gold captions kept for evaluation have no text and are left out."""
    for path in files(folder, "*/metadata.json", "metadata.json"):
        for row in _json(path):
            def make(row=row, path=path):
                parts = {who: _parts(row["messages"], who) for who in ("user", "assistant")}
                video = first((part["video"] for part in parts["user"] if part["type"] == "video"), "video")
                asked, said = (" ".join(part["text"] for part in parts[who] if part["type"] == "text").strip() for who in ("user", "assistant"))
                if not said:
                    raise ValueError("no caption")
                place = path.parent.relative_to(folder)
                tried = [Path(video["video_file"]), place / video["video_file"], place / "videos" / Path(video["video_file"]).name]
                there = next((one for one in tried if (folder / one).is_file()), tried[1])
                end = None if video.get("end_time") is None else seconds(video["end_time"])
                return Clip(str(row["idx"]), "tarsier2", str(there), "offline", seconds(video.get("start_time", 0)), end, qa=((asked, said),))

            yield named(row, "idx"), make


def _parts(messages: list[dict], role: str) -> list[dict]:
    content = [message["content"] for message in messages if message["role"] == role]
    return [part for one in content for part in (one if isinstance(one, list) else [one])]


@reader("procedural")
def procedural(folder: Path):
    """The kit's own world as a corpus of annotated videos, for rehearsals of the pipeline: a scene's note is its caption."""
    for path in files(folder, "scenes/*.jsonl"):
        for row in each_row(path):
            def make(row=row):
                scenes = tuple(span(s["start"], s["end"], s["caption"]) for s in row["scenes"])
                return Clip(row["name"], "procedural", row["video"], "ego" if "ego" in row["domain"].lower() else "web", scenes=scenes)

            yield named(row, "name"), make
