"""The paper's claims as rules (figures/claims.yaml), applied to the paper's numbers and to the kit's."""

import itertools
import json
import statistics
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from bootstrap import Resampler
from drawings import UNDRAWN, why
from mmduet2kit.errors import UserError
from mmduet2kit.files import read_csv, sha256_text, write_json
from stages import stages
from tables import FAIL, FIGURES, NOT_RUN, PAPER, STUDY, NotRun, Run, figure_of, number, select

MATCH, TREND, DIFFERS, FAIL_AS_PAPER = "MATCH", "TREND", "DIFFERS", "FAIL-AS-PAPER"
VERDICTS = (MATCH, TREND, DIFFERS, FAIL_AS_PAPER, NOT_RUN)
CLAIMS, TARGETS = FIGURES / "claims.yaml", FIGURES / "targets.yaml"
RESULTS = FIGURES.parent / "tests" / "benchmarks" / "results"
APART = {"share": "offline_share.csv", "early": "early_silence.csv"}  # what tests/benchmarks/apart.py found: trainings beside the run's
SURE = 0.975  # share of resamples in which a rule must hold: one side of a 95 percent interval


def evaluate(text: str, functions: Mapping[str, Callable], **names):
    """Value of an expression of numbers, names, + - * /, comparisons, & and the given functions; arrays too.

    claims.yaml is trusted like the code beside it; a rule with a mistake raises UserError.
    """
    try:
        return eval(text.strip(), {"__builtins__": {}}, {"abs": abs, **functions, **names})
    except (SyntaxError, NameError, TypeError) as error:
        raise UserError(f"claims.yaml: '{text}' is no rule ({error}): mend it.") from None


class Source:
    """Where values come from: the paper's files or a run's. Values stand by seed ("" in the paper)."""

    def __init__(self, run: Run, per_video: Resampler | None = None) -> None:
        self.per_video, self.curves = per_video or Resampler([]), run.rows("figure5.csv")
        self.tables = {k: run.rows(f"table{k}.csv") for k in range(2, 8)} | {"silence": run.rows("silence.csv"), "at": self.curves}
        self.run = run
        for row in self.tables[3]:  # the paper counts no decisions, but both models saw the same videos
            wall = number(row.get("wall_s"))
            row["wall_per_decision"] = "" if wall is None else wall / (number(row.get("decisions")) or 1)
        for name, file in APART.items():
            self.tables[name] = read_csv(RESULTS / file) if (RESULTS / file).is_file() and not run.smoke else []
        self.tables["sweep"] = sweep = run.rows("threshold_sweep.csv")
        for row in sweep:
            alike = [value for other in select(sweep, seed=row["seed"], domain=row["domain"]) if (value := number(other["pauc"])) is not None]
            row["best"] = int(number(row["pauc"]) == max(alike, default=0))

    def values(self, table: int | str, column: str, filters: Mapping) -> tuple[dict, bool, float | None]:
        """({seed: value}, did a run FAIL, sample size of accuracies); a FAIL without a number is NaN."""
        where = f"table {table}: {column} of {', '.join(f'{k} {v}' for k, v in filters.items() if v != '')}"
        if column in ("latency_s", "lucky_percent") and not self.run.procedural:
            raise NotRun(f"{where}: real videos have no hidden onsets")
        if made := {"f5": self._curve, "log": self._log, "both": self._both}.get(table):
            return made(column, **filters), False, None
        rows = [r for r in select(self.tables[table], **filters) if r.get("status", "ok") != NOT_RUN]
        failed, found = any(row.get("status") == FAIL for row in rows), {}
        for seed in dict.fromkeys(row.get("seed", "") for row in rows):
            mine = [row for row in rows if row.get("seed", "") == seed]
            numbers = [v for row in mine if (v := figure_of(row, column)) is not None]
            derived = self.per_video.per_seed(table, column, filters, seed) if column not in mine[0] else None
            if numbers or derived is not None:
                found[seed] = statistics.mean(numbers) if numbers else derived
            elif failed:
                found[seed] = float("nan")
        if not found:
            few = column == "duplicate" and any(number(r["duplicate"]) is not None for r in rows)
            why = "fewer than 10 gold turns with more than one reply" if few else "no value"
            raise NotRun(f"{where}: {why}")
        sizes = [number(row.get("n")) for row in rows]
        return found, failed, sum(sizes) / len(set(found)) if all(sizes) else None

    def _log(self, column: str, model: str, quarter: int = 0, steps: int | None = None) -> dict[str, float]:
        """Means over all steps (or the first `steps`, or one quarter of them, 1 to 4) of a training log, train_<model>_seed<k>.csv."""
        found = {}
        for seed in map(str, self.run.manifest.get("seeds", [])):
            all_steps = [v for row in self.run.rows(f"train_{model}_seed{seed}.csv")[:steps] if (v := number(row.get(column))) is not None]
            if mine := [v for k, v in enumerate(all_steps) if not quarter or 4 * k // len(all_steps) + 1 == quarter]:
                found[seed] = statistics.mean(mine)
        if not found:
            raise NotRun(f"no training log of {model}: {column}")
        return found

    @cached_property
    def answered(self) -> list[dict]:
        """Table 2's rows of per_video.csv with a right reply after the onset."""
        return [row for row in select(self.run.rows("per_video.csv"), experiment="T2") if number(row["latency_n"])]

    def _both(self, column: str, model: str, other: str, domain: str) -> dict[str, float]:
        """A model's mean latency in s on the questions that it and another answer rightly after the onset, or how many these are."""
        mine, theirs = (select(self.answered, domain=domain, model=name) for name in (model, other))
        shared = {(row["seed"], row["question_id"]) for row in theirs}
        sums: dict[str, list] = {}
        for row in (row for row in mine if (row["seed"], row["question_id"]) in shared):
            sums.setdefault(row["seed"], []).append((float(row["latency_sum"]), float(row["latency_n"])))
        if not sums:
            raise NotRun(f"no question of {domain} that {model} and {other} both answer rightly")
        if column == "questions":
            return {seed: len(pairs) for seed, pairs in sums.items()}
        return {seed: sum(a for a, _ in pairs) / sum(n for _, n in pairs) for seed, pairs in sums.items()}

    def _curve(self, feature: str, metric: str, domain: str) -> dict[str, float]:
        found: dict[str, list] = {}
        for row in select(self.curves, domain=domain):
            if number(row.get(metric)) is not None:
                found.setdefault(row["seed"], []).append((float(row["step"]), float(row[metric])))
        try:
            made = {seed: stages(*zip(*sorted(points)))[feature] for seed, points in found.items()}
        except ValueError as error:
            raise NotRun(str(error)) from None
        if not made:
            raise NotRun(f"no curve of {metric} on {domain}")
        return made


def _functions(lookup: Callable) -> dict[str, Callable]:
    tables = {**{f"t{k}": k for k in range(2, 8)}, "f5": "f5"} | {name: name for name in ("log", "silence", "sweep", "both", "at", *APART)}
    return {name: lambda column, _of=of, **filters: lookup(_of, column, filters) for name, of in tables.items()}


def measure(claim: Mapping, source: Source) -> dict:
    """A claim over one source: its value, whether the rule holds, its interval, as a dict.

    Raises NotRun when a number is not there.
    """
    found: dict[tuple, tuple[dict, dict, bool]] = {}

    def collect(table, column, filters):
        values, failed, n = source.values(table, column, filters)
        found[table, column, *filters.items()] = values, {**filters, **({"n": n} if n else {})}, failed
        return statistics.mean(values.values())

    try:
        for text in (claim["value"], claim["rule"], claim.get("guard", "0")):
            evaluate(text, _functions(collect), value=0.0)
    except ZeroDivisionError:
        raise NotRun("no ratio: what it is divided by is 0 in this run") from None
    seeds = sorted(set.intersection(*(set(one[0]) for one in found.values())), key=lambda s: number(s) or 0)
    if not seeds:
        raise NotRun("no seed has all the values")
    common = {key: {seed: values[seed] for seed in seeds} for key, (values, _, _) in found.items()}

    def apply(pick: Callable) -> tuple:
        functions = _functions(lambda table, column, filters: pick((table, column, *filters.items())))
        value = evaluate(claim["value"], functions)
        return value, evaluate(claim["rule"], functions, value=value), functions

    below = set()

    def resample(key):
        array, kind = source.per_video.cell(*key[:2], found[key][1], common[key])
        below.add(kind)
        return array

    with np.errstate(invalid="ignore", divide="ignore"):
        each, _, _ = apply(lambda key: np.array(list(common[key].values())))
        value, rule, functions = apply(lambda key: np.float64(statistics.mean(common[key].values())))
        many, rules, _ = apply(resample)
    usable = np.isfinite(many)
    drawn = usable.any() and (len(seeds) > 1 or below != {""})
    return {"value": float(value), "per_seed": list(map(float, each)), "seeds": seeds, "rule": bool(rule),
            "guard": bool(evaluate(claim.get("guard", "1"), functions, value=value)),
            "failed": any(failed for _, _, failed in found.values()),
            "interval": [float(p) for p in np.percentile(many[usable], [2.5, 97.5])] if drawn else None,
            "held": float(np.mean(rules[usable])) if drawn else None, "below": sorted(below - {""})}


def verdict(claim: Mapping, kit: Mapping, paper: Mapping | None) -> tuple[str, str]:
    """(verdict, reason) of measured values; `paper` is None where the paper prints no number."""
    if kit["failed"] or claim.get("rule_is_failure") and kit["rule"]:
        if np.isfinite(kit["value"]) and not kit["rule"]:
            return DIFFERS, f"FAIL in the kit's run, but the rule does not hold at {kit['value']:.2f}"
        if paper and paper["failed"]:
            return FAIL_AS_PAPER, "FAIL in the paper and in the kit's run"
        return TREND if claim.get("fail_counts") else DIFFERS, "FAIL in the kit's run, a number in the paper"
    if not kit["guard"]:
        return DIFFERS, claim["guard_words"]
    if not kit["rule"]:
        if not np.isfinite(kit["value"]):
            return DIFFERS, "the rule does not hold: a seed has no number for it (FAIL, or no growth that the end could be measured by)"
        return DIFFERS, f"the rule does not hold at {kit['value']:.2f}"
    if kit["held"] is not None and kit["held"] < SURE:
        return DIFFERS, f"not shown: the rule holds in the mean, but in {kit['held']:.0%} of resamples only"
    if paper is None or paper["failed"] or claim["tolerance"] is None:
        return TREND, "the rule holds; there is no number of the paper's to match"
    away = abs(kit["value"] - paper["value"])
    if away <= claim["tolerance"]:
        return MATCH, f"the rule holds, {away:.2f} from the paper's value (tolerance {claim['tolerance']})"
    return TREND, f"the rule holds, but {away:.2f} from the paper's value (tolerance {claim['tolerance']})"


def read_claims(path: Path = CLAIMS) -> list[dict]:
    """The claims with their `for` loops unrolled."""
    claims = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        loop = entry.pop("for", {})
        for choice in itertools.product(*loop.values()):
            made = dict(entry, id="-".join([entry["id"], *map(str, choice)]))
            for name, one in zip(loop, choice):
                made = _filled(made, f"{{{name}}}", str(one))
            claims.append(made)
    return claims


def _filled(node, name: str, text: str):
    """A claim with `name` replaced in all its texts."""
    if isinstance(node, dict):
        return {key: _filled(one, name, text) for key, one in node.items()}
    if isinstance(node, list):
        return [_filled(one, name, text) for one in node]
    return node.replace(name, text) if isinstance(node, str) else node


def explained(claim: Mapping, source: Source, key: str = "because") -> str:
    """What the run's experiments say about a claim that DIFFERS (`because`), or about any (`beside`); one that was not run says nothing."""
    means = _functions(lambda *which: statistics.mean(source.values(*which)[0].values()))
    known = list(map(str, source.run.manifest.get("seeds", [])))

    def by_seed(table, *which):  # the run's seeds in their order, so that lists line up; of an experiment apart its own
        found = source.values(table, *which)[0]
        return np.array([found.get(seed, np.nan) for seed in (known if known and table not in APART else found)])

    seeds = _functions(by_seed)

    def shown(value):
        if not isinstance(value, dict):
            return evaluate(value, means)
        return ", ".join("-" if np.isnan(one) else f"{one:.3g}" for one in evaluate(value["each"], seeds))

    told = []
    for one in claim.get(key, ()):
        try:
            told.append(one["words"].format(*map(shown, one["values"])))
        except UNDRAWN:
            continue
    return " ".join(told)


def rules_hash(path: Path = CLAIMS) -> str:
    """Digest of all that decides a verdict, without prose: frozen before the claims' seeds are run."""
    prose = ("sentence", "source", "unit", "guard_words", "because", "beside")
    deciding = [{key: value for key, value in claim.items() if key not in prose} for claim in read_claims(path)]
    return sha256_text(json.dumps(deciding, sort_keys=True))


def _how(kit: Mapping) -> str:
    many = len(kit["seeds"]) > 1
    seeds = f"{len(kit['seeds'])} seeds" if many else "one seed"
    if kit["interval"] is None:
        return f"{seeds}: no interval"
    return seeds if many and kit["below"] else f"{seeds}: interval over {'seeds' if many else kit['below'][0]} only"


def judge_all(data: Path | str, path: Path = CLAIMS) -> list[dict]:
    """Every claim's entry for claims.json, in order; a smoke run is not judged."""
    run, entries, theirs = Run(Path(data)), [], Source(Run(PAPER))
    try:
        ours = Source(run, Resampler(run.rows("per_video.csv")))
    except UNDRAWN as error:
        ours, broken = None, why(error)
    for claim in read_claims(path):
        paper, kit, because, beside = None, None, "", ""
        try:
            paper = measure({**claim, "guard": "1"}, theirs)
            said, _ = verdict({**claim, "tolerance": claim["tolerance"] or 0}, paper, paper)
        except NotRun:
            said = NOT_RUN
        try:
            if ours is None:
                raise NotRun(broken)
            kit = measure(claim, ours)
            word, reason = verdict(claim, kit, paper)
            reason = f"{reason} ({_how(kit)})"
            because, beside = explained(claim, ours) if word == DIFFERS else "", explained(claim, ours, "beside")
        except UNDRAWN as error:
            kit, word, reason = None, NOT_RUN, why(error)
        if run.smoke:
            word, reason, because, beside = NOT_RUN, "smoke profile: its numbers mean nothing", "", ""
        shown = kit if kit and not run.smoke else {"per_seed": [], "seeds": [], "interval": None}
        entries.append({
            "id": claim["id"], "sentence": claim["sentence"], "unit": claim["unit"],
            "paper": None if paper is None else FAIL if paper["failed"] else _round(paper["value"]),
            "kit": [_round(value) if np.isfinite(value) else FAIL for value in shown["per_seed"]],
            "seeds": shown["seeds"], "interval": shown["interval"] and list(map(_round, shown["interval"])),
            "rule": f"value = {claim['value']}; {claim['rule']}", "tolerance": claim["tolerance"],
            "verdict": word, "paper_verdict": said, "reason": reason, "explained": because, "beside": beside, "source": claim["source"]})
    return entries


def _round(value: float) -> float | str:
    return round(float(value), 3) if np.isfinite(value) else str(value)


def write_claims(data: Path | str, path: Path | str) -> Path:
    """Judge the results folder `data` and write claims.json to `path`."""
    return write_json(path, judge_all(data))
