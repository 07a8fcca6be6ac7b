"""What the paper's Figures 1 to 3 show and dataset.json, as results files; notebooks 01 and 02 call this.

It is report code: `figure3` is the one place outside evaluation that opens the onsets.
"""

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from mmduet2kit.corpus.build import Dataset, read_index
from mmduet2kit.corpus.films import load_scenes
from mmduet2kit.corpus.world import COLOURS, MOTIONS, SHAPES, sentence
from mmduet2kit.dialogue import NO_REPLY, Dialogue
from mmduet2kit.files import read_json, write_atomic, write_json
from mmduet2kit.profile import Profile
from mmduet2kit.score import Judge, MemoJudge, get_judge

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
    """dataset.json: videos by split and domain, filter ledger, share of NO REPLY, what guessing would earn (of 4)."""
    index = read_index(dataset.folder)["videos"]  # video -> cache, named by the file's digest
    dialogues = dataset.sft(profile.video.train_interval)
    turns = [turn.reply for d in dialogues for turn in d.turns if turn.reply is not None]
    golds = {
        "training": [g.text for d in dialogues for g in d.gold if g.end - g.start >= IMMEDIATE_S],
        "test": [answer["content"] for record in dataset.benchmark("test") for answer in record["answer"]],
    }
    judge, said = MemoJudge(get_judge("exact")), sum(sentences(), [])
    found = {
        "counts": profile.world.counts,
        "splits_disjoint": len(set(index.values())) == len(index),
        "dialogues": {kind: sum(d.kind == kind for d in dialogues) for kind in ("1QnA", "nQnA")},
        "rl_segments": len(dataset.rl(profile.video.train_interval)),
        "ledger": read_json(dataset.folder / "ledger.json"),
        "no_reply_share": round(turns.count(NO_REPLY) / len(turns), 4),
        "best_blind_score": {name: round(best_blind_score(texts, said, judge), 4) for name, texts in golds.items()},
    }
    write_json(profile.results / "dataset.json", found)
    return found


def _stills(profile: Profile, dataset: Dataset, shown: Dialogue, indices: list[int], name: str) -> list[dict]:
    """Save these frames as results/frames/<name>_<k>.png; [{"time", "image"}]."""
    out = []
    for k, (index, pixels) in enumerate(zip(indices, dataset.frames(shown, indices), strict=True)):
        buffer, image = io.BytesIO(), f"frames/{name}_{k:02d}.png"
        Image.fromarray(pixels).save(buffer, "PNG")
        write_atomic(profile.results / image, buffer.getvalue())
        out.append({"time": index * shown.interval, "image": image})
    return out


def example(dialogues: list[Dialogue], kind: str) -> Dialogue | None:
    """A typical dialogue of a kind: about four answers, and an immediate one in an nQnA; None where there is none."""
    found = [d for d in dialogues if d.kind == kind]
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
    """figure3.json: of the WEB test videos' scenes the one whose onset is hidden longest."""
    onsets = read_json(dataset.folder / "onsets" / "test.json")
    records = [r for r in load_scenes(dataset.folder, "test") if r["domain"] == "WEB"]
    pairs = [(r, s, o) for r in records for s, o in zip(r["scenes"], onsets[r["name"]], strict=True)]
    record, scene, onset = max(pairs, key=lambda pair: pair[2] - pair[1]["start"])
    shown = Dialogue(record["name"], record["video"], profile.video.test_interval, ())
    frames = _stills(profile, dataset, shown, list(range(int(record["duration"] / shown.interval))), "figure3")
    for frame in frames:
        frame["in_scene"] = scene["start"] <= frame["time"] < scene["end"]
    found = {"frames": frames, "caption": scene["caption"], "span": [scene["start"], scene["end"]], "onset": onset}
    return write_json(profile.results / "figure3.json", found)
