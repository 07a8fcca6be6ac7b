"""Two hundred damaged or odd inputs to `data build`, of `test --all`: each stands in the ledger with its reason or comes through; the
good ones among them lose nothing."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mmduet2kit import released  # noqa: F401 - with it all readers are registered
from mmduet2kit.corpus import benchmarks, pipeline
from mmduet2kit.corpus.films import write_video
from mmduet2kit.corpus.pipeline import Plan, build_corpus, join, own_videos
from mmduet2kit.corpus.readers import READERS, Bad, Clip
from mmduet2kit.corpus.world import COLOURS, MOTIONS, SHAPES, sentence
from mmduet2kit.dialogue import NO_REPLY
from mmduet2kit.errors import UserError
from mmduet2kit.files import read_json, read_jsonl
from mmduet2kit.profile import load_profile
from mmduet2kit.score import get_judge

FIRST = next(iter(MOTIONS))


class Fixed:
    """Says a fact of the world for each scene, and asks for all of them."""

    name = "fixed"

    def __init__(self):
        self.said = 0

    def caption(self, scene):
        self.said += 1
        return sentence(list(COLOURS)[self.said % len(COLOURS)], list(SHAPES)[self.said // 8 % len(SHAPES)], FIRST)

    def questions(self, captions, count, seed):
        return [("What shows up?", list(captions))]

    def summary(self, question, earlier):
        return None


def pictures(count, seed=0, size=(56, 56)):
    colours = np.random.default_rng(seed).integers(0, 255, (16, 3))
    return (np.full((*size, 3), colours[k // 24 % 16], np.uint8) for k in range(count))


def variable_rate(path, times):
    """A video whose pictures are shown at these times, ms."""
    with av.open(str(path), "w") as made:
        stream = made.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 56, 56, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, picture in zip(times, pictures(len(times))):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """{name: does it have to come through?} and their folder."""
    folder, wanted, rng = tmp_path_factory.mktemp("odd"), {}, np.random.default_rng(0)
    for k in range(6):
        write_video(folder / f"good{k}.mp4", pictures(120, k), 4)
        wanted[f"good{k}"] = True
    raw = (folder / "good0.mp4").read_bytes()
    for k in range(60):  # cut off anywhere
        (folder / f"cut{k:02d}.mp4").write_bytes(raw[: 8 + len(raw) * k // 61])
        wanted[f"cut{k:02d}"] = None
    for k in range(40):  # bytes overwritten anywhere
        broken = bytearray(raw)
        at = int(rng.integers(0, len(raw) - 64))
        broken[at : at + 48] = rng.integers(0, 255, 48, np.uint8).tobytes()
        (folder / f"holes{k:02d}.mp4").write_bytes(bytes(broken))
        wanted[f"holes{k:02d}"] = None
    others = {"empty": b"", "text": b"no video at all\n" * 99, "zeros": bytes(5000), "png": b"\x89PNG\r\n\x1a\n" + bytes(300), "json": b'{"a": 1}',
              "html": b"<html></html>", "header": raw[:32], "wav": b"RIFF" + bytes(400), "zip": b"PK\x03\x04" + bytes(300), "twice": raw + raw}  # fmt: skip
    for kind, data in others.items():
        for suffix in (".mp4", ".mkv", ".webm"):
            (folder / f"{kind}{suffix[1:]}{suffix}").write_bytes(data)
            wanted[f"{kind}{suffix[1:]}"] = None if kind == "twice" else False
    for name, count in (("one", 1), ("two", 2), ("short", 5)):
        write_video(folder / f"{name}.mp4", pictures(count), 4)
        wanted[name] = False
    for k in range(10):  # pictures at any times
        times = np.sort(rng.choice(30_000, 60, replace=False)).tolist()
        variable_rate(folder / f"rate{k}.mp4", [0, *(t + 1 for t in times), 31_000])
        wanted[f"rate{k}"] = True
    for k, size in enumerate([(28, 28), (14, 200), (200, 14), (2, 2), (300, 56), (57, 57)]):
        even = tuple(side + side % 2 for side in size)
        write_video(folder / f"size{k}.mp4", pictures(120, 1, even), 4)
        wanted[f"size{k}"] = True
    words = ["1\n00:00:20,000 --> 00:00:28,000\nLater.\n\n2\n00:00:01,000 --> 00:00:09,000\nSooner.\n", "1\n00:00:05,000 --> 00:99:00,000\nTo the end.\n",
             "1\n00:10:00,000 --> 00:11:00,000\nAfter it.\n", "1\n00:00:09,000 --> 00:00:02,000\nBackwards.\n", "1\n-00:00:05,000 --> 00:00:08,000\nBefore.\n",
             "1\n00:00:01,000 --> 00:00:20,000\nA.\n\n2\n00:00:05,000 --> 00:00:28,000\nB over A.\n", "", "no cues", "1\n00:00:01,000 --> 00:00:09,000\n\n",
             "1\n00:00:01,000 --> 00:00:09,000\n" + "word " * 50_000 + "\n", "\n".join(f"{k}\n00:00:{k % 30:02d},000 --> 00:00:{k % 30 + 1:02d},000\nLine {k}.\n" for k in range(3000)),
             "1\n99:99:99,999 --> 99:99:99,999\nNever.\n", "WEBVTT\n\n00:01.000 --> 00:09.000\nNot SRT.\n", "{\\an8}<b>1\n00:00:01,000 --> 00:00:05,000</b>\nTags.\n"]  # fmt: skip
    codes = ["utf-8", "utf-16", "cp1252", "latin-1"]
    for k in range(45):
        (folder / f"words{k:02d}.mp4").write_bytes(raw)
        text = words[k % len(words)]
        (folder / f"words{k:02d}.srt").write_bytes(text.encode(codes[k % 4]) if k % 9 else bytes(rng.integers(0, 255, 400, np.uint8)))
        wanted[f"words{k:02d}"] = None
    return folder, wanted


@pytest.mark.all_only
def test_two_hundred_odd_files_lose_nothing_else(inputs, tmp_path, monkeypatch):
    folder, wanted = inputs
    assert len(wanted) >= 200
    monkeypatch.setattr(pipeline, "SHARD", 32)
    plan = Plan(load_profile("tiny"), "fixed", (0.0, 0.0, 0.0))
    shards = build_corpus(plan, Fixed(), get_judge("exact"), own_videos(folder, "web"), folder, tmp_path / "out", workers=2)
    join(plan, tmp_path / "out", shards)
    ledger = {row["rule"]: row for row in read_json(tmp_path / "out" / "ledger.json")}
    assert ledger["record can be read"]["in"] == ledger["video decodes"]["in"] == len(wanted)
    through = {record["name"] for record in read_jsonl(tmp_path / "out" / "scenes" / "sft.jsonl")}
    assert {name for name, must in wanted.items() if must} <= through
    assert not {name for name, must in wanted.items() if must is False} & through
    dropped = sum(row["in"] - row["out"] for rule, row in ledger.items() if rule.startswith(("video", "SFT")))
    assert len(through) + dropped >= len(wanted)  # who is not there is counted somewhere
    unread = {example["item"] for rule in ("record can be read", "video decodes") for example in ledger[rule]["examples"]}
    assert len(unread) == sum(ledger[rule]["in"] - ledger[rule]["out"] for rule in ("record can be read", "video decodes")) > 100  # by name
    assert not unread & through
    assert all(example["reason"] for row in ledger.values() for example in row["examples"])
    for line in open(tmp_path / "out" / "sft_1s.jsonl"):
        row = json.loads(line)
        said = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        assert any(text != NO_REPLY for text in said)


DEEP = "[" * 3000 + "]" * 3000
ODD = [None, 0, -1, 1e308, "NaN", "", [], {}, "x" * 100_000, True, [[]], {"start": "soon"}]


@pytest.mark.all_only
@pytest.mark.parametrize("name, file", [
    ("ego-exo4d", "annotations/keystep_train.json"), ("llava-video", "0_30_s_academic_v0_1/0_30_s_academic_v0_1_cap_processed.json"),
    ("tarsier2", "Oops/metadata.json"), ("proactivevideoqa", "WEB/anno.json"), ("streamingbench", "src/data/questions_proactive.json"),
    ("live-whisperx", "live_whisperx_526k_with_seeks.jsonl"), ("mmduet2-data", "sft/live_whisperx-half_multi_half_single_question-2_sec_per_frame-max_180s-sft-h5_images.jsonl"),
])  # fmt: skip
def test_annotations_with_any_value_anywhere_are_left_out_one_by_one(name, file, tmp_path):
    """Every leaf of a corpus' miniature is replaced in turn by twelve odd values: nothing is raised, what is good stays."""
    assert benchmarks
    source = Path(__file__).parent / "miniatures" / name
    shutil.copytree(source, tmp_path / "c")
    text = (source / file).read_text()
    whole = [json.loads(line) for line in text.splitlines()] if file.endswith("l") else json.loads(text)
    good = sum(not isinstance(one, Bad) for one in READERS[name].read(source))

    def leaves(node, path=()):
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            yield (*path, key)
            yield from leaves(value, (*path, key))

    tried = 0
    for path in list(leaves(whole))[:60]:
        for value in ODD:
            changed = json.loads(json.dumps(whole))
            node = changed
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
            text = "\n".join(json.dumps(row) for row in changed) if file.endswith("l") else json.dumps(changed)
            (tmp_path / "c" / file).write_text(text)
            try:
                found = [one for one in READERS[name].read(tmp_path / "c") if not isinstance(one, Bad)]
            except UserError:
                continue  # the file as a whole is no longer the corpus'
            tried += 1
            assert len(found) >= good - 2
            for clip in found:
                if isinstance(clip, Clip):
                    assert all(0 <= a < b for a, b, _ in (*clip.scenes, *clip.speech))
    assert tried > 50
    (tmp_path / "c" / file).write_text(DEEP)
    try:
        assert sum(not isinstance(one, Bad) for one in READERS[name].read(tmp_path / "c")) < max(good, 2)  # other files are as they were
    except UserError as error:
        assert len(str(error)) < 500
