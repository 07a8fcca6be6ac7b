"""Readers of public corpora and benchmarks, on miniatures in their own schemas (tests/miniatures, written by us from the documented formats)."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmduet2kit import cli, released
from mmduet2kit.corpus.readers import READERS, Bad, seconds, sentences
from mmduet2kit.dialogue import NO_REPLY
from mmduet2kit.errors import UserError
from mmduet2kit.files import write_jsonl
from mmduet2kit.scoring import Record

HERE = Path(__file__).parent / "miniatures"


def read(name, folder=None):
    rows = list(READERS[name].read(HERE / (folder or name)))
    return [row for row in rows if not isinstance(row, Bad)], [row for row in rows if isinstance(row, Bad)]


def test_words_become_sentences_on_the_clips_own_clock():
    (one, two), bad = read("live-whisperx")
    assert one.video == "video/youtube/ab-C_d1.mp4" and (one.start, one.end, one.domain, one.title) == (10.5, 19.0, "web", "Paper")
    assert [text for _, _, text in one.speech] == ["We cut it.", "Then fold", "and press!"]  # a full stop, a gap of 4.3 s
    assert one.speech[0][:2] == (0.0, 1.5) and one.speech[2][:2] == pytest.approx((7.5, 8.5))
    assert two.id == "zz_0.00-0.50" and "video_start" in bad[0].reason and len(bad) == 1


def test_a_shipped_clip_is_found_and_begins_at_zero(tmp_path):
    file = HERE / "live-whisperx" / "live_whisperx_526k_with_seeks.jsonl"
    (tmp_path / file.name).write_text(file.read_text())
    clip = tmp_path / "videos" / "ab-C_d1_10.50-19.00_2.0fps.mp4"
    clip.parent.mkdir()
    clip.touch()
    first = next(iter(READERS["live-whisperx"].read(tmp_path)))
    assert (first.video, first.start, first.end) == (str(clip.relative_to(tmp_path)), 0.0, None) and first.speech[0][0] == 0.0


def test_key_steps_of_a_take_and_its_own_view():
    (take,), bad = read("ego-exo4d")
    assert take.video == "takes/kitchen_01/frame_aligned_videos/downscaled/448/aria02_214-1.mp4"
    assert take.scenes == ((0.85598, 11.5, "Wash onion"), (12.25, 30.0, "Cuts the onion on the board"))
    assert bad == [Bad("kitchen_02", "ValueError: no view from the head")]


def test_rows_of_one_video_are_one_clip_in_order():
    (one,), bad = read("egoexolearn")
    assert one.scenes == ((1.0, 3.5, "He takes a pot"), (9.5, 12.0, "He pours water")) and one.video == "v-1.mp4"
    assert [x.id for x in bad] == ["v-3"]  # ends before it begins; v-2 is not seen from the head


def test_offline_questions_and_captions():
    clips, bad = read("llava-video")
    assert [c.qa for c in clips] == [(("What does he open?", "A door."), ("With which hand?", "The left.")), (("Describe the video.", "A man opens a door."),)]
    assert clips[0].video == "0_30_s_academic_v0_1/academic_source/Charades/RW587.mp4" and [b.id for b in bad] == ["odd"]
    (clip,), bad = read("tarsier2")
    assert (clip.video, clip.start, clip.end) == ("Oops/fall.mp4", 2.0, 8.5) and clip.qa[0][1] == "A boy falls off his bike."
    assert bad == [Bad("Oops/2", "ValueError: no caption")]


def test_benchmarks_become_records_that_score_reads():
    records, bad = read("proactivevideoqa")
    assert {r["domain"] for r in records} == {"WEB", "TV"} and [b.id for b in bad] == ["broken"]
    web = next(r for r in records if r["domain"] == "WEB")
    assert web["video"] == "WEB/videos/clip.mp4" and Record(**web).answer[1].reply_timespan == (4.0, 10.0)
    for folder, moments in (("streamingbench", (174.0, 182.0)), ("streamingbench-hub", (5.0, 12.0))):
        (record, *_), bad = read("streamingbench", folder)
        known = Record(**record)
        assert (known.time_stamp, known.ground_truth_time_stamp) == moments
        assert len(bad) == (folder == "streamingbench")  # "soon" is no time
    assert record["question_id"] == "Proactive Output_sample_1_1" and record["video"] == "sample_1/video.mp4"


def test_the_authors_dialogues():
    (one,), bad = read("mmduet2-data")
    d = one.dialogue
    assert one.video == "dogs.hdf5" and [t.frames for t in d.turns] == [(0, 1), (2, 3)] and d.interval == 2.0 and d.times() == [4.0, 8.0]
    assert [t.reply for t in d.turns] == [NO_REPLY, "A dog runs in."] and len(bad) == 1  # the forced prefix is no part of it


def test_every_reader_says_what_it_was_written_from():
    assert len(READERS) == 9 and released
    for one in READERS.values():
        assert one.seen in ("SEEN", "DOCUMENTED", "UNVERIFIED") and one.source and one.licence and one.access and one.files and one.fields
    assert READERS["mmduet2-data"].seen == "UNVERIFIED"


@pytest.mark.parametrize("many", [0, 1, 2])
def test_a_world_of_few_films_is_read(many, tmp_path):
    rows = [{"name": f"v{k}", "video": f"v{k}.mp4", "domain": "train_ego", "scenes": [{"start": 0, "end": 2, "caption": "A red bar."}]} for k in range(many)]
    write_jsonl(tmp_path / "scenes" / "sft.jsonl", rows)
    assert [(clip.id, clip.domain) for clip in READERS["procedural"].read(tmp_path)] == [(f"v{k}", "ego") for k in range(many)]


@pytest.mark.parametrize("name", ["live-whisperx", "ego-exo4d", "egoexolearn", "llava-video", "tarsier2", "proactivevideoqa", "streamingbench", "mmduet2-data"])
def test_an_empty_folder_is_one_sentence(name, tmp_path):
    with pytest.raises(UserError, match="holds none of"):
        list(READERS[name].read(tmp_path))


def test_times_in_all_their_forms():
    assert [seconds(t) for t in ("12.5", 7, "02:54", "0:02:54", "01:00:00")] == [12.5, 7.0, 174.0, 174.0, 3600.0]
    for wrong in ("-1", "soon", None, "nan", "inf", ""):
        with pytest.raises(ValueError):
            seconds(wrong)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0.01, 2), st.sampled_from(["a", "b.", "c?", "d!\"", "e,"])), min_size=1, max_size=30))
def test_sentences_lose_no_word_and_stand_in_order(parts):
    words, at = [], 0.0
    for gap, length, word in parts:
        words.append((at + gap, at + gap + length, word))
        at += gap + length
    found = list(sentences(words))
    assert " ".join(text for _, _, text in found).split() == [w for _, _, w in words]
    assert all(a <= b for a, b, _ in found) and all(x[1] <= y[0] + 1e-9 for x, y in zip(found, found[1:]))
    assert all(not text.split()[:-1] or not any(w.rstrip('"')[-1] in ".?!" for w in text.split()[:-1]) for _, _, text in found)


def test_the_command_lists_readers_and_checks_a_folder(tmp_path, capsys):
    assert cli.main(["data", "check"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in READERS) and "UNVERIFIED" in text
    assert cli.main(["data", "check", str(HERE / "egoexolearn"), "--corpus", "egoexolearn"]) == 0
    text = capsys.readouterr().out
    assert "1 read, 1 left out, 2 scenes" in text and "videos that are there: 0 of 1" in text and "span 5 to 4" in text
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "fine_annotation_train_en.csv").write_text("<html>Sign in</html>\n")
    capsys.readouterr()
    assert cli.main(["data", "check", str(tmp_path), "--corpus", "egoexolearn"]) == 2
    assert "holds no record of egoexolearn that can be read (annotations/fine_annotation_*_en.csv" in capsys.readouterr().err
    for wrong in (["data", "check", "nowhere", "--corpus", "tarsier2"], ["data", "check", str(HERE)], ["data", "make", str(HERE)]):
        assert cli.main(wrong) == 2 and capsys.readouterr().err
