"""Video files to frames: decoding on the frame clock, Qwen2.5-VL's frame sizes, a cache of frames on disk.

Time 0 is the first picture's presentation time, whatever the file's clock says. A picture is shown until the next one, the
last for its own duration. Frame k (from 1) shows time (k-1)*interval and exists iff (k-1)*interval < duration. Times no more
than a tick of the file's clock (at most 1 ms) apart count as equal, since containers round them.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from ..errors import UserError
from ..files import halfway, sha256_file
from ..progress import side_by_side

PATIENCE = (10.0, 10.0)  # s that a server may take to open a video, and for each read of it
SIDE = 28  # pixels of one visual token: patches of 14, merged 2 x 2
CACHE = "v1"  # raise it when the pixels change, so that old caches are not taken for new ones
# The last two flags keep swscale to code that gives the same pixels on every processor.
SCALING = (Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT)


def fit_size(width: float, height: float, max_tokens: int) -> tuple[int, int]:
    """(W, H), multiples of 28 with (W/28)*(H/28) <= max_tokens, as Qwen2.5-VL's `smart_resize` chooses them.

    Each side is rounded to the nearest multiple of 28 (at least 28); only when that is too much are both
    shrunk, and nothing is enlarged further. Very long pictures are squeezed to the limit.
    """
    if not (width > 0 and height > 0 and max_tokens >= 1):
        raise UserError(f"{width} x {height} pixels do not fit {max_tokens} tokens: give numbers above 0.")
    w, h = (max(1, round(side / SIDE)) for side in (width, height))
    if w * h > max_tokens:
        shrink = math.sqrt(width * height / (max_tokens * SIDE**2))
        w, h = (min(max_tokens, max(1, math.floor(side / shrink / SIDE))) for side in (width, height))
    return w * SIDE, h * SIDE


def frames(path: Path | str, interval: float, *, max_tokens: int) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (time in s, uint8 RGB [H, W, 3]) for each time (k-1)*interval below the duration; `path`: a file, FIFO or URL.

    A frame is the last picture whose presentation time is not later. Rotation and mirroring apply, pixels become
    square, alpha is dropped, colours follow the file's tags (none: as BT.601). All frames have the size that
    `fit_size` gives for the first picture. Errors: UserError, before the first frame, for a file that is missing,
    empty, or without moving pictures; where it shows, for one that is damaged or ends earlier than it states by
    more than 1 s and 5 percent, and for a server that says nothing for `PATIENCE`.
    """
    if not 0.001 < interval < math.inf:
        raise UserError(f"a frame interval of {interval} s cannot be used: give more than 0.001 seconds.")
    step, k, shown, size, scaler = Fraction(interval).limit_denominator(10**6), 0, None, None, VideoReformatter()
    with opened(path) as (container, stream):
        tick = min(stream.time_base, Fraction(1, 1000))
        for time, picture in _pictures(path, container, stream):
            image = None
            while shown is not None and k * step + tick < time:
                if image is None:
                    size = size or fit_size(*_shown_size(shown, stream), max_tokens)
                    image = _upright_rgb(shown, size, scaler)
                yield float(k * step), image.copy()
                k += 1
            shown = picture


def address(path: Path | str) -> str:
    """What FFmpeg is to open: a URL or the like (`pipe:0`) as it is, else a file, FIFO or device; UserError when it is not there."""
    if not os.path.exists(path) and re.match(r"[\w+.,-]{2,}:", str(path)):
        return str(path)
    if not os.path.exists(path) or os.path.isdir(path):
        raise UserError(f"{path} does not exist or is a folder: check the name.")
    if os.path.isfile(path) and not os.path.getsize(path):
        raise UserError(f"{path} is empty: fetch or encode the video again.")
    return f"file:{path}" if os.path.isfile(path) else os.path.abspath(path)  # names of files may hold colons


@contextmanager
def opened(path):
    """(container, first video stream), one thread; what FFmpeg refuses in the block becomes a UserError."""
    try:
        with av.open(address(path), metadata_errors="replace", timeout=PATIENCE if "://" in str(path) else None) as container:
            # FFmpeg takes the cover of a song for a video, and any .txt for a recorded terminal.
            films = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
            stream = next(films, None)
            if stream is None or container.format.name == "tty":
                raise UserError(f"{path} holds no moving pictures: give a video file.")
            if stream.codec_context is None:
                raise UserError(f"{path} is encoded in a way this FFmpeg does not know: encode it as H.264.")
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        reason = f"no answer for {PATIENCE[1]:g} s" if isinstance(error, av.ExitError) else error.strerror
        advice = "it is damaged, cut short or something else; fetch or encode it again" if os.path.exists(path) else "check the address"
        raise UserError(f"{path} cannot be read as a video ({reason}): {advice}.") from None


def _decoded(path, container, stream):
    """Pictures in the order of presentation; UserError where one is damaged."""
    for packet in container.demux(stream):
        # A corrupt packet is one cut by the file's end; how much is missing is for `_pictures` to judge.
        with suppress(*(av.FFmpegError,) if packet.is_corrupt else ()):
            for picture in packet.decode():
                if picture.is_corrupt:  # FFmpeg has filled a hole with what stood there
                    raise UserError(f"{path} is damaged near {picture.time or 0:.1f} s: fetch it again.")
                yield picture


def _pictures(path, container, stream):
    """Yield (time, picture), the first at 0, and at last (duration, None); times are Fractions in seconds."""
    origin, time, length, hour = None, Fraction(0), Fraction(0), 3600
    by_dts = container.format.name == "avi"  # it has no presentation times, and FFmpeg's stand-ins are wrong
    for picture in _decoded(path, container, stream):
        stamp = picture.dts if by_dts else picture.pts
        elapsed = length if stamp is None else stamp * picture.time_base - (origin or 0) - time
        if origin is None:
            origin, elapsed = elapsed, 0
        time += elapsed if 0 <= elapsed < hour else length  # the clock was set: go on at the rate before
        rate = stream.average_rate or Fraction(25)
        length = min(hour, (picture.duration or 0) * picture.time_base or 1 / rate)
        yield time, picture
    if origin is None:
        raise UserError(f"{path} holds no picture that can be decoded: fetch or encode the video again.")
    stated, reached = _stated_end(container, stream), origin + time + length
    if stated - reached > max(1, stated / 20):
        raise UserError(f"{path} ends at {float(reached):.1f} s of the {float(stated):.1f} s it states: it was cut short; fetch or encode it again.")
    yield time + max(length, Fraction(1, 100)), None


def _stated_end(container, stream):
    """The end that the file states for its pictures (the sound may be longer), in seconds of its clock."""
    if stream.duration:
        return stream.duration * stream.time_base
    if tag := re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", stream.metadata.get("DURATION", "")):  # Matroska
        return sum(Fraction(part) * unit for part, unit in zip(tag.groups(), (3600, 60, 1), strict=True))
    return Fraction(container.duration or 0, 1_000_000)


def _matrix(picture):
    """The display matrix's a, b, c, d: a stored point (x, y) is shown at (a x + c y, b x + d y)."""
    found = [data for data in picture.side_data if data.type.name == "DISPLAYMATRIX"]
    return np.frombuffer(bytes(found[0]), np.int32)[[0, 1, 3, 4]].tolist() if found else (1, 0, 0, 1)


def _shown_size(picture, stream):
    """(width, height) upright and in square pixels; floats."""
    a, b, _, _ = _matrix(picture)
    width, height = picture.width * float(stream.sample_aspect_ratio or 1), picture.height
    return (height, width) if abs(b) > abs(a) else (width, height)


def _upright_rgb(picture, size, scaler):
    """uint8 [H, W, 3] of `size` (W, H); turns to the nearest quarter, and mirrors."""
    a, b, c, d = _matrix(picture)
    turned = abs(b) > abs(a)
    width, height = size[::-1] if turned else size
    image = scaler.reformat(picture, width, height, "rgb24", interpolation=SCALING, threads=1).to_ndarray()
    if turned:
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] in another size (W, H), as decoded frames are scaled."""
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return VideoReformatter().reformat(picture, *size, "rgb24", interpolation=SCALING, threads=1).to_ndarray()


class FilterLedger:
    """How many items each rule saw and let through, with the first few that it did not."""

    def __init__(self, examples: int = 5):
        self.limit, self.rules = examples, {}

    def check(self, rule: str, item, ok: bool, reason: str = "") -> bool:
        """Count `item` under `rule` and return `ok`; `reason` says why not."""
        row = self.rules.setdefault(rule, {"rule": rule, "in": 0, "out": 0, "examples": []})
        row["in"] += 1
        row["out"] += bool(ok)
        if not ok and len(row["examples"]) < self.limit:
            row["examples"].append({"item": str(item), "reason": reason})
        return bool(ok)

    def add(self, rows: Iterable[dict]) -> None:
        """Count another ledger's rows too."""
        for row in rows:
            mine = self.rules.setdefault(row["rule"], {"rule": row["rule"], "in": 0, "out": 0, "examples": []})
            mine["in"], mine["out"] = mine["in"] + row["in"], mine["out"] + row["out"]
            mine["examples"] = (mine["examples"] + row["examples"])[: self.limit]

    def rows(self) -> list[dict]:
        """[{"rule", "in", "out", "examples": [{"item", "reason"}]}], in the order of the rules' first use."""
        return list(self.rules.values())


def decode_many(paths: Iterable[Path | str], interval: float, max_tokens: int, out_dir: Path | str, workers: int, ledger: FilterLedger,
                progress: Callable[[int, int], None] | None = None) -> dict[str, Path]:
    """Decode videos into `out_dir`, in `workers` processes (1: this one): {source: .npy file, uint8 [N, H, W, 3]}.

    A file is named by its source's SHA-256, interval and max_tokens and appears whole or not at all; one that
    is there is not made again, so a killed call is taken up by calling again. Sources that raise UserError
    stand only in the ledger, under "video decodes". `progress(done, total)` is called after each.
    """
    paths, out_dir, index = list(paths), Path(out_dir), {}
    results = side_by_side(partial(_cache, interval, max_tokens, out_dir), paths, workers, progress)
    for path, (cache, reason) in zip(paths, results, strict=True):
        if ledger.check("video decodes", path, cache is not None, reason):
            index[str(path)] = cache
    return index


def _cache(interval, max_tokens, out_dir, path):
    """(cache file, "") or (None, why there is none)."""
    try:
        return cached_frames(path, interval, max_tokens, out_dir)[0], ""
    except UserError as error:
        return None, str(error)


def cached_frames(path: Path | str, interval: float, max_tokens: int, out_dir: Path) -> tuple[Path, np.ndarray]:
    """(cache file, its frames as a memory map); decoded if it is not there. UserError for a source that cannot be decoded."""
    source = sha256_file(path) if Path(path).is_file() else "missing"
    cache = out_dir / f"{source}-{float(interval)}s-{max_tokens}-{CACHE}.npy"
    if not cache.exists():
        images = [image for _, image in frames(path, interval, max_tokens=max_tokens)]
        with halfway(cache) as half, open(half, "wb") as out:
            np.save(out, images)
    return cache, np.load(cache, mmap_mode="r")
