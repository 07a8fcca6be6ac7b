"""`mmduet2 watch`: the replies of evaluation at the same times, frames that come too fast, Ctrl-C, and bad input."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from itertools import count

import numpy as np
import pytest

from mmduet2kit import watch as watching
from mmduet2kit.chat import ChatEncoder
from mmduet2kit.cli import main
from mmduet2kit.corpus.films import write_video
from mmduet2kit.corpus.video import frames
from mmduet2kit.dialogue import NO_REPLY, PROACTIVE_SYSTEM, user_turns
from mmduet2kit.engines import Session, StreamEngine
from mmduet2kit.errors import UserError
from mmduet2kit.model import load
from mmduet2kit.stream import Greedy, Spoken
from mmduet2kit.watch import Ahead, newest_model, question_at

from played import make_tiny, teach_silence

FIRST, SECOND = "What things show up?", "What moves?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that is silent at some turns and speaks at others."""
    path = make_tiny(tmp_path_factory.mktemp("watch"))
    model, processor = teach_silence(*load(path))
    model.config.visual_tokens = 4
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("film") / "a film.mp4", np.random.default_rng(0)
    pictures = [np.full((112, 112, 3), rng.integers(0, 255, 3), np.uint8) for _ in range(12)]
    write_video(path, (pictures[min(k // 4, 11)] for k in range(49)), 4)  # 12.25 s: 13 frames, so the last turn of two has one
    return path


class Parrot:
    """A stream that says these words, one a turn with frames, and keeps what it is asked."""

    def __init__(self, words):
        self.words, self.asked = iter(words), []

    def see(self, images):
        return images

    def turn(self, rows, turns, *_):
        if turns[0].frames:
            return {0: Spoken(text=next(self.words))}
        self.asked.append(turns[0].text)
        return {}


def lines(capsys):
    captured = capsys.readouterr()
    return [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_it_says_what_the_model_says_in_an_evaluation(folder, film, capsys):
    model, processor = load(folder)
    images = np.stack([image for _, image in frames(film, 1.0, max_tokens=4)])
    encoder = ChatEncoder(processor.tokenizer, 4)
    turns = user_turns(len(images), 2, 1.0, [(0.0, FIRST), (5.5, SECOND)], text_only=True)
    session = Session(encoder.system(PROACTIVE_SYSTEM), images, turns)
    (said,) = StreamEngine(model.eval(), processor.image_processor).play(encoder, [session], Greedy(), 100)
    times = [(turn.frames[-1] + 1) * 1.0 for turn in turns if turn.frames]
    expected = [(t, s.text.strip()) for t, s in zip(times, said, strict=True) if s.text.strip() != NO_REPLY]
    assert 0 < len(expected) < len(times)
    code = main(["watch", str(film), "--question", FIRST, "--ask", f"5.5:{SECOND}", "--model", str(folder),
                 "--frames-per-turn", "2", "--json"])  # fmt: skip
    found, told = lines(capsys)
    assert code == 0 and [(line["time"], line["text"]) for line in found] == expected
    assert all(list(line) == ["time", "text", "latency_s"] and line["latency_s"] > 0 for line in found)
    assert "watched 13 s" in told and f"{len(times)} turns, {len(times) - len(expected)} silent" in told


def test_a_url_is_watched_like_a_file(folder, film, capsys):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=film.parent)
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        place = f"http://127.0.0.1:{server.server_port}/a%20film.mp4"
        outputs = []
        for video in (place, str(film)):
            assert main(["watch", video, "--question", FIRST, "--model", str(folder), "--frames-per-turn", "2"]) == 0
            outputs.append([(line["time"], line["text"]) for line in lines(capsys)[0]])
        assert outputs[0] == outputs[1] != []
        assert main(["watch", place + "nowhere", "--question", FIRST, "--model", str(folder)]) == 2
        assert "nowhere" in capsys.readouterr().err
    finally:
        server.shutdown()


def slow(number, seconds=0.0):
    for k in range(number):
        time.sleep(seconds)
        yield k * 0.05, np.zeros((1, 1, 3), np.uint8)


def test_a_slow_model_delays_or_drops_frames_and_the_reader_never_runs_far_ahead():
    counted, taken = count(), []

    def source():
        for item in slow(20):
            next(counted)
            yield item

    ahead = Ahead(source(), 4)
    time.sleep(0.2)
    assert next(counted) <= 6  # four wait, one is in the reader's hand
    assert [number for number, *_ in ahead] == list(range(20)) and ahead.dropped == 0
    ahead = Ahead(slow(20), 2, speed=1.0, late="delay")
    for number, _, due in ahead:
        taken.append(number)
        time.sleep(0.08)
    assert taken == list(range(20)) and ahead.dropped == 0 and ahead.behind > 0.3
    ahead, taken = Ahead(slow(20), 2, speed=1.0, late="drop"), []
    for number, _, due in ahead:
        taken.append(number)
        time.sleep(0.15)
    assert ahead.dropped == 20 - len(taken) > 3 and taken == sorted(taken) and taken[-1] == 19
    assert ahead.behind < 1.0


def test_in_real_time_a_frame_is_due_when_its_interval_is_over():
    """Its turn's time is (frames consumed) * interval: no reply may come before that moment, and latency counts from it."""
    begun, dues = time.perf_counter(), []
    for number, _, due in Ahead(slow(6), 9, speed=0.5, interval=0.05):
        assert time.perf_counter() - begun >= (number + 1) * 0.1
        dues.append(due)
    assert np.allclose(np.diff(dues), 0.1) and dues[0] >= begun + 0.1
    begun, ahead = time.perf_counter(), Ahead(slow(6), 9, speed=1.0, interval=0.05)
    for one in watching.watch(Parrot(["NO REPLY"] * 3), ahead, [(0.0, FIRST)], 0.05, 2, 5):
        assert time.perf_counter() - one["latency_s"] >= begun + one["time"] - 1e-3


def test_what_the_reader_raises_is_raised_to_who_takes_the_frames():
    def broken():
        yield 0.0, np.zeros((1, 1, 3), np.uint8)
        raise UserError("cut short")

    ahead = Ahead(broken(), 4)
    taken = iter(ahead)
    assert next(taken)[0] == 0
    with pytest.raises(UserError, match="cut short"):
        next(taken)


def test_a_closed_reader_ends():
    ahead = Ahead(slow(10**6), 2, speed=0.01)
    assert next(iter(ahead))[0] == 0
    before = threading.active_count()
    ahead.close()
    time.sleep(0.3)
    assert threading.active_count() < before


def test_ctrl_c_keeps_what_was_said(folder, film):
    command = [sys.executable, "-m", "mmduet2kit", "watch", film, "--question", FIRST, "--model", folder, "--speed", "1",
               "--frames-per-turn", "2"]  # fmt: skip
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1"},
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    first = json.loads(process.stdout.readline())  # in real time it comes while the video plays
    process.send_signal(signal.SIGINT)
    rest, told = process.communicate(timeout=30)
    assert process.returncode == 130 and first["text"] and "Traceback" not in told
    assert "turns" in told.splitlines()[-1] and all(json.loads(line) for line in rest.splitlines())


def test_silence_is_the_exact_words_and_a_long_stream_forgets(folder, film, capsys):
    assert main(["watch", str(film), "--question", FIRST, "--model", str(folder), "--context", "260", "--max-new-tokens", "12"]) == 0
    _, told = lines(capsys)
    assert " 0 old frames forgotten" not in told

    parrot = Parrot(["NO REPLY", " NO REPLY", "NO REPLYING yet."])
    seen = [(k, np.zeros((1, 1, 3), np.uint8), time.perf_counter()) for k in range(3)]
    said = [one["text"] for one in watching.watch(parrot, seen, [(0.0, FIRST)], 1.0, 1, 5)]
    assert said == ["NO REPLY", "NO REPLY", "NO REPLYING yet."]


def test_questions_are_asked_as_they_were_given_and_those_behind_the_end_are_named(folder, film, capsys, monkeypatch):
    parrot, questions = Parrot(["NO REPLY"] * 3), [(2.0, "b"), (0.0, "Why?"), (0.0, "And?"), (2.0, "a"), (9.0, "Late?")]
    seen = [(k, np.zeros((1, 1, 3), np.uint8), time.perf_counter()) for k in range(3)]
    assert len(list(watching.watch(parrot, seen, questions, 1.0, 1, 5))) == 3
    assert parrot.asked == ["Why?", "And?", "b", "a"] and questions == [(9.0, "Late?")]
    given, original = [], watching.watch
    monkeypatch.setattr(watching, "watch", lambda stream, seen, asked, *more: given.extend(asked) or original(stream, seen, asked, *more))
    assert main(["watch", str(film), "--question", SECOND, "--ask", f"0:{FIRST}", "--ask", "99:Late?", "--model", str(folder)]) == 0
    assert given == [(0.0, SECOND), (0.0, FIRST), (99.0, "Late?")]
    assert "; never asked: 'Late?' (99 s)" in lines(capsys)[1].splitlines()[-1]


def test_the_newest_rl_checkpoint_is_the_default(tmp_path):
    with pytest.raises(UserError, match="no RL checkpoint"):
        newest_model(tmp_path)
    for age, name in ((20, "tiny/models/rl-seed1"), (10, "study/models/rl-seed2"), (0, "tiny/models/rl-seed3.partial"), (0, "a/models/sft-seed1")):
        place = tmp_path / name
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
        os.utime(place / "config.json", (time.time() - age,) * 2)
    assert newest_model(tmp_path) == tmp_path / "study/models/rl-seed2"


@pytest.mark.parametrize("text", ["soon:What?", "-1:What?", "nan:What?", "3", "3:  "])
def test_questions_that_cannot_be_asked(text):
    with pytest.raises(UserError, match="--ask"):
        question_at(text)
    assert question_at("12.5: Who: he?") == (12.5, "Who: he?")


@pytest.mark.parametrize("more, says", [
    ([], "nothing is asked"), (["--question", "  "], "nothing is asked"), (["--question", "Q", "--queue", "0"], "--queue"),
    *((["--question", "Q", "--speed", speed], ": --speed must be") for speed in ("-1", "nan", "inf", "1000000", "1e-300")),
    (["--question", "Q", "--context", "0"], "--context"), (["--question", "Q", "--max-new-tokens", "0"], "--max-new-tokens"),
    (["--question", "Q", "--late", "drop"], "--late drop needs --speed"),
    (["--question", "Q", "--context", "60"], "does not fit a context of 60"),
    (["--question", "Q", "--context", "100"], "for its reply does not fit a context of 100: raise --context, or lower --max-new-tokens"),
    (["--question", "Q", "--max-new-tokens", "9000"], "for its reply does not fit a context of 8192: raise --context, or lower --max-new"),
    (["--question", "Q", "--graphs", "--context", str(10**14)], "not enough memory: lower --context"),
    (["--question", "Q", "--graphs", "--context", str(10**30)], "--context"),
    (["--question", "Q", "--model", "nowhere"], "nowhere")])  # fmt: skip
def test_bad_input_is_one_sentence(folder, film, capsys, more, says):
    model = [] if "--model" in more else ["--model", str(folder)]
    assert main(["watch", str(film), *more, *model]) == 2
    told = capsys.readouterr().err
    assert says in told and "Traceback" not in told


def test_without_an_output_there_is_nothing_to_watch_for(folder, film, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["watch", str(film), "--question", FIRST, "--model", str(folder)]) == 2
    assert "standard output is closed" in capsys.readouterr().err


def test_help_says_what_can_be_typed(capsys):
    with pytest.raises(SystemExit):
        main(["watch", "--help"])
    assert "questions typed in the terminal" in " ".join(capsys.readouterr().out.split())


def test_a_video_that_is_none(folder, tmp_path, capsys):
    (tmp_path / "x.mp4").write_bytes(b"no video" * 100)
    for video, says in (("missing.mp4", "does not exist"), (str(tmp_path), "is a folder"), ("http://127.0.0.1:1/x", "check the address"), (str(tmp_path / "x.mp4"), "cannot be read as a video")):
        assert main(["watch", video, "--question", "Q", "--model", str(folder)]) == 2
        assert says in capsys.readouterr().err
