"""Scenes: subtitles beside a video and inside it, in odd forms; cuts where there are none; spans of usable length."""

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmduet2kit.corpus.films import write_video
from mmduet2kit.corpus.scenes import LONGEST, SHORTEST, beside, between, cuts, evened, speech
from mmduet2kit.corpus.video import frames
from mmduet2kit.errors import UserError

SRT = """2
00:00:04,000 --> 00:00:06,500
She opens
the door.

1
00:00:01,000 --> 00:00:03,000
A man waits.

3
00:00:07,000 --> 00:00:30,000
He leaves

4
00:00:40,000 --> 00:00:42,000
after the end

5
00:00:08,000 --> 00:00:08,000
no time
"""
WANTED = ((1.0, 3.0, "A man waits."), (4.0, 6.5, "She opens the door."), (7.0, 12.0, "He leaves"))


@pytest.fixture
def video(tmp_path):
    """12 s in three colours of 4 s each."""
    colours = [(200, 30, 30), (30, 60, 30), (230, 240, 250)]
    path = tmp_path / "film.mp4"
    write_video(path, (np.full((56, 56, 3), colours[k // 32], np.uint8) for k in range(96)), 8)
    return path


def test_subtitles_beside_a_video_in_order_and_within_it(video):
    video.with_suffix(".srt").write_text(SRT)
    assert speech(video, 12.0) == WANTED
    video.with_suffix(".srt").unlink()
    vtt = "WEBVTT\n\n" + "\n\n".join(block.partition("\n")[2].replace(",", ".") for block in SRT.strip().split("\n\n")) + "\n"
    video.with_suffix(".vtt").write_text(vtt)
    assert speech(video, 12.0) == WANTED


def test_subtitles_are_found_by_the_videos_name_and_a_language(video):
    """Its own name before English, English before the others; what another film is called is no language."""
    for name in ("film.second.srt", "film.cut.long.srt", "films.srt", "film.txt"):
        (video.parent / name).write_text(SRT)
    assert beside(video) is None
    for name in ("film.pt-BR.srt", "film.de.VTT", "film.en.vtt", "film.SRT"):
        (video.parent / name).write_text(SRT)
        assert beside(video) == video.parent / name or name == "film.de.VTT"  # .srt before .vtt
    assert beside(video.with_name("film.cut.mp4")) is None and beside(video.with_name("films.mkv")) == video.parent / "films.srt"


@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_subtitles_in_any_encoding(video, code):
    video.with_suffix(".srt").write_bytes("1\n00:00:01,000 --> 00:00:02,000\nVoilà, Zoë.\n".encode(code))
    assert speech(video, 12.0) == ((1.0, 2.0, "Voilà, Zoë."),)


def test_rolling_captions_are_said_once(video):
    blocks = [("00:01.000", "00:03.000", "we cut"), ("00:03.000", "00:05.000", "we cut\nthe bread"), ("00:05.000", "00:07.000", "the bread\nand eat.")]
    video.with_suffix(".vtt").write_text("WEBVTT\n\n" + "\n\n".join(f"00:{a} --> 00:{b}\n{text}" for a, b, text in blocks) + "\n")
    assert speech(video, 12.0) == ((1.0, 7.0, "we cut the bread and eat."),)


@pytest.mark.parametrize("raw", [b"", b"not subtitles at all", b"\x00\x01\x02\x03" * 50, b"1\n00:00:xx --> bad\nHm\n"])
def test_a_file_without_subtitles_is_one_sentence_or_nothing(video, raw):
    video.with_suffix(".srt").write_bytes(raw)
    try:
        assert speech(video, 12.0) == ()
    except UserError as error:
        assert "film.srt" in str(error) and len(str(error).splitlines()) == 1


@pytest.mark.parametrize("origin", [0, 5])  # s, of the file's clock
def test_subtitles_inside_a_video(video, tmp_path, monkeypatch, origin):
    path, words = tmp_path / "inside.mkv", tmp_path / "words.srt"
    words.write_text("1\n00:00:01,000 --> 00:00:03,000\nA man waits.\n\n2\n00:00:04,000 --> 00:00:06,500\nShe opens the door.\n")
    with av.open(str(video)) as source, av.open(str(words)) as said, av.open(str(path), "w") as made:
        streams = [(one, made.add_stream_from_template(one)) for one in (source.streams.video[0], said.streams.subtitles[0])]
        for one, into in streams:
            for packet in (source if one.type == "video" else said).demux(one):
                if packet.pts is not None:
                    packet.pts += round(origin / packet.time_base)
                    packet.dts = packet.dts and packet.dts + round(origin / packet.time_base)
                    packet.stream = into
                    made.mux(packet)
    assert speech(path, 12.0) == WANTED[:2]
    assert speech(video, 12.0) == ()  # and a video without any
    monkeypatch.chdir(tmp_path)
    path.rename("12:30 talk.mkv")
    assert speech(Path("12:30 talk.mkv"), 12.0) == WANTED[:2]  # no address of a protocol "12"


def test_cuts_are_found_where_the_picture_changes(video):
    found = cuts(frames(video, 0.25, max_tokens=8))
    assert found == pytest.approx([4.0, 8.0], abs=0.3)
    assert between(found, 12.0) == [(0.0, found[0]), (found[0], found[1]), (found[1], 12.0)]
    assert between([], 5.0) == [(0.0, 5.0)] and between([0.0, 9.0, 5.0], 5.0) == [(0.0, 5.0)]


@given(st.lists(st.tuples(st.floats(0, 4), st.floats(0.05, 70), st.sampled_from(["a", "b c", ""])), max_size=20))
def test_spans_become_usable_and_nothing_is_lost(parts):
    spans, at = [], 0.0
    for gap, length, text in parts:
        spans.append((at + gap, at + gap + length, text))
        at += gap + length
    made = list(evened(spans))
    assert all(b > a and b - a <= LONGEST + 1e-6 for a, b, _ in made)
    assert all(x[1] <= y[0] + 1e-9 for x, y in zip(made, made[1:]))
    if spans and sum(b - a for a, b, _ in spans) >= SHORTEST:
        assert made[0][0] == spans[0][0] and made[-1][1] == pytest.approx(spans[-1][1])
    assert {w for _, _, text in made for w in text.split()} == {w for _, _, text in spans for w in text.split()}
