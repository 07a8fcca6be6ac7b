"""Proactive evaluation by the push protocol, StreamingBench's poll beside it (protocols.py), and the offline check.

What `mmduet2 evaluate` does with it is in evaluation.py.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch

from .corpus.build import Dataset
from .corpus.films import load_scenes
from .corpus.world import facts
from .dialogue import NO_REPLY, Dialogue
from .engines import Session, StreamEngine
from .errors import UserError
from .files import read_json, write_csv
from .model import encoder_for
from .profile import Profile
from .progress import telling
from .protocols import official, poll, push
from .score import judge_of, score_question, totals
from .score.streamingbench import all_rules
from .stream import Greedy, Spoken
from .train.common import HEAD


@dataclass
class Watched:
    """What a model said about one record: replies [(seconds, text)] without silence, and the number of decisions.

    speaking: (seconds, probability of speaking) of each decision whose probability is known (`Spoken.speaking`).
    """

    record: dict
    replies: list[tuple[float, str]]
    decisions: int
    speaking: Sequence[tuple[float, float]] = ()


class Evaluator:
    """Runs one model over a dataset's records; `head` and `threshold` make it a threshold model."""

    def __init__(self, profile: Profile, dataset: Dataset, model, processor, head=None, threshold: float = 0.5, engine=None):
        self.profile, self.dataset, self.model, self.processor = profile, dataset, model, processor
        self.head, self.threshold = head, threshold
        self.engine = engine or StreamEngine(model, getattr(processor, "image_processor", None), graphs=profile.launch.graphs)
        self.judge = judge_of(profile)

    def dialogue(self, record: dict, interval: float) -> Dialogue:
        return push(record, interval, self.profile.video.test_frames_per_turn[record["domain"]])

    def poll(self, records: Sequence[dict], interval: float) -> list[Watched]:
        """StreamingBench's own protocol (protocols.py): the answer of the first poll that said yes; `decisions` are polls."""
        ask = lambda dialogues: [one.text for (one,) in self._play(dialogues, self.profile.evaluate.batch)]  # noqa: E731
        return [Watched(record, *found) for record, found in zip(records, poll(records, interval, ask))]

    def watch(self, records: Sequence[dict], interval: float, batch: int | None = None, thresholds=None) -> list[Watched]:
        """Play every record to the model, greedy; `thresholds` (one a record) overrides the model's own."""
        dialogues, out = [self.dialogue(record, interval) for record in records], []
        thresholds = thresholds or [self.threshold] * len(records)
        played = self._play(dialogues, batch or self.profile.evaluate.batch, self.head, thresholds)
        for record, dialogue, said in zip(records, dialogues, played, strict=True):
            times = [t for t, turn in zip(dialogue.times(), dialogue.turns) if turn.frames]
            replies = [(t, one.text.strip()) for t, one in zip(times, said) if one.text.strip() != NO_REPLY]
            speaking = [(t, one.speaking) for t, one in zip(times, said) if one.speaking is not None]
            out.append(Watched(record, replies, len(times), speaking))
        return out

    def _play(self, dialogues: Sequence[Dialogue], batch: int, head=None, thresholds=()) -> list[list[Spoken]]:
        """What the model says at each turn with frames of every dialogue; those of like length side by side."""
        out: list[list[Spoken]] = [[] for _ in dialogues]
        order = sorted(range(len(dialogues)), key=lambda i: -len(dialogues[i].turns))
        for at in telling("evaluated, batches", starts := range(0, len(order), batch), len(starts)):
            chosen = order[at : at + batch]
            frames = [self.dataset.frames(dialogues[i]) for i in chosen]
            encoder = encoder_for(self.processor, frames[0], getattr(self.model.config, "chat_form", "turns"))
            sessions = [Session(encoder.system(dialogues[i].system), f, dialogues[i].turns) for i, f in zip(chosen, frames)]
            said = self.engine.play(
                encoder, sessions, Greedy(), self.profile.evaluate.max_new_tokens,
                decide=head and (lambda hidden: head(hidden).squeeze(-1).sigmoid()),
                thresholds=[thresholds[i] for i in chosen] if head else 0.0,
            )  # fmt: skip
            for i, spoken in zip(chosen, said):
                out[i] = spoken
        return out

    def records(self, split: str, domain: str, most: int | None = None) -> list[dict]:
        return [r for r in self.dataset.benchmark(split) if r["domain"] == domain][:most]

    def score(self, watched: Sequence[Watched], onsets: dict | None = None) -> list[dict]:
        """One row a record with the sums of per_video.csv; latency only where `onsets` are given."""
        with ThreadPoolExecutor(self.judge.parallel) as pool:
            return list(telling("evaluated by the judge, questions", pool.map(lambda w: self._row(w, onsets), watched), len(watched)))

    def _row(self, watched: Watched, onsets: dict | None) -> dict:
        record = watched.record
        asked = [(c["time"], c["content"]) for c in record["conversation"]]
        gold = [(*a["reply_timespan"], a["content"], a["related_timespan"][1]) for a in record["answer"] if not official(record)]
        sums = totals(score_question(gold, watched.replies, self.judge, "evaluator", questions=asked))
        row = {"question_id": record["question_id"], "decisions": watched.decisions} | {k: sums[k] for k in ("spans", "pauc_sum", "dup_spans", "dup_sum", "multi_spans")}
        row |= {"reply_turns": len(watched.replies), "correct": 0, "lucky": 0, "latency_sum": 0.0, "latency_n": 0}
        for start, end, text, _ in gold if onsets is not None else []:
            right = [t for t, said in watched.replies if start <= t <= end and self.judge.correctness("", text, said, 4) == 4]
            if right:
                late = right[0] - onsets[record["video"], start]
                row["correct"] += 1
                row["lucky"] += late < 0
                row["latency_sum"] += max(late, 0.0)
                row["latency_n"] += late >= 0
        return row

    def offline(self, split: str) -> dict[str, tuple[float, int]]:
        """Offline questions under Qwen's default prompt: {task: (accuracy, n)}; right means the gold's facts, exactly."""
        dialogues = self.dataset.offline(split)
        right: dict[str, list[bool]] = {"caption": [], "attribute_qa": []}
        for dialogue, (said,) in zip(dialogues, self._play(dialogues, 128), strict=True):
            gold = dialogue.turns[0].reply
            same = facts(said.text) == facts(gold) if facts(gold) else said.text.strip() == gold
            right["caption" if dialogue.kind == "offline-caption" else "attribute_qa"].append(same)
        return {task: (float(np.mean(hits)), len(hits)) for task, hits in right.items() if hits}

    def proactive_output(self, watched: Sequence[Watched], onsets: dict | None) -> dict[str, float]:
        """Table 5: StreamingBench's rules. Procedural PO videos stand in for its own: the moment that it annotates is their onset."""
        items = []
        for w in watched:
            (start, end), gold = w.record["answer"][0]["reply_timespan"], w.record["answer"][0]["content"]
            if official(w.record):
                asked, moment, output = (w.record[key] for key in ("time_stamp", "ground_truth_time_stamp", "ground_truth_output"))
            else:
                ((colour, shape, _),) = facts(gold)
                asked, moment, output = 0.0, onsets[w.record["video"], start], f"{colour} {shape}"
            items.append((asked, (start + end) / 2, moment, output, w.replies))
        return all_rules(items, self.profile.evaluate.po_window)

    def wall_time(self, records: Sequence[dict], interval: float, ahead: bool = False) -> dict:
        """Table 3: seconds for these videos one after another, plain generation at every decision (or silence verified `ahead`)."""
        plain = Evaluator(self.profile, self.dataset, self.model, self.processor, self.head, self.threshold,
                          StreamEngine(self.model, self.processor.image_processor, ahead=ahead))  # fmt: skip
        plain.watch(records[:1], interval, batch=1)  # warm-up
        started = time.perf_counter()
        watched = plain.watch(records, interval, batch=1)
        seconds = time.perf_counter() - started
        counts, decisions = [len(w.replies) for w in watched], sum(w.decisions for w in watched)
        means = {"reply_turns": float(np.mean(counts)), "reply_turns_std": float(np.std(counts))}
        return means | {"wall_s": seconds, "videos": len(watched), "decisions": decisions}


def load_onsets(folder: Path, split: str = "test") -> dict[tuple[str, float], float]:
    """The hidden onsets, {(video, scene start): onset}; only evaluation and report may open this file (design)."""
    onsets = read_json(folder / "onsets" / f"{split}.json")
    return {
        (record["video"], scene["start"]): onset
        for record in load_scenes(folder, split)
        for scene, onset in zip(record["scenes"], onsets[record["name"]], strict=True)
    }


def pooled(rows: Sequence[dict], budget: float = 1.0) -> dict:
    """A domain's figures from its per-video rows: 100 x PAUC, 100 x duplicate proportion, reply turns, latency, status.

    FAIL (Table 6): the model replied at more than `budget` of all decisions.
    """
    total = {key: sum(float(row[key]) for row in rows) for key in rows[0] if key != "question_id"}
    return {
        "pauc": 100 * total["pauc_sum"] / total["spans"] if total["spans"] else "",
        "duplicate": 100 * total["dup_sum"] / total["dup_spans"] if total["dup_spans"] else 0.0,
        "reply_turns": total["reply_turns"] / len(rows),
        "latency_s": total["latency_sum"] / total["latency_n"] if total["latency_n"] else "",
        "lucky_share": total["lucky"] / total["correct"] if total["correct"] else "",
        **{key: int(total[key]) for key in ("correct", "spans", "multi_spans")},
        "status": "FAIL" if total["reply_turns"] > budget * total["decisions"] else "ok",
    }


def to_prediction(watched: Watched) -> dict:
    """One line of the upstream output schema (inference): replies, and the user turns that had text."""
    said = [{"role": "user", "content": c["content"], "time": c["time"]} for c in watched.record["conversation"]]
    said += [{"role": "assistant", "content": text, "time": t} for t, text in watched.replies]
    said.sort(key=lambda item: item["time"])
    return {"question_id": watched.record["question_id"], "model_response_list": said, "drop_ratio_list": []}


def load_head(folder: Path, hidden: int) -> torch.nn.Linear:
    """The threshold model's head."""
    head = torch.nn.Linear(hidden, 1)
    try:
        head.load_state_dict(torch.load(folder / HEAD, "cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, UnpicklingError) as error:
        raise UserError(f"{folder / HEAD} is no threshold model's head ({str(error).splitlines()[0]}): train it anew.") from None
    return head


def choose_threshold(evaluator: Evaluator, out: Path, seed: int) -> float:
    """Best PAUC on development videos over a grid of thresholds; the whole sweep goes to `out` (threshold_sweep.csv)."""
    grid = [float(x) for x in np.linspace(0, 1, evaluator.profile.evaluate.thresholds + 2)[1:-1]]
    rows, sums = [], {threshold: np.zeros(2) for threshold in grid}
    watched = {domain: evaluator.records("dev", domain, evaluator.profile.evaluate.dev_videos) for domain in evaluator.dataset.domains("dev")}
    if not watched:
        raise UserError(f"{evaluator.dataset.folder} has no development videos, on which the threshold is chosen: join it with training data (mmduet2 data join).")
    for domain, records in watched.items():
        many = [g for g in grid for _ in records]  # every threshold is one more session of the same batch
        scored = evaluator.score(evaluator.watch(records * len(grid), evaluator.profile.video.test_interval, 2 * evaluator.profile.evaluate.batch, many))
        for k, g in enumerate(grid):
            mine = scored[k * len(records) : (k + 1) * len(records)]
            found = pooled(mine)
            sums[g] += sum(row["pauc_sum"] for row in mine), found["spans"]
            rows.append({"seed": seed, "domain": domain, "threshold": g} | {key: found[key] for key in ("pauc", "duplicate", "reply_turns")})
    evaluator.judge.settle()
    best = max(grid, key=lambda g: sums[g][0] / sums[g][1])
    write_csv(out, [row | {"chosen": int(row["threshold"] == best)} for row in rows])
    return best
