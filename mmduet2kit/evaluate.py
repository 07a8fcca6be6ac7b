"""Proactive evaluation by the push protocol, StreamingBench's poll beside it (protocols.py), and the offline check.

An evaluation is cut into batches, whose outcomes are kept under results/eval/pieces: killed, it goes on; shards of it on several
GPUs or machines, in any order, give the same result as one process.
"""

import shutil
import time
from collections import Counter
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
from .engines import Session, StreamEngine, VLLMEngine
from .errors import UserError
from .files import read_json, sha256_file, write_csv, write_json, write_jsonl
from .model import checkpoint, encoder_for, load
from .profile import Profile, add_profile_arguments, load_profile, positive, share
from .progress import lines, run_commands
from .protocols import Pieces, official, poll, push
from .score import judge_of, score_question, totals
from .score.streamingbench import all_rules
from .stream import Greedy
from .train.common import HEAD


@dataclass
class Watched:
    """What a model said about one record: replies [(seconds, text)] without silence, and the number of decisions."""

    record: dict
    replies: list[tuple[float, str]]
    decisions: int


class Evaluator:
    """Runs one model over a dataset's records; `head` and `threshold` make it a threshold model."""

    def __init__(self, profile: Profile, dataset: Dataset, model, processor, head=None, threshold: float = 0.5, engine=None):
        self.profile, self.dataset, self.model, self.processor = profile, dataset, model, processor
        self.head, self.threshold = head, threshold
        self.engine = engine or StreamEngine(model, getattr(processor, "image_processor", None))
        self.judge = judge_of(profile)

    def dialogue(self, record: dict, interval: float) -> Dialogue:
        return push(record, interval, self.profile.video.test_frames_per_turn[record["domain"]])

    def poll(self, records: Sequence[dict], interval: float) -> list[Watched]:
        """StreamingBench's own protocol (protocols.py): the answer of the first poll that said yes; `decisions` are polls."""
        ask = lambda dialogues: [said for (said,) in self._play(dialogues, self.profile.evaluate.batch)]  # noqa: E731
        return [Watched(record, *found) for record, found in zip(records, poll(records, interval, ask))]

    def watch(self, records: Sequence[dict], interval: float, batch: int | None = None, thresholds=None) -> list[Watched]:
        """Play every record to the model, greedy; `thresholds` (one a record) overrides the model's own."""
        dialogues, out = [self.dialogue(record, interval) for record in records], []
        thresholds = thresholds or [self.threshold] * len(records)
        texts = self._play(dialogues, batch or self.profile.evaluate.batch, self.head, thresholds)
        for record, dialogue, said in zip(records, dialogues, texts, strict=True):
            times = [t for t, turn in zip(dialogue.times(), dialogue.turns) if turn.frames]
            replies = [(t, text.strip()) for t, text in zip(times, said) if text.strip() != NO_REPLY]
            out.append(Watched(record, replies, len(times)))
        return out

    def _play(self, dialogues: Sequence[Dialogue], batch: int, head=None, thresholds=()) -> list[list[str]]:
        """What the model says at each turn with frames of every dialogue; those of like length side by side."""
        out: list[list[str]] = [[] for _ in dialogues]
        order = sorted(range(len(dialogues)), key=lambda i: -len(dialogues[i].turns))
        for at in range(0, len(order), batch):
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
                out[i] = [one.text for one in spoken]
        return out

    def records(self, split: str, domain: str, most: int | None = None) -> list[dict]:
        return [r for r in self.dataset.benchmark(split) if r["domain"] == domain][:most]

    def score(self, watched: Sequence[Watched], onsets: dict | None = None) -> list[dict]:
        """One row a record with the sums of per_video.csv; latency only where `onsets` are given."""
        with ThreadPoolExecutor(self.judge.parallel) as pool:
            rows = list(pool.map(lambda w: self._row(w, onsets), watched))
        counts = getattr(self.judge.judge, "counts", Counter())
        if counts["asked"] and counts["asked"] == counts["failed"] and not counts["from_cache"]:
            raise UserError(f"the judge gave no answer to any of {counts['asked']} questions: see that it is up, and start again; predictions are kept.")
        return rows

    def _row(self, watched: Watched, onsets: dict | None) -> dict:
        record = watched.record
        asked = [(c["time"], c["content"]) for c in record["conversation"]]
        gold = [(*a["reply_timespan"], a["content"], a["related_timespan"][1]) for a in record["answer"] if not official(record)]
        sums = totals(score_question(gold, watched.replies, self.judge, "evaluator", questions=asked))
        row = {"question_id": record["question_id"], "decisions": watched.decisions}
        row |= {key: sums[key] for key in ("spans", "pauc_sum", "dup_spans", "dup_sum", "multi_spans")}
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
            same = facts(said) == facts(gold) if facts(gold) else said.strip() == gold
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
        head.load_state_dict(torch.load(folder / HEAD, weights_only=True))
    except (OSError, RuntimeError, ValueError, UnpicklingError) as error:
        raise UserError(f"{folder / HEAD} is no threshold model's head ({str(error).splitlines()[0]}): train it anew.") from None
    return head


def choose_threshold(evaluator: Evaluator, out: Path, seed: int) -> float:
    """Best PAUC on development videos over a grid of thresholds; the whole sweep goes to `out` (threshold_sweep.csv)."""
    grid = [float(x) for x in np.linspace(0, 1, evaluator.profile.evaluate.thresholds + 2)[1:-1]]
    rows, sums = [], {threshold: np.zeros(2) for threshold in grid}
    watched = {domain: evaluator.records("dev", domain, evaluator.profile.evaluate.dev_videos) for domain in ("WEB", "EGO")}
    if not any(watched.values()):
        raise UserError(f"{evaluator.dataset.folder} has no development videos, on which the threshold is chosen: join it with training data (mmduet2 data join).")
    for domain, records in ((domain, some) for domain, some in watched.items() if some):
        many = [g for g in grid for _ in records]  # every threshold is one more session of the same batch
        interval = evaluator.profile.video.test_interval
        scored = evaluator.score(evaluator.watch(records * len(grid), interval, 2 * evaluator.profile.evaluate.batch, many))
        for k, g in enumerate(grid):
            mine = scored[k * len(records) : (k + 1) * len(records)]
            found = pooled(mine)
            sums[g] += sum(row["pauc_sum"] for row in mine), found["spans"]
            shown = {key: found[key] for key in ("pauc", "duplicate", "reply_turns")}
            rows.append({"seed": seed, "domain": domain, "threshold": g, **shown})
    best = max(grid, key=lambda g: sums[g][0] / sums[g][1])
    write_csv(out, [row | {"chosen": int(row["threshold"] == best)} for row in rows])
    return best


class Part:
    """One domain at one interval by one protocol: its batches of like length, which are the pieces of an evaluation."""

    def __init__(self, evaluator: Evaluator, domain: str, interval: float, polled: bool = False):
        self.evaluator, self.domain, self.interval, self.polled = evaluator, domain, interval, polled
        records = evaluator.records("test", domain)
        self.records = [record for record in records if official(record)] or records
        self.name, size = f"{domain}-{interval:g}s{'-poll' * polled}", evaluator.profile.evaluate.batch
        order = sorted(range(len(self.records)), key=lambda k: -len(evaluator.dialogue(self.records[k], interval).turns))
        self.batches = {f"{self.name}-{at:05d}": order[at : at + size] for at in range(0, len(order), size)}

    def play(self, name: str) -> dict:
        """One batch: what was said, [place of the record, replies, decisions], and what the engine counted."""
        before, some = Counter(self.evaluator.engine.counts), [self.records[k] for k in self.batches[name]]
        watched = (self.evaluator.poll if self.polled else self.evaluator.watch)(some, self.interval)
        counts = {key: many - before[key] for key, many in self.evaluator.engine.counts.items()}
        return {"said": [[k, w.replies, w.decisions] for k, w in zip(self.batches[name], watched)], "counts": counts}

    def watched(self, pieces: Sequence[dict]) -> list[Watched]:
        """All batches' outcomes, in the order of the records."""
        said = sorted(one for piece in pieces for one in piece["said"])
        return [Watched(self.records[k], [(time, text) for time, text in replies], decisions) for k, replies, decisions in said]

    def result(self, watched: Sequence[Watched], onsets: dict | None, tokens: int) -> dict:
        """The domain's rows and figures."""
        profile, rows = self.evaluator.profile, self.evaluator.score(watched, onsets)
        found = pooled(rows, profile.evaluate.reply_every_turn_budget)
        found["quantum_s"] = self.interval * profile.video.test_frames_per_turn[self.domain]
        found["tokens_per_min"] = 60 * tokens / (found["quantum_s"] * sum(w.decisions for w in watched))
        score = f"PAUC {found['pauc']:.1f}" if found["spans"] else "no PAUC"
        print(f"evaluated {self.domain} at {self.interval:g} s: {score}, {found['reply_turns']:.1f} replies", flush=True)
        return {"domain": self.domain, "interval": self.interval, "rows": rows, "pooled": found}


def add_arguments(parser) -> None:
    add_profile_arguments(parser)
    parser.add_argument("--model", default="rl", help="base, sft, threshold, rl, rl-no_rep, sft-1s, ... (default: rl); or any folder or hub name "
                        "with a slash, ./MINE or owner/name[@revision]")
    parser.add_argument("--domains", default="", help="by commas (default: all of the test videos', PO apart)")
    parser.add_argument("--intervals", default="", help="seconds between frames, by commas (default: the profile's)")
    parser.add_argument("--engine", choices=("stream", "vllm"), default="stream", help="who generates (default: stream)")
    parser.add_argument("--extras", default="", help="any of offline,po,speed,ahead by commas (ahead: speed with NO REPLY verified)")
    parser.add_argument("--protocol", choices=("push", "poll"), default="push", help="poll: StreamingBench's own, of its questions alone (default: push)")
    parser.add_argument("--shard", type=share, default="0/1", metavar="I/N", help="this process's part, from 0/N to N-1/N; the last to end puts all together")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="start N shards here, each on a GPU of its own where there are any")


def run(args) -> None:
    """`mmduet2 evaluate`: results/eval/<model>-seed<k>.json and the predictions in the upstream schema beside it."""
    profile, seed = load_profile(args.profile), args.seed
    dataset, (folder, called) = Dataset(profile.data), checkpoint(profile, args.model, args.seed)
    extras, stored = set(filter(None, args.extras.split(","))), min(profile.video.intervals)
    records = dataset.benchmark("test")
    tests = dict.fromkeys(record["domain"] for record in records)
    domains = dict.fromkeys(args.domains.split(",") if args.domains else (name for name in tests if name != "PO"))
    if unknown := (set(domains) - set(tests)) or extras - {"offline", "po", "speed", "ahead"}:
        known = f"domains are {', '.join(sorted(tests))}; extras offline, po, speed, ahead"
        raise UserError(f"There is no {min(unknown)!r} to evaluate: {known}.")
    try:
        intervals = [positive(text) for text in (args.intervals or str(profile.video.test_interval)).split(",")]
        if any(abs(interval / stored - round(interval / stored)) > 1e-6 for interval in intervals):
            raise ValueError
    except ValueError:
        raise UserError(f"--intervals {args.intervals!r}: give multiples of {stored:g} s, by commas.") from None
    asked = any(map(official, records))
    if args.protocol == "poll":
        domains, extras = {}, {"po"}
    elif asked and not domains:
        extras.add("po")
    _check(args, profile, dataset, [record for record in records if record["domain"] in domains], asked, extras)
    if args.parallel > 1:
        return _side_by_side(args)
    model, processor = load(folder, profile.model.dtype, profile.model.attention)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    engine = VLLMEngine(folder, profile.model.dtype) if args.engine == "vllm" else None
    evaluator = Evaluator(profile, dataset, model, processor, engine=engine)
    weights = [dataset.key, *(sha256_file(path) for kind in ("*.safetensors", "*.pt") for path in sorted(folder.glob(kind)))]
    out = {"model": called, "seed": seed, "weights": weights, "proactive": []}
    if args.model == "threshold":
        evaluator.head = load_head(folder, model.config.text_config.hidden_size).to(model.device, model.dtype)
        evaluator.threshold = choose_threshold(evaluator, profile.results / f"threshold_sweep_seed{seed}.csv", seed)
        out["threshold"] = evaluator.threshold
    onsets = load_onsets(dataset.folder) if dataset.has("onsets/test.json") else None  # real videos have none: latency stays empty
    for name, there in (("po", asked or "PO" in tests and onsets), ("offline", dataset.has("offline_test.jsonl"))):
        if name in extras and not there:
            extras.discard(name)
            file = {"po": "onsets/test.json, and no question of StreamingBench", "offline": "offline_test.jsonl"}[name]
            print(f"{name}: NOT RUN, as {dataset.folder} has no {file}.")
    place, name, played = profile.results / "eval", f"{called}-seed{seed}", Counter()
    depends = [weights, sha256_file(dataset.folder / "test.json"), profile.video, profile.model, profile.evaluate, args.engine, out.get("threshold")]
    pieces = Pieces.of(place / "pieces" / name, str(depends), args.shard)
    parts = [Part(evaluator, domain, interval) for interval in intervals for domain in domains]
    if "po" in extras:
        parts.append(Part(evaluator, "PO", profile.video.test_interval, args.protocol == "poll"))

    def finish(part: Part) -> None:
        found = pieces.get(part.batches)
        watched = part.watched(found)
        counts = sum((Counter(piece["counts"]) for piece in found), Counter())
        write_jsonl(place / "predictions" / f"{name}-{part.name}.jsonl", map(to_prediction, watched))
        if "po" in extras and part is parts[-1]:
            out["po_poll" if part.polled else "po"] = rules = evaluator.proactive_output(watched, onsets)
            print(f"evaluated PO by {args.protocol}: " + ", ".join(f"{rule} {value:.3g}" for rule, value in rules.items()), flush=True)
        else:
            out["proactive"].append(part.result(watched, onsets, counts["tokens"]))
        played.update(counts)
        save()

    def save() -> None:
        out["engine"] = {"name": args.engine, **played}
        file = place / f"{name}.json"
        kept = dict(out)
        if file.exists() and (before := read_json(file)).get("weights") == weights:  # what was not measured now stays
            new = {(part["domain"], part["interval"]) for part in out["proactive"]}
            kept["proactive"] = out["proactive"] + [part for part in before["proactive"] if (part["domain"], part["interval"]) not in new]
            kept = before | kept
        write_json(file, kept)

    for part in parts:
        pieces.make(part.batches, part.play, lines(f"evaluated {name}-{part.name}, batches"))
        if args.shard[1] == 1:
            finish(part)
    if "offline" in extras:
        pieces.make(["offline"], lambda _: evaluator.offline("test"), lambda *_: None)
    wanted = [batch for part in parts for batch in part.batches] + ["offline"] * ("offline" in extras)
    if missing := sum(not pieces.file(batch).is_file() for batch in wanted):
        print(f"{len(wanted) - missing} of {len(wanted)} batches are there; the last of the other shards puts all together.")
        return
    for part in parts if args.shard[1] > 1 else ():
        finish(part)
    if "offline" in extras:
        (out["offline"],) = pieces.get(["offline"])
    for extra in ("speed", "ahead"):
        if extra in extras:
            records = evaluator.records("test", "WEB", profile.evaluate.speed_videos)
            out[extra] = evaluator.wall_time(records, profile.video.test_interval, extra == "ahead")
    save()
    for other in pieces.folder.parent.iterdir() if parts else ():  # of other weights or settings
        if other != pieces.folder:
            shutil.rmtree(other, ignore_errors=True)


def _check(args, profile: Profile, dataset: Dataset, records: Sequence[dict], asked: bool, extras: set[str]) -> None:
    """UserError for what cannot be evaluated so."""
    if strange := {record["domain"] for record in records} - set(profile.video.test_frames_per_turn):
        raise UserError(f"How many frames a turn of {min(strange)!r} has is not told: add it to video.test_frames_per_turn of the profile.")
    gold = [answer["content"] for record in records for answer in record["answer"]]
    if gold and profile.judge.name == "exact" and not any(map(facts, gold)):
        raise UserError("The judge exact knows the procedural world's sentences only: set `judge: {name: embedding}` or llm in the profile.")
    if not (records or extras):
        raise UserError(f"{dataset.folder} has no test questions: see its ledger.json for what was left out, and why.")
    if args.protocol == "poll" and not asked:
        raise UserError(f"{dataset.folder} holds no question of StreamingBench, whose protocol poll is: build it from that, or leave --protocol out.")
    if extras & {"speed", "ahead"} and (args.shard[1] > 1 or args.parallel > 1):
        raise UserError("speed is measured by one process that has the machine to itself: leave --shard and --parallel out.")


def _side_by_side(args) -> None:
    """`--parallel N`: the shards as processes of this machine, each on a GPU of its own."""
    given = [f"--{name} {value}" for name in ("seed", "model", "domains", "intervals", "engine", "extras", "protocol") if (value := str(getattr(args, name)))]
    run_commands(args.profile, [[f"evaluate {' '.join(given)} --shard {k}/{args.parallel}"] for k in range(args.parallel)], args.parallel)
