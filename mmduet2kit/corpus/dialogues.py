"""Proactive dialogues from scenes and answer lists (paper section 3, step 3), RL segments, offline samples, benchmark records."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..dialogue import DEFAULT_SYSTEM, NO_REPLY, Dialogue, Gold, Segment, Turn, user_turns
from ..profile import Profile
from .questions import OFFLINE, answers, draw_questions, offline_answer, summary

IMMEDIATE = 0.2  # half the width of an immediate answer's span, s (spans under 0.5 s are immediate: upstream evaluator)


def frame_count(duration: float, interval: float) -> int:
    """Frames of a video: frame k (from 1) exists while (k - 1) * interval < duration."""
    return math.ceil(duration / interval - 1e-9)


def questions_of(record: dict, rng: np.random.Generator, count: int) -> list[tuple[str, list[str]]]:
    """`count` questions of an annotated video with one answer (or NO REPLY) a scene: its own, else by the world's templates."""
    if "questions" in record:
        own = record["questions"]
        return [(own[k]["question"], own[k]["answers"]) for k in rng.permutation(len(own))[:count]]
    captions = [scene["caption"] for scene in record["scenes"]]
    return [(question, answers(kind, captions)) for kind, question in draw_questions(rng, captions, count)]


def build_dialogue(profile: Profile, record: dict, rng: np.random.Generator, interval: float,
                   summarise: Callable[[str, list[str]], str | None] = lambda question, earlier: summary(earlier)) -> Dialogue:  # fmt: skip
    """One training dialogue about one annotated video, 1QnA or nQnA, answers at the ends of their spans.

    `summarise(question, earlier answers)` words the immediate answer to a question that is asked later on (nQnA); None: none.
    """
    spec, scenes = profile.dialogue, record["scenes"]
    picked = questions_of(record, rng, int(rng.integers(*spec.questions, endpoint=True)))
    many = len(picked) > 1 and rng.random() < spec.nqna_share
    text_only = not many and rng.random() < spec.text_question_share
    per_turn = 1 if rng.random() < spec.single_frame_share else profile.video.train_frames_per_turn
    asked = [(0.0, picked[0][0])]
    step = per_turn * interval
    if many:
        for number in range(1, len(picked)):
            share = (number + rng.uniform(-0.25, 0.25)) / len(picked)
            asked.append((step * round(share * record["duration"] / step), picked[number][0]))
    count = frame_count(record["duration"], interval)
    turns = user_turns(count, per_turn, interval, asked, text_only)
    gold: list[Gold] = []
    for number, (time, question) in enumerate(asked):
        until = asked[number + 1][0] if number + 1 < len(asked) else math.inf
        earlier = [a for a, s in zip(picked[number][1], scenes) if a != NO_REPLY and s["end"] <= time]
        if number and earlier and (said := summarise(question, earlier)):
            gold.append(Gold(time - IMMEDIATE, time + IMMEDIATE, said, question))
        gold += [
            Gold(max(s["start"], time), s["end"], answer, question)
            for answer, s in zip(picked[number][1], scenes)
            if answer != NO_REPLY and time < s["end"] <= until
        ]
    moments = [k * step for k in range(1, -(-count // per_turn))] + [count * interval]
    gold = [g for g in gold if any(g.start < t < g.end for t in moments)]  # no turn falls into the others
    dialogue = Dialogue(
        f"{record['name']}-{'nQnA' if many else '1QnA'}",
        record["video"], interval, tuple(turns), tuple(gold), record["domain"], "nQnA" if many else "1QnA",
    )  # fmt: skip
    return place_answers(dialogue)


def place_answers(dialogue: Dialogue) -> Dialogue:
    """Put each gold answer at the end of its span (paper section 4.2): the last turn whose time lies within it."""
    times = dialogue.times()
    replies: list[str | None] = [NO_REPLY if turn.frames else None for turn in dialogue.turns]
    for gold in dialogue.gold:
        inside = [k for k, t in enumerate(times) if dialogue.turns[k].frames and gold.start < t <= gold.end]
        free = [k for k in inside if replies[k] == NO_REPLY]
        if free:
            replies[free[-1]] = gold.text
    return dialogue.with_replies(replies)


def build_segments(profile: Profile, dialogue: Dialogue, rng: np.random.Generator, count: int) -> list[Segment]:
    """Up to `count` RL segments of a dialogue, each starting at a gold span's start (paper section 4.3.3; contract)."""
    times, segments = dialogue.times(), []
    least, most = profile.rl.turns(dialogue.interval * max(len(turn.frames) for turn in dialogue.turns))
    order = rng.permutation(len(dialogue.gold))
    for number in order[:count]:
        start = dialogue.gold[number].start
        first = next(k for k, t in enumerate(times) if t > start and dialogue.turns[k].frames)
        length = int(rng.integers(least, most, endpoint=True))
        last = min(first + length, len(times))
        # A span cut by the segment's end is clipped one turn after the last, so that the last reply still counts inside.
        end = times[last - 1] + len(dialogue.turns[last - 1].frames) * dialogue.interval
        inside = [t for k, t in enumerate(times) if first <= k < last]
        gold = [replace(g, end=min(g.end, end)) for g in dialogue.gold if g.start >= start and any(g.start < t < min(g.end, end) for t in inside)]
        if gold and last - first >= least:
            segments.append(Segment(dialogue, first, last, tuple(gold)))
    return segments


def offline_dialogue(record: dict, rng: np.random.Generator, interval: float, frames: tuple[int, int]) -> Dialogue:
    """One offline question about a stretch of one scene's latter half, or of a pause: Qwen's default system prompt."""
    scenes = record["scenes"]
    count = int(rng.integers(*frames, endpoint=True))
    task = str(rng.choice(list(OFFLINE), p=[0.5, 0.15, 0.35]))
    caption, indices = None, ()
    if rng.random() < 0.15:
        indices = _pause(record, rng, interval)
    if indices:
        task = "caption"
    else:
        scene = scenes[int(rng.integers(len(scenes)))]
        caption = scene["caption"]
        first = math.ceil((0.4 * scene["start"] + 0.6 * scene["end"]) / interval)
        last = max(math.ceil(scene["end"] / interval) - 1, first)
        at = int(rng.integers(first, max(last - count + 1, first), endpoint=True))
        indices = tuple(range(at, min(at + count, last + 1)))
    turn = Turn(indices, OFFLINE[task], offline_answer(task, caption))
    return Dialogue(f"{record['name']}-offline-{task}", record["video"], interval, (turn,), (), record["domain"], f"offline-{task}", DEFAULT_SYSTEM)


def _pause(record: dict, rng: np.random.Generator, interval: float) -> tuple[int, ...]:
    """Some frame in which no scene is under way, if there is one."""
    quiet = [k for k in range(frame_count(record["duration"], interval)) if not any(s["start"] <= k * interval < s["end"] for s in record["scenes"])]
    return (int(rng.choice(quiet)),) if quiet else ()


def benchmark_record(record: dict, rng: np.random.Generator, kinds: tuple[str, ...]) -> dict:
    """A record in ProactiveVideoQA's schema: one question at time 0, subtitles as user items, one answer a scene."""
    captions = [scene["caption"] for scene in record["scenes"]]
    for _ in range(64):  # a video without a single answer takes what comes
        if "questions" in record:
            (question, given), kind = questions_of(record, rng, 1)[0], "Q"
            break
        kind, question = draw_questions(rng, captions, 1)[0]
        given = answers(kind, captions)
        single = sum(answer != NO_REPLY for answer in given) == 1
        if "any" in kinds or kind in kinds or ("single" in kinds and single):
            break
    conversation = [{"role": "user", "content": question, "time": 0.0}]
    conversation += [{"role": "user", "content": s["text"], "time": s["time"]} for s in record["subtitles"]]
    spans = [([s["start"], s["end"]], [s["start"], min(round(s["end"] + 1.0, 2), record["duration"])]) for s in record["scenes"]]
    answer = [{"role": "assistant", "content": text, "related_timespan": related, "reply_timespan": reply}
              for text, (related, reply) in zip(given, spans) if text != NO_REPLY]  # fmt: skip
    return {"video": record["video"], "question_id": f"{record['name']}={kind}", "domain": record["domain"],
            "duration": record["duration"], "conversation": conversation, "answer": answer}  # fmt: skip


def from_benchmark(record: dict, interval: float, per_turn: int) -> Dialogue:
    """A benchmark record as a dialogue to be watched: questions and subtitles are text-only turns at their own times."""
    texts = [(item["time"], item["content"]) for item in record["conversation"]]
    turns = user_turns(frame_count(record["duration"], interval), per_turn, interval, texts, text_only=True)
    question = record["conversation"][0]["content"]
    gold = tuple(Gold(*a["reply_timespan"], a["content"], question, a["related_timespan"][1]) for a in record["answer"])
    return Dialogue(record["question_id"], record["video"], interval, tuple(turns), gold, record.get("domain", ""), "benchmark")
