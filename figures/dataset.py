"""A built dataset to look at and to publish: a page with sampled dialogues beside their frames, and its card."""

import base64
import io
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import yaml
from markupsafe import Markup
from PIL import Image

from mmduet2kit import __version__, released  # noqa: F401 - with it all readers are registered
from mmduet2kit.corpus.build import Dataset
from mmduet2kit.corpus.films import load_scenes
from mmduet2kit.corpus.readers import READERS
from mmduet2kit.dialogue import NO_REPLY, SUBTITLE, Dialogue, Turn
from mmduet2kit.errors import UserError
from mmduet2kit.files import read_json, write_atomic
from mmduet2kit.protocols import push
from mmduet2kit.report import FIGURES, TEMPLATES

SIDE, QUALITY, PICTURES = 160, 55, 30  # of a dialogue's pictures: pixels of the longer side, JPEG quality, how many at most
TYPES = {"train_web": "Web Videos", "train_ego": "Ego Centric"}  # the paper's words
TESTS = {"validation": "dev.json", "test": "test.json"}  # the hub's names of the splits
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def opened(folder: Path) -> tuple[Dataset, float | None]:
    """A dataset, and the coarsest interval of its SFT dialogues (s), which is the paper's, or None where it holds tests alone; UserError without either."""
    found = {float(m[1]) for path in Path(folder).glob("sft_*s.jsonl") if (m := re.fullmatch(r"sft_([\d.]+)s\.jsonl", path.name))}
    filled = [every for every in found if (Path(folder) / f"sft_{every:g}s.jsonl").stat().st_size]
    dataset = Dataset(Path(folder))
    if not dataset.has("frames.json") or not (filled or tests(dataset)):
        raise UserError(f"{folder} holds neither SFT dialogues (sft_*s.jsonl, frames.json) nor tests (test.json): give a folder that `mmduet2 data` has built.")
    return dataset, max(filled, default=None)


def tests(dataset: Dataset) -> dict[str, list[dict]]:
    """{split: records} of the benchmark files that hold any, as the Hugging Face hub names splits."""
    return {split: rows for split, name in TESTS.items() if dataset.has(name) and (rows := dataset.benchmark(Path(name).stem))}


def sample(dialogues: Sequence[Dialogue], count: int, seed: int = 0) -> list[Dialogue]:
    """`count` dialogues, in turn from each domain and kind (1QnA, nQnA); the same ones for the same seed."""
    groups = defaultdict(list)
    for number, dialogue in enumerate(dialogues):
        groups[dialogue.domain, dialogue.kind].append(number)
    drawn = [iter(random.Random(seed).sample(groups[name], min(count, len(groups[name])))) for name in sorted(groups)]
    picked: list[int] = []
    while len(picked) < count and (more := [number for one in drawn if (number := next(one, None)) is not None]):
        picked += more
    return sorted((dialogues[number] for number in picked[:count]), key=lambda d: (d.domain, d.kind))


def blocks(dialogue: Dialogue) -> Iterator[dict]:
    """The turns as a reader wants them: {"from", "until" (s), "text", "reply", "turns", "frames"}; silent ones in a row are one."""
    def plain(item: tuple[float, Turn]) -> bool:
        return item[1].reply in (NO_REPLY, None) and bool(item[1].frames) and not item[1].text

    before = dialogue.skipped * dialogue.interval
    for silent, run in groupby(zip(dialogue.times(), dialogue.turns), plain):
        run = list(run)
        for some in [run] if silent else [[one] for one in run]:
            frames = [frame for _, turn in some for frame in turn.frames]
            yield {"from": before, "until": some[-1][0], "text": some[0][1].text, "reply": some[-1][1].reply, "turns": len(some), "frames": frames}
            before = some[-1][0]


def picture(frame: np.ndarray) -> str:
    """A frame, uint8 [H, W, 3], as a small JPEG in a data URI."""
    small, file = Image.fromarray(frame), io.BytesIO()
    small.thumbnail((SIDE, SIDE))
    small.save(file, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def shown(dataset: Dataset, dialogue: Dialogue) -> dict:
    """What the page says of one dialogue; frames that cannot be opened are a sentence in it."""
    parts, problem = list(blocks(dialogue)), ""
    spoken = sum(2 if part["turns"] == 1 else 1 for part in parts if part["frames"])
    each = max(1, min(3, 1 + (PICTURES - spoken) // max(1, sum(part["turns"] > 1 for part in parts))))  # of a silent stretch
    left = PICTURES
    for part in parts:
        frames, many = part["frames"], min(left, 2 if part["turns"] == 1 else each)
        kept = [frames[k] for k in sorted(set(np.linspace(0, len(frames) - 1, many).round().astype(int)))] if frames and many else []
        try:
            found = dataset.frames(dialogue, kept) if kept and not problem else ()
        except (UserError, OSError) as error:
            found, problem = (), str(error)
        part["pictures"] = [(frame * dialogue.interval, picture(one)) for frame, one in zip(kept, found)]
        left -= len(part["pictures"])
    asked = [(part["until"], part["text"]) for part in parts if part["text"]]
    replies = [(part["until"], part["reply"]) for part in parts if part["reply"] not in (None, NO_REPLY)]
    return {"dialogue": dialogue, "blocks": parts, "problem": problem, "asked": asked, "replies": replies,
            "length": max([dialogue.interval, *dialogue.times(), *(g.end for g in dialogue.gold)]), "silence": silence([dialogue])}  # fmt: skip


def silence(dialogues: Iterable[Dialogue]) -> float | None:
    """Share of NO REPLY among the assistant's turns; None without such turns."""
    counts = Counter(turn.reply == NO_REPLY for dialogue in dialogues for turn in dialogue.turns if turn.reply is not None)
    return counts[True] / counts.total() if counts else None


def ledger(dataset: Dataset) -> list[dict]:
    """The filter ledger's rules, those that dropped most first."""
    return dataset._read("ledger.json", lambda path: sorted(read_json(path), key=lambda row: row["out"] - row["in"]) if path.is_file() else [])


def look(folder: Path, out: Path | None, count: int) -> Path:
    """Write the page about `count` sampled dialogues (default: look.html in the dataset's folder); its path.

    Where a dataset holds tests alone they are shown as the push protocol plays them, with their gold spans and no replies.
    """
    if count < 1:
        raise UserError(f"--count {count}: give how many dialogues to look at, at least 1.")
    dataset, every = opened(folder)
    dialogues = dataset.sft(every) if every else [push(record, dataset.interval, 1) for rows in tests(dataset).values() for record in rows]
    page = TEMPLATES.get_template("dataset.html").render(
        css=Markup((FIGURES / "page.css").read_text()), name=dataset.folder.resolve().name, every=every or dataset.interval, total=len(dialogues),
        what="SFT dialogues" if every else "test questions", rules=ledger(dataset),
        share=silence(dialogues), sampled=[shown(dataset, one) for one in sample(dialogues, count)], NO_REPLY=NO_REPLY)  # fmt: skip
    return write_atomic(out or dataset.folder / "look.html", page)


def tested(dataset: Dataset) -> list[dict]:
    """What the benchmark files hold, by split and domain: questions, videos and their mean length (s), gold spans and theirs (s), user texts a question."""
    groups = defaultdict(list)
    for split, rows in tests(dataset).items():
        for row in rows:
            groups[split, row["domain"]].append(row)
    out = []
    for (split, domain), rows in groups.items():
        lengths = {row["video"]: row["duration"] for row in rows}
        spans = [end - start for row in rows for start, end in (gold["reply_timespan"] for gold in row["answer"])]
        out.append({"split": split, "domain": domain, "questions": len(rows), "videos": len(lengths), "length": float(np.mean([*lengths.values()])),
                    "spans": len(spans), "span": float(np.mean(spans)) if spans else None, "texts": sum(len(row["conversation"]) for row in rows) / len(rows)})  # fmt: skip
    return out


def statistics(dataset: Dataset, every: float | None) -> list[dict]:
    """Table 1 of any dataset, and what else is counted by kind of video; read a dialogue at a time.

    videos and their length: of what SFT and RL are made from. Questions and answer turns are means over dialogues: those of
    the gold spans, or, where a dialogue has none (the authors' release), its user's texts and its replies.
    """
    lengths, found = defaultdict(list), defaultdict(Counter)
    for split in ("sft", "rl"):
        for record in load_scenes(dataset.folder, split) if dataset.has(f"scenes/{split}.jsonl") else ():
            lengths[record["domain"]].append(record["duration"])
    for dialogue in dataset.sft(every) if every else ():
        texts = {turn.text for turn in dialogue.turns if turn.text and not turn.text.startswith(SUBTITLE)}
        replies = [turn.reply for turn in dialogue.turns if turn.reply is not None]
        spoken = sum(reply != NO_REPLY for reply in replies)
        found[dialogue.domain].update(
            dialogues=1, questions=len({g.question for g in dialogue.gold} or texts), answers=len(dialogue.gold) or spoken, turns=len(replies),
            silent=len(replies) - spoken, spans=len(dialogue.gold), without=not dialogue.gold, **{f"kind {dialogue.kind}": 1})  # fmt: skip
    return [{"type": TYPES.get(name, name), "videos": len(lengths[name]), "length": float(np.mean(lengths[name])) if lengths[name] else None,
             "per_dialogue": {key: found[name][key] / (found[name]["dialogues"] or 1) for key in ("questions", "answers")}, **found[name]}
            for name in sorted({*lengths, *found})]  # fmt: skip


def parts(dataset: Dataset, every: float | None) -> dict[str, dict[str, str]]:
    """{configuration: {split: file}} of the files that hold rows; the SFT dialogues at `every` s come first."""
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    for path in sorted(dataset.folder.glob("*.jsonl")):
        kind, _, rest = path.stem.partition("_")
        if kind in ("sft", "rl", "offline") and path.stat().st_size:
            rows["offline" if kind == "offline" else path.stem][rest if kind == "offline" and rest != "sft" else "train"] = path.name
    benchmark = {split: TESTS[split] for split in tests(dataset)}
    main = {name: rows.pop(name) for name in (f"sft_{every:g}s",)} if every else {}
    return main | rows | ({"benchmark": benchmark} if benchmark else {})


def licence(sources: Sequence[dict]) -> str:
    """The one licence that all of a dataset's corpora name without a condition, by readers.yaml; else "other"."""
    told = {READERS[s["corpus"]].licence if s["corpus"] in READERS else "" for s in sources} or {""}
    names = {"apache-2.0" if one == READERS["procedural"].licence else m[1].lower() if (m := re.fullmatch(r"(?:card|repository): ([\w.-]+)", one)) else "other"
             for one in told}  # fmt: skip
    return names.pop() if len(names) == 1 else "other"


def card(folder: Path, out: Path | None, files: dict[str, dict[str, str]] | None = None) -> Path:
    """Write a dataset card in the Hugging Face format (default: README.md in the dataset's folder); its path.

    files: {configuration: {split: path or pattern}} as they are published; default: the dataset's own files.
    """
    dataset, every = opened(folder)
    told = dataset._read("about.json", lambda path: read_json(path)["sources"] if path.is_file() else [])
    sources = [dict.fromkeys(("corpus", "annotator", "model", "kit", "profile"), "") | {"settings": {}} | one for one in told]
    files, kinds = files or parts(dataset, every), statistics(dataset, every)
    total, benchmark = sum(kind["dialogues"] for kind in kinds if "dialogues" in kind), tested(dataset)
    size = total + sum(one["questions"] for one in benchmark)
    name = dataset.folder.resolve().name
    head = {"pretty_name": name, "license": licence(sources), "language": ["en"], "task_categories": ["video-text-to-text"],
            "size_categories": [next((word for most, word in SIZES if size < most), "n>1M")], "tags": ["proactive", "streaming-video", "mmduet2"],
            "configs": [{"config_name": one, "data_files": [{"split": split, "path": path} for split, path in splits.items()]} | ({"default": True} if not k else {})
                        for k, (one, splits) in enumerate(files.items())]}  # fmt: skip
    if head["license"] == "other":
        head |= {"license_name": "those-of-the-source-corpora"}
    corpora = [READERS[one] for one in dict.fromkeys(s["corpus"] for s in sources) if one in READERS]
    text = TEMPLATES.get_template("dataset.md.jinja").render(
        head=yaml.safe_dump(head, sort_keys=False, allow_unicode=True), name=name, every=every or dataset.interval, kinds=kinds, total=total, benchmark=benchmark, sources=sources, files=files,
        corpora=corpora, own=any(s["corpus"] not in READERS for s in sources), rules=ledger(dataset), stamp=dataset.key[:12], version=__version__, cell=cell,
        silent=sum(kind.get("silent", 0) for kind in kinds), turns=sum(kind.get("turns", 0) for kind in kinds), without=sum(kind.get("without", 0) for kind in kinds),
        sorts=sum((Counter({key[5:]: n for key, n in kind.items() if key.startswith("kind ")}) for kind in kinds), Counter()))  # fmt: skip
    return write_atomic(out or dataset.folder / "README.md", text)


def cell(text) -> str:
    """Somebody's text as code in a cell of a Markdown table, where it can do nothing."""
    return "`" + re.sub(r"[`|\s]+", " ", str(text)).strip()[:120] + "`"
