"""What the paper's Table 1 and Figures 1 to 3 show and dataset.json, as results files; notebooks 01 and 02 call this.

It is report code: `figure3` is the one place outside evaluation that opens the onsets.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from mmduet2kit.corpus.build import Dataset, read_index
from mmduet2kit.corpus.films import load_scenes
from mmduet2kit.corpus.world import COLOURS, MOTIONS, SHAPES, sentence
from mmduet2kit.dialogue import NO_REPLY, Dialogue
from mmduet2kit.files import read_json, write_atomic, write_csv, write_json
from mmduet2kit.profile import Profile
from mmduet2kit.protocols import push
from mmduet2kit.score import Judge, MemoJudge, get_judge, judge_of

from dataset import card

SPLITS = ("base", "sft", "rl", "dev", "test")
FRAMES = 24  # of a figure, at most
LOOK_TESTS = 20  # test videos among which one is looked for
LOOK = 2000  # dialogues among which an example is looked for
IMMEDIATE_S = 0.5  # a gold span shorter than this is an immediate answer (upstream evaluator)


def sentences() -> tuple[list[str], list[str]]:
    """(all captions of the world, the same things without their motions): what one can say in it."""
    things = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    captions = [sentence(*thing, motion) for thing in things for motion in MOTIONS]
    return captions, [f"A {colour} {shape}." for colour, shape in things]


def best_blind_score(golds: Sequence[str], candidates: Iterable[str], judge: Judge, max_score: float = 4) -> float:
    """Mean score over `golds` of the best single text among `candidates`: what guessing would earn.

    At max_score 4 it must stay under PAUC's initial 0.5, or a blind answer would look like an early one.
    A judge's None counts as 0. Raises ValueError without golds or candidates.
    """
    candidates = set(candidates)
    if not (golds and candidates):
        raise ValueError("guessing is measured on at least one gold answer and one candidate")
    earned = (sum(judge.correctness("", gold, text, max_score) or 0.0 for gold in golds) for text in candidates)
    return max(earned) / len(golds)


def dataset_json(profile: Profile, dataset: Dataset) -> dict:
    """dataset.json: videos by split and domain, filter ledger, share of NO REPLY, what guessing would earn (of 4); and the world's dataset card.

    What guessing earns is measured in the procedural world alone, where all that can be said is known: elsewhere {}.
    """
    index = read_index(dataset.folder)["videos"]  # video -> cache, named by the file's digest
    scenes = {split: load_scenes(dataset.folder, split) for split in SPLITS if dataset.has(f"scenes/{split}.jsonl")}
    files = [{index[r["video"]] for r in records if r["video"] in index} for records in scenes.values()]
    dialogues = dataset.sft(profile.video.train_interval)
    turns = [turn.reply for d in dialogues for turn in d.turns if turn.reply is not None]
    golds = {
        "training": [g.text for d in dialogues for g in d.gold if g.end - g.start >= IMMEDIATE_S],
        "test": [answer["content"] for record in dataset.benchmark("test") for answer in record["answer"]],
    } if procedural(dataset) else {}  # fmt: skip
    judge, said = MemoJudge(get_judge("exact")), sum(sentences(), [])
    found = {
        "counts": {split: dict(Counter(r["domain"] for r in records)) for split, records in scenes.items()},
        "splits_disjoint": sum(map(len, files)) == len(set().union(*files)),
        "dialogues": {kind: sum(d.kind == kind for d in dialogues) for kind in ("1QnA", "nQnA")},
        "rl_segments": len(dataset.rl(profile.video.train_interval)),
        "ledger": read_json(dataset.folder / "ledger.json"),
        "no_reply_share": round(turns.count(NO_REPLY) / len(turns), 4),
        "best_blind_score": {name: round(best_blind_score(texts, said, judge), 4) for name, texts in golds.items()},
    }
    write_json(profile.results / "dataset.json", found)
    if procedural(dataset):
        card(dataset.folder, None)  # of what somebody built themselves there may be one that they have filled in
    return found


def procedural(dataset: Dataset) -> bool:
    """Whether the kit's own world made it: only that knows when a thing is really seen, and all that can be said."""
    return dataset.has("onsets/test.json")


def table1(profile: Profile, dataset: Dataset, out: Path) -> list[dict]:
    """Table 1 of the training set: videos, mean length, questions and answer turns a video, for the kinds of video that it has."""
    dialogues = dataset.sft(profile.video.train_interval)
    records = [r for split in ("sft", "rl") for r in load_scenes(dataset.folder, split)]
    rows = []
    for name, domain in (("Web Videos", "train_web"), ("Ego Centric", "train_ego")):
        lengths = [r["duration"] for r in records if r["domain"] == domain]
        gold = [d.gold for d in dialogues if d.domain == domain]
        if lengths and gold:
            questions = float(np.mean([len({g.question for g in one}) for one in gold]))
            rows.append({
                "type": name, "videos": len(lengths), "video_length_s": round(float(np.mean(lengths)), 1),
                "questions": round(questions, 2), "answer_turns": round(float(np.mean([len(one) for one in gold])), 2),
                "source": f"procedural {domain[6:].upper()}" if procedural(dataset) else str(dataset.folder),
            })  # fmt: skip
    write_csv(out, rows, ["type", "videos", "video_length_s", "questions", "answer_turns", "source"])
    return rows


def _stills(profile: Profile, dataset: Dataset, shown: Dialogue, indices: list[int], name: str) -> list[dict]:
    """Save these frames as results/frames/<name>_<k>.png; [{"time", "image"}]."""
    out = []
    for k, (index, pixels) in enumerate(zip(indices, dataset.frames(shown, indices), strict=True)):
        buffer, image = io.BytesIO(), f"frames/{name}_{k:02d}.png"
        Image.fromarray(pixels).save(buffer, "PNG")
        write_atomic(profile.results / image, buffer.getvalue())
        out.append({"time": index * shown.interval, "image": image})
    return out


def example(dialogues: Sequence[Dialogue], kind: str) -> Dialogue | None:
    """A typical dialogue of a kind among the first LOOK: about four answers, and an immediate one in an nQnA; None where there is none."""
    found = [d for d in islice(dialogues, LOOK) if d.kind == kind]
    immediate = [any(g.end - g.start < IMMEDIATE_S for g in d.gold) for d in found]
    return max(zip(immediate, found), key=lambda p: (p[0], -abs(len(p[1].gold) - 4)), default=(0, None))[1]


def figure1(profile: Profile, dataset: Dataset) -> Path:
    """figure1.json: one dialogue of each kind."""
    types = {}
    for kind in ("1QnA", "nQnA"):
        if d := example(dataset.sft(profile.video.train_interval), kind):
            indices = d.frame_indices()
            spans = [(g, g.end - g.start < IMMEDIATE_S) for g in d.gold]
            types[kind] = {
                "duration": max(d.times()),
                "frames": _stills(profile, dataset, d, indices[:: -(-len(indices) // 10)], f"figure1_{kind}"),
                "questions": [{"time": t, "text": turn.text} for t, turn in zip(d.times(), d.turns) if turn.text],
                "replies": [{"start": g.start, "end": g.end, "text": g.text, "question": g.question}
                            for g, immediate in spans if not immediate],
                "immediate": [{"time": round((g.start + g.end) / 2, 2), "text": g.text} for g, short in spans if short],
            }  # fmt: skip
    return write_json(profile.results / "figure1.json", {"title": "Proactive dialogues", "types": types})


def figure2(profile: Profile, encoder, shown: Dialogue) -> Path:
    """figure2.json: the encoded ids of a dialogue as text, special tokens included, a segment a message."""
    messages = re.split(r"(?=<\|im_start\|>)", encoder.tokenizer.decode(encoder.encode(shown).ids))[1:]
    found = [{"role": re.match(r"<\|im_start\|>(\w+)", text)[1], "text": text} for text in messages]
    return write_json(profile.results / "figure2.json", {"segments": found})


def figure3(profile: Profile, dataset: Dataset) -> Path:
    """figure3.json: of the WEB test videos' scenes the one whose onset is hidden longest; of real videos the first scene, onset null."""
    tests = load_scenes(dataset.folder, "test")
    onsets = read_json(dataset.folder / "onsets" / "test.json") if procedural(dataset) else {}
    records = [r for r in tests if r["domain"] == "WEB" and r["name"] in onsets]
    pairs = [(r, s, o) for r in records for s, o in zip(r["scenes"], onsets[r["name"]], strict=True)]
    first = next(r for r in [*tests, *load_scenes(dataset.folder, "sft")] if r["scenes"])
    key = lambda pair: pair[2] - pair[1]["start"]
    record, scene, onset = max(pairs, key=key, default=(first, first["scenes"][0], None))
    shown = Dialogue(record["name"], record["video"], profile.video.test_interval, ())
    indices = list(range(int(record["duration"] / shown.interval)))
    frames = _stills(profile, dataset, shown, indices[:: -(-len(indices) // FRAMES)], "figure3")
    for frame in frames:
        frame["in_scene"] = scene["start"] <= frame["time"] < scene["end"]
    found = {"frames": frames, "caption": scene["caption"], "span": [scene["start"], scene["end"]], "onset": onset}
    return write_json(profile.results / "figure3.json", found)


def before_after(profile: Profile, dataset: Dataset, said: Mapping[str, Mapping[str, Sequence[tuple[float, str]]]],
                 onsets: Mapping[tuple[str, float], float]) -> Path | None:  # fmt: skip
    """before_after.json: what models ({name: {question: [(s, text)]}}) said of one test video; None without test videos.

    Not chosen by what they said: of the first LOOK_TESTS of WEB (else of the first domain) the one with the most gold spans.
    A reply is right when the profile's judge gives it the full score for a span that it lies in. onsets: evaluate.load_onsets's, or {}.
    """
    tests = dataset.benchmark("test")
    domain = next((r["domain"] for r in tests if r["domain"] == "WEB"), tests[0]["domain"] if tests else "")
    record = max([r for r in tests if r["domain"] == domain][:LOOK_TESTS], key=lambda r: len(r["answer"]), default=None)
    if record is None:
        return None
    every = profile.video.test_interval
    shown, judge = push(record, every, profile.video.test_frames_per_turn.get(domain, 1)), judge_of(profile)
    gold = [{"start": g.start, "end": g.end, "text": g.text, "onset": onsets.get((record["video"], g.start))} for g in shown.gold]

    def right(time: float, text: str, one: dict) -> bool:
        return one["start"] <= time <= one["end"] and judge.correctness(record["conversation"][0]["content"], one["text"], text, 4) == 4

    models = {}
    for name, heard in said.items():
        replies = [{"time": t, "text": text, "right": any(right(t, text, one) for one in gold)} for t, text in heard.get(record["question_id"], ())]
        first = [(one["onset"], next((r["time"] for r in replies if right(r["time"], r["text"], one)), -1)) for one in gold if one["onset"] is not None]
        models[name] = {"replies": replies, "first_right": [pair for pair in first if pair[1] >= pair[0]]}
    indices = shown.frame_indices()
    found = {"question": record["conversation"][0]["content"], "interval": every, "models": models, "gold": gold,
             "decisions": [t for t, turn in zip(shown.times(), shown.turns) if turn.frames],
             "frames": _stills(profile, dataset, shown, indices[:: -(-len(indices) // FRAMES)], "before_after")}  # fmt: skip
    return write_json(profile.results / "before_after.json", found)
