"""`mmduet2 evaluate`: which videos, in which pieces, by which protocol, and the results file.

An evaluation is cut into batches, whose outcomes are kept under results/eval/pieces: killed, it goes on; shards of it on several
GPUs or machines, in any order, give the same result as one process.
"""

import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .corpus.build import Dataset
from .engines import VLLMEngine
from .errors import UserError
from .evaluate import Evaluator, Watched, choose_threshold, load_head, load_onsets, pooled, to_prediction
from .files import read_json, sha256_file, write_json, write_jsonl
from .model import checkpoint, load_to_play
from .profile import Profile, add_profile_arguments, load_profile, positive, share
from .progress import lines, run_commands
from .protocols import Pieces, official
from .score import of_the_world

EXTRAS = {"offline", "po", "speed", "ahead"}


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
        self.evaluator.judge.settle()  # not in `score`: ranks of a training that test themselves must not end one by one
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
    parser.add_argument("--extras", default="", help="any of offline,po,speed,ahead by commas (ahead: speed with NO REPLY verified; default: none)")
    parser.add_argument("--protocol", choices=("push", "poll"), default="push", help="poll: StreamingBench's own, of its questions alone (default: push)")
    parser.add_argument("--shard", type=share, default="0/1", metavar="I/N", help="this process's part, from 0/N to N-1/N; the last to end puts all together (default: 0/1)")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="start N shards here, each on a GPU of its own where there are any (default: 1)")


@dataclass
class Wanted:
    """What is to be evaluated: test domains, frame intervals in s, and any of EXTRAS."""

    domains: list[str]
    intervals: list[float]
    extras: set[str]


def wanted(args, profile: Profile, dataset: Dataset) -> Wanted | None:
    """What of it the dataset allows, the rest said to be NOT RUN; None where nothing is left. UserError for what cannot be asked so."""
    extras, stored = set(filter(None, args.extras.split(","))), dataset.interval
    records = dataset.benchmark("test")
    tests = dict.fromkeys(record["domain"] for record in records)
    domains = [*dict.fromkeys(args.domains.split(","))] if args.domains else [name for name in tests if name != "PO"]
    known = {*profile.video.test_frames_per_turn, *tests}
    if unknown := (set(domains) - known) or extras - EXTRAS:
        raise UserError(f"There is no {min(unknown)!r} to evaluate: domains are {', '.join(sorted(known))}; extras offline, po, speed, ahead.")
    try:
        intervals = [positive(text) for text in (args.intervals or str(profile.video.test_interval)).split(",")]
        if any(abs(interval / stored - round(interval / stored)) > 1e-6 for interval in intervals):
            raise ValueError
    except ValueError:
        raise UserError(f"--intervals {args.intervals or profile.video.test_interval}: give multiples of {stored:g} s, by commas, as {dataset.folder} has a frame every {stored:g} s.") from None
    asked = any(map(official, records))
    if args.protocol == "poll":
        if not asked:
            raise UserError(f"{dataset.folder} holds no question of StreamingBench, whose protocol poll is: build it from that, or leave --protocol out.")
        domains, extras = [], {"po"}
    elif asked and not domains:
        extras.add("po")
    lacks = lacking(dataset, args.model, [*tests], domains, asked)
    for name in (name for name in ([args.model] if args.model in lacks else [*domains, *sorted(extras)]) if name in lacks):
        print(f"{name}: NOT RUN, as {dataset.folder} has no {lacks[name]}.")
    if args.model in lacks:
        return None
    domains, extras = [name for name in domains if name not in lacks], extras - lacks.keys()
    if strange := set(domains) - set(profile.video.test_frames_per_turn):
        raise UserError(f"How many frames a turn of {min(strange)!r} has is not told: add it to video.test_frames_per_turn of the profile.")
    for name in domains:
        of_the_world(profile.judge.name, [answer["content"] for record in records if record["domain"] == name for answer in record["answer"]])
    if extras & {"speed", "ahead"} and (args.shard[1] > 1 or args.parallel > 1):
        raise UserError("speed is measured by one process that has the machine to itself: leave --shard and --parallel out.")
    return Wanted(domains, intervals, extras)


def lacking(dataset: Dataset, model: str, tests: Sequence[str], domains: Sequence[str], asked: bool = False) -> dict[str, str]:
    """{what cannot be measured: what a dataset with the test domains `tests` lacks for it}: the model, domains, extras.

    asked: StreamingBench's own questions are among the tests; they bring their own times.
    """
    of = {domain: domain for domain in domains} | {"speed": "WEB", "ahead": "WEB"} | ({} if asked else {"po": "PO"})
    lost = {name: f"test videos of {domain}" for name, domain in of.items() if domain not in tests}
    if not asked and not dataset.has("onsets/test.json"):
        lost["po"] = "onsets/test.json, and no question of StreamingBench"
    if not dataset.has("offline_test.jsonl"):
        lost["offline"] = "offline_test.jsonl"
    if not tests:
        lost[model] = "test questions (its ledger.json says what was left out, and why)"
    elif model == "threshold" and not dataset.domains("dev"):
        lost[model] = "development videos (dev.json) to choose its threshold on"
    return lost


class Evaluation:
    """One model's evaluation: the pieces that this process makes, and the results file once all are there."""

    def __init__(self, args, profile: Profile, dataset: Dataset, want: Wanted):
        self.args, self.profile, self.want = args, profile, want
        folder, called = checkpoint(profile, args.model, args.seed)
        model, processor = load_to_play(profile, folder)
        engine = VLLMEngine(folder, profile.model.dtype) if args.engine == "vllm" else None
        self.evaluator = evaluator = Evaluator(profile, dataset, model, processor, engine=engine)
        weights = [dataset.key, *(sha256_file(path) for kind in ("*.safetensors", "*.pt") for path in sorted(folder.glob(kind)))]
        self.out: dict = {"model": called, "seed": args.seed, "weights": weights, "proactive": []}
        if args.model == "threshold":
            evaluator.head = load_head(folder, model.config.text_config.hidden_size).to(model.device, model.dtype)
            evaluator.threshold = choose_threshold(evaluator, profile.results / f"threshold_sweep_seed{args.seed}.csv", args.seed)
            self.out["threshold"] = evaluator.threshold
        self.onsets = load_onsets(dataset.folder) if dataset.has("onsets/test.json") else None  # real videos have none: latency stays empty
        self.place, self.name, self.played = profile.results / "eval", f"{called}-seed{args.seed}", Counter()
        tests = sha256_file(dataset.folder / "test.json")
        depends = [weights, tests, profile.video, profile.model, profile.evaluate, args.engine, self.out.get("threshold")]
        self.pieces = Pieces.of(self.place / "pieces" / self.name, str(depends), args.shard)
        self.parts = [Part(evaluator, domain, interval) for interval in want.intervals for domain in want.domains]
        self.po = Part(evaluator, "PO", profile.video.test_interval, args.protocol == "poll") if "po" in want.extras else None

    def go(self) -> None:
        """Make this shard's pieces; where all are there then, put the results together."""
        parts, alone = [*self.parts, *([self.po] if self.po else [])], self.args.shard[1] == 1
        for part in parts:
            self.pieces.make(part.batches, part.play, lines(f"evaluated {self.name}-{part.name}, batches"))
            if alone:
                self.finish(part)
        offline = ["offline"] * ("offline" in self.want.extras)
        self.pieces.make(offline, lambda _: self.evaluator.offline("test"), lambda *_: None)
        every = [batch for part in parts for batch in part.batches] + offline
        if missing := sum(not self.pieces.file(batch).is_file() for batch in every):
            print(f"{len(every) - missing} of {len(every)} batches are there; the last of the other shards puts all together.")
            return
        for part in () if alone else parts:
            self.finish(part)
        self.out |= dict(zip(offline, self.pieces.get(offline)))
        for extra in ("speed", "ahead"):
            if extra in self.want.extras:
                records = self.evaluator.records("test", "WEB", self.profile.evaluate.speed_videos)
                self.out[extra] = self.evaluator.wall_time(records, self.profile.video.test_interval, extra == "ahead")
        self.save()
        for other in self.pieces.folder.parent.iterdir() if parts else ():  # of other weights or settings
            if other != self.pieces.folder:
                shutil.rmtree(other, ignore_errors=True)

    def finish(self, part: Part) -> None:
        """A part all of whose pieces are there: its predictions and its figures."""
        found = self.pieces.get(part.batches)
        watched, counts = part.watched(found), sum((Counter(piece["counts"]) for piece in found), Counter())
        write_jsonl(self.place / "predictions" / f"{self.name}-{part.name}.jsonl", map(to_prediction, watched))
        if part is self.po:
            self.out["po_poll" if part.polled else "po"] = rules = self.evaluator.proactive_output(watched, self.onsets)
            print(f"evaluated PO by {self.args.protocol}: " + ", ".join(f"{rule} {value:.3g}" for rule, value in rules.items()), flush=True)
        else:
            self.out["proactive"].append(part.result(watched, self.onsets, counts["tokens"]))
        self.played.update(counts)
        self.save()

    def save(self) -> None:
        """The results file; what was measured of the same weights before, and not now, stays in it."""
        self.out["engine"] = {"name": self.args.engine, **self.played}
        file, kept = self.place / f"{self.name}.json", dict(self.out)
        if file.exists() and (before := read_json(file)).get("weights") == self.out["weights"]:
            new = {(part["domain"], part["interval"]) for part in self.out["proactive"]}
            kept["proactive"] = self.out["proactive"] + [part for part in before["proactive"] if (part["domain"], part["interval"]) not in new]
            kept = before | kept
        write_json(file, kept)


def run(args) -> None:
    """`mmduet2 evaluate`: results/eval/<model>-seed<k>.json and the predictions in the upstream schema beside it."""
    profile = load_profile(args.profile)
    dataset = Dataset(profile.data)
    want = wanted(args, profile, dataset)
    if want is None:
        return
    if args.parallel > 1:
        return _side_by_side(args)
    Evaluation(args, profile, dataset, want).go()


def _side_by_side(args) -> None:
    """`--parallel N`: the shards as processes of this machine, each on a GPU of its own."""
    given = [f"--{name} {shlex.quote(value)}" for name in ("seed", "model", "domains", "intervals", "engine", "extras", "protocol") if (value := str(getattr(args, name)))]
    try:
        run_commands(args.profile, [[f"evaluate {' '.join(given)} --shard {k}/{args.parallel}"] for k in range(args.parallel)], args.parallel)
    except RuntimeError as error:
        raise UserError(str(error)) from None
