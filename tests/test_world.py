"""The procedural world: seeded, honest (design: guessing must not pay, onsets are hidden), and worth learning from."""

import itertools
import statistics

import numpy as np
import pytest
from illustrate import best_blind_score

from mmduet2kit.corpus import dialogues, films, questions, world
from mmduet2kit.corpus.video import frames
from mmduet2kit.dialogue import NO_REPLY, from_rl_row, to_rl_row
from mmduet2kit.files import sha256_file
from mmduet2kit.profile import load_profile
from mmduet2kit.score import ExactJudge

PROFILE = load_profile("tiny")
SENTENCES = [world.sentence(c, s, m) for c in world.COLOURS for s in world.SHAPES for m in world.MOTIONS]


def records(split, domain, count):
    return [films.annotate(world.plan(PROFILE.world, split, domain, i), split) for i in range(count)]


def test_every_caption_states_its_facts_and_is_long_enough_for_prefixes():
    assert len({world.facts(s) for s in SENTENCES}) == len(SENTENCES) == 240
    assert min(map(len, SENTENCES)) > PROFILE.rl.prefix_chars
    assert world.facts(questions.summary(SENTENCES[:1] + SENTENCES[-1:])) == {
        ("red", "circle", None), ("white", "cross", None),
    }  # fmt: skip
    assert world.facts("Nothing shows up. NO REPLY") == frozenset()


def test_guessing_does_not_pay():
    golds = [g.text for r in records("dev", "train_web", 60) for g in
             dialogues.build_dialogue(PROFILE, r, np.random.default_rng(1), 2.0).gold]  # fmt: skip
    judge = ExactJudge(world.facts)
    pairs = [f"{a} {b}" for a, b in itertools.product(SENTENCES[::7], SENTENCES[::11])]
    assert best_blind_score(golds, SENTENCES + pairs, judge, 4) < 0.5


@pytest.mark.parametrize(
    "domain, split, turn",
    [("train_web", "sft", 2.0), ("train_ego", "rl", 2.0), ("WEB", "test", 1.0), ("EGO", "test", 2.0), ("TV", "test", 2.0),
     ("VAD", "test", 2.0)],
)  # fmt: skip
def test_there_is_something_to_gain(domain, split, turn):
    """At least 70 percent of spans: the onset lies two or more decision turns before the span's end.

    Training is measured at its one-frame turns; of its two-frame turns (4 s) a span holds only two to three.
    """
    scenes = [s for i in range(60) for s in world.plan(PROFILE.world, split, domain, i).scenes]
    assert all(s.start <= s.onset < s.end for s in scenes)
    assert np.mean([s.end - s.onset >= 2 * turn for s in scenes]) >= 0.7


def test_web_test_videos_are_shaped_like_the_benchmark():
    made = [world.plan(PROFILE.world, "test", "WEB", i) for i in range(200)]
    assert statistics.mean(v.duration for v in made) == pytest.approx(16.6, abs=0.5)
    assert statistics.median(s.end - s.start for v in made for s in v.scenes) == pytest.approx(4.4, abs=0.3)
    assert any(v.subtitles for v in [world.plan(PROFILE.world, "test", "TV", 0)])
    assert all(len(world.plan(PROFILE.world, "test", "VAD", i).scenes) <= 1 for i in range(20))


def test_many_clips_repeat_their_bytes_in_worker_processes(tmp_path):
    """An encoder's rare slips (libx264's lookahead: one clip in a hundred) show only over many clips."""
    counts = {"base": {"clip": 300}, "sft": {"train_web": 8, "train_ego": 4}}
    profile = PROFILE.model_copy(update={"world": PROFILE.world.model_copy(update={"counts": counts})})
    made = [tmp_path / name for name in "ab"]
    for folder in made:
        films.make_films(profile, folder, 2, lambda done, total: None)
    first, second = ({path.name: sha256_file(path) for path in folder.rglob("*.mp4")} for folder in made)
    assert len(first) == 312 and first == second


def test_same_seed_same_bytes_and_the_onset_is_what_the_picture_shows(tmp_path):
    video = world.plan(PROFILE.world, "test", "WEB", 3)
    for name in "abcdef":
        films.write_video(tmp_path / f"{name}.mp4", world.draw(PROFILE.world, video), PROFILE.world.fps)
    assert len({(tmp_path / f"{name}.mp4").read_bytes() for name in "abcdef"}) == 1
    decoded = list(frames(tmp_path / "a.mp4", 0.25, max_tokens=16))
    assert len(decoded) == video.duration * PROFILE.world.fps
    scene = video.scenes[0]

    def coloured(when):  # how many pixels are far from grey, or as bright as nothing else is
        picture = min(decoded, key=lambda item: abs(item[0] - when))[1].astype(int)
        return int(((np.ptp(picture, axis=2) > 90) | (picture.min(axis=2) > 235)).sum())

    before = max((t for t, _ in decoded if t < scene.onset - 0.25), default=None)
    if before is not None:
        assert coloured(before) < 5
    assert coloured(scene.onset + 1.0) > 50


def test_annotations_and_training_files_never_hold_onsets(tmp_path):
    record = films.annotate(world.plan(PROFILE.world, "sft", "train_web", 0), "sft")
    assert "onset" not in str(record)


def test_answers_stand_at_span_ends_and_questions_switch():
    rng = np.random.default_rng(3)
    kinds = set()
    for record in records("sft", "train_web", 40):
        d = dialogues.build_dialogue(PROFILE, record, rng, 2.0)
        kinds.add(d.kind)
        step = len(d.turns[-1].frames or d.turns[-2].frames) * 2.0
        for time, turn in zip(d.times(), d.turns):
            assert (turn.reply is None) == (not turn.frames)
            if turn.reply in (None, NO_REPLY):
                continue
            (gold,) = [g for g in d.gold if g.text == turn.reply and g.start < time <= g.end]
            assert gold.end - time < 2 * step  # the last turn inside the span, or one earlier if that was taken
        if d.kind == "nQnA":
            first, second = d.turns[0].text, next(t.text for t in d.turns[1:] if t.text)
            switch = next(t for t, turn in zip(d.times(), d.turns) if turn.text == second and turn is not d.turns[0])
            assert all(g.end <= switch for g in d.gold if g.question == first)
            assert all(g.end > switch for g in d.gold if g.question == second)
    assert kinds == {"1QnA", "nQnA"}


def test_segments_start_at_a_gold_span_and_come_back_from_their_rows():
    rng = np.random.default_rng(4)
    for record in records("rl", "train_web", 20):
        d = dialogues.build_dialogue(PROFILE, record, rng, 2.0)
        for segment in dialogues.build_segments(PROFILE, d, rng, 3):
            times = d.times()
            turns = segment.last - segment.first
            assert PROFILE.rl.segment_turns[0] <= turns <= PROFILE.rl.segment_turns[1]
            starts = [g.start for g in segment.gold]
            assert any(times[segment.first] > s and (segment.first == 0 or times[segment.first - 1] <= s) for s in starts)
            for gold in segment.gold:
                assert any(gold.start < t < gold.end for t in segment.rollout_times())
            assert from_rl_row(to_rl_row(segment)) == segment


@pytest.mark.parametrize("interval", [1.0, 2.0])
def test_segments_in_seconds_cover_them_at_every_interval(interval):
    profile, rng, found = PROFILE.model_copy(update={"rl": PROFILE.rl.model_copy(update={"segment_seconds": (12.0, 24.0)})}), np.random.default_rng(6), []
    for record in records("rl", "train_web", 20):
        d = dialogues.build_dialogue(profile, record, rng, interval)
        found += [interval * sum(len(t.frames) for t in d.turns[s.first : s.last]) for s in dialogues.build_segments(profile, d, rng, 3)]
    step = 2 * interval
    assert found and 12 - step <= min(found) < 16 and 20 < max(found) <= 24 + step


def test_benchmark_records_follow_the_schema():
    rng = np.random.default_rng(5)
    for record in records("test", "TV", 10):
        made = dialogues.benchmark_record(record, rng, ("single",))
        assert made["conversation"][0]["time"] == 0
        assert all(c["content"].startswith("Subtitle: ") for c in made["conversation"][1:])
        for answer in made["answer"]:
            assert answer["reply_timespan"][1] <= made["duration"]
            assert answer["reply_timespan"][1] - answer["related_timespan"][1] <= 1.0 + 1e-6
        watched = dialogues.from_benchmark(made, 1.0, 2)
        assert watched.turns[0].text and not watched.turns[0].frames
