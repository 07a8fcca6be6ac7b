"""Scenes of a video (paper section 3, step 1): by the sentences of its subtitles where there are any, else by PySceneDetect."""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pysubs2

from ..errors import UserError
from .readers import Span, sentences
from .video import opened

SUFFIXES = (".srt", ".vtt", ".ass", ".ssa")
LOOK_S = 0.25  # how often a video is looked at for cuts, s
SHORTEST, LONGEST = 3.0, 20.0  # of a scene, s: shorter ones join the next, longer ones are cut evenly


def beside(path: Path) -> Path | None:
    """The subtitle file of a video: film.srt of film.mp4, or film.en.srt, or film.de.VTT; None where there is none."""
    changed, now = path.parent.stat().st_mtime_ns, time.time_ns()
    found = _subtitles(path.parent, changed if now - changed > 1e9 else now).get(path.stem, ())  # clocks of file systems tick slowly
    return min(found, key=lambda one: (one.stem != path.stem, Path(one.stem).suffix != ".en", SUFFIXES.index(one.suffix.lower()), one.name), default=None)


@lru_cache(maxsize=8)
def _subtitles(folder: Path, changed: int) -> dict[str, list[Path]]:
    """{name of a film, without its ending: subtitle files} of a folder as it was at that time; a language may stand between."""
    found: dict[str, list[Path]] = {}
    for path in (one for one in folder.iterdir() if one.suffix.lower() in SUFFIXES and one.is_file()):
        for name in [path.stem, *re.findall(r"^(.+)\.[A-Za-z]{2,3}(?:[-_]\w+)?$", path.stem)]:
            found.setdefault(name, []).append(path)
    return found


def speech(path: Path, duration: float) -> tuple[Span, ...]:
    """Sentences of a video's subtitles: of a file of its name beside it (`beside`), else of its own first subtitle stream; () without.

    Cues out of order are sorted; those that are empty, begin before 0 or after the end, or last no time are left out; what a
    rolling caption repeats of the line before is taken once.
    """
    cues = _file(file) if (file := beside(path)) else _embedded(path)
    kept: list[Span] = []
    before: list[str] = []
    for start, end, text in sorted(cues):
        lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        new = [line for line in lines if line not in before]
        before = lines or before
        if new and 0 <= start < min(end, duration):
            kept.append((start, min(end, duration), " ".join(new)))
    return tuple(sentences(kept))


def _file(path: Path) -> list[Span]:
    """Cues of a subtitle file in whatever encoding; UserError when it is none."""
    raw = path.read_bytes()
    codes = ("utf-16",) if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "cp1252", "latin-1")
    for code in codes:
        try:
            text = raw.decode(code)
            break
        except UnicodeDecodeError:
            continue
    else:
        raise UserError(f"{path} is in no encoding that is known: save it as UTF-8.")
    try:
        found = pysubs2.SSAFile.from_string(text)
    except (pysubs2.exceptions.Pysubs2Error, ValueError, KeyError, IndexError, OverflowError) as error:
        raise UserError(f"{path} holds no subtitles that can be read ({type(error).__name__}): mend it or take it away.") from None
    return [(event.start / 1000, event.end / 1000, event.plaintext) for event in found if not event.is_comment]


def _embedded(path: Path) -> list[Span]:
    """Cues of the first text subtitle stream of a video file; none where it has none, or only pictures."""
    found: list[Span] = []
    try:
        with opened(path) as (container, film):
            streams = container.streams.subtitles
            for packet in container.demux(streams[0]) if streams else ():
                for cue in packet.decode() if packet.pts is not None else ():
                    start = float(packet.pts * packet.time_base - (film.start_time or 0) * film.time_base)  # as `frames`: the first picture is at 0
                    text = _ass(cue)
                    found += [(start, start + float((packet.duration or 0) * packet.time_base), text)] if text else []
    except (UserError, ValueError):
        return []
    return found


def _ass(cue) -> str:
    """The words of a decoded cue, which FFmpeg gives as a line of ASS: eight fields and a comma each before them."""
    raw = getattr(cue, "ass", b"")
    line = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    return pysubs2.SSAEvent(text=line.split(",", 8)[-1]).plaintext if line else ""


def cuts(pictures: Iterable[tuple[float, np.ndarray]]) -> list[float]:
    """Where scenes begin anew, s: PySceneDetect's content detector over pictures (time, RGB [H, W, 3]) that are LOOK_S apart."""
    from scenedetect import ContentDetector, FrameTimecode

    rate = 1 / LOOK_S
    detector, found = ContentDetector(min_scene_len=max(1, round(1 / LOOK_S))), []
    for number, (_, picture) in enumerate(pictures):
        found += detector.process_frame(FrameTimecode(number, rate), np.ascontiguousarray(picture[..., ::-1]))
    return [cut.frame_num * LOOK_S for cut in found]


def between(marks: Sequence[float], duration: float) -> list[tuple[float, float]]:
    """The stretches of a video between cuts."""
    edges = [0.0, *(mark for mark in sorted(marks) if 0 < mark < duration), duration]
    return [(a, b) for a, b in zip(edges, edges[1:]) if b > a]


def evened(spans: Iterable[Span], shortest: float = SHORTEST, longest: float = LONGEST) -> Iterator[Span]:
    """Spans in order, of usable length: short ones join the next (the last the one before), long ones are cut evenly."""
    ready: list[list] = []
    for start, end, text in spans:
        if ready and ready[-1][1] - ready[-1][0] < shortest:
            ready[-1][1], ready[-1][2] = max(end, ready[-1][1]), f"{ready[-1][2]} {text}".strip()
        else:
            ready.append([start, end, text])
    if len(ready) > 1 and ready[-1][1] - ready[-1][0] < shortest:
        _, end, text = ready.pop()
        ready[-1][1], ready[-1][2] = end, f"{ready[-1][2]} {text}".strip()
    for start, end, text in ready:
        parts = max(1, int(-(-(end - start) // longest)))
        step = (end - start) / parts
        for k in range(parts):
            yield start + k * step, start + (k + 1) * step, text
