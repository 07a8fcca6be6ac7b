"""A dataset in the Hugging Face layout: `datasets.load_dataset(OUT)` gives messages, their pictures, and the rest as metadata.

`data/<configuration>/<split>-00000-of-000NN.parquet` and the card as README.md. A shard is ROWS rows, is written a few rows at a time
and appears whole or not at all, so that memory stays flat and a killed export goes on where it stopped.
"""

import io
import json
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Features, Image, List, Value
from PIL import Image as Picture
from pyarrow import parquet

from . import __version__
from .corpus.build import Dataset, read_index
from .corpus.dialogues import frame_count
from .dialogue import Dialogue, Turn, from_rl_row, from_sft_row, to_sft_row
from .errors import UserError
from .files import STAMP, Lines, halfway, made_for, read_json, sha256_text
from .progress import lines, side_by_side
from .report import script

ROWS, GROUP = 128, 8  # rows of a shard; of a row group, which is what is held in memory
TEXT, NUMBER, COUNT = Value("string"), Value("float64"), Value("int64")
GOLD = List({"start": NUMBER, "end": NUMBER, "text": TEXT, "question": TEXT})
DIALOGUE = {"messages": List({"role": TEXT, "content": TEXT}), "images": List(Image()), "image_times": List(NUMBER),
            "metadata": {"question_id": TEXT, "video_id": TEXT, "domain": TEXT, "kind": TEXT, "interval": NUMBER, "gold": GOLD}}  # fmt: skip
FEATURES = {
    "sft": Features(DIALOGUE), "offline": Features(DIALOGUE),
    "rl": Features(DIALOGUE | {"first_turn": COUNT, "last_turn": COUNT, "scored": GOLD}),  # turns [first, last) are rolled out
    "benchmark": Features({
        "question_id": TEXT, "video_id": TEXT, "domain": TEXT, "duration": NUMBER, "conversation": List({"role": TEXT, "content": TEXT, "time": NUMBER}),
        "answer": List({"role": TEXT, "content": TEXT, "related_timespan": List(NUMBER), "reply_timespan": List(NUMBER)}),
        "images": List(Image()), "image_times": List(NUMBER)}),
}  # fmt: skip


def spans(gold) -> list[dict]:
    return [{"start": g.start, "end": g.end, "text": g.text, "question": g.question} for g in gold]


def encoded(frame: np.ndarray, form: str) -> dict:
    """A frame as an `Image` of datasets: the file's bytes."""
    file = io.BytesIO()
    Picture.fromarray(frame).save(file, form, **({"quality": 95, "subsampling": 0} if form == "jpeg" else {}))
    return {"bytes": file.getvalue(), "path": None}


def shown(dataset: Dataset, dialogue: Dialogue, form: str) -> dict:
    """The pictures of a dialogue in the order of its `<image>`s, and the time that each shows (s)."""
    return {"images": [encoded(frame, form) for frame in dataset.frames(dialogue)], "image_times": [k * dialogue.interval for k in dialogue.frame_indices()]}


def published(dataset: Dataset, kind: str, row: dict, form: str) -> dict:
    """A row of the dataset's files as a row of the export; see FEATURES."""
    if kind == "benchmark":
        every = read_index(dataset.folder)["interval"]
        turn = Turn(tuple(range(frame_count(row["duration"], every))))
        kept = {name: row[name] for name in ("question_id", "domain", "duration")}
        parts = {part: [{name: one.get(name) for name in FEATURES[kind][part].feature} for one in row[part]] for part in ("conversation", "answer")}
        return kept | parts | {"video_id": row["video"]} | shown(dataset, Dialogue("", row["video"], every, (turn,)), form)
    segment = from_rl_row(row) if kind == "rl" else None
    dialogue = segment.dialogue if segment else from_sft_row(row)
    plain = to_sft_row(dialogue)
    more = {"first_turn": segment.first, "last_turn": segment.last, "scored": spans(segment.gold)} if segment else {}
    return {"messages": plain["messages"], "metadata": plain["metadata"] | {"gold": spans(dialogue.gold)}} | shown(dataset, dialogue, form) | more


@lru_cache(maxsize=8)
def rows_of(path: Path) -> Lines | list[dict]:
    return read_json(path) if path.suffix == ".json" else Lines(path)


def write_shard(folder: Path, form: str, job: tuple[str, Path, int, Path]) -> None:
    """Write rows [start, start + ROWS) of a file as one parquet file, unless it is there."""
    kind, source, start, path = job
    if path.exists():
        return
    dataset, rows = Dataset(folder), rows_of(source)
    try:
        with halfway(path) as half, parquet.ParquetWriter(half, FEATURES[kind].arrow_schema) as writer:
            for at in range(start, min(start + ROWS, len(rows)), GROUP):
                some = [published(dataset, kind, row, form) for row in rows[at : min(at + GROUP, start + ROWS)]]
                writer.write_table(pa.Table.from_pylist(some, schema=FEATURES[kind].arrow_schema))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{source}, rows from {start + 1} on, cannot be exported ({type(error).__name__}: {error}): make the dataset anew.") from None


def export(folder: Path, out: Path | None, form: str, workers: int) -> Path:
    """Write the dataset in `folder` to `out`, pictures as "jpeg" or "png"; returns `out`."""
    page = script("dataset")
    dataset, every = page.opened(folder)
    if out is None or (out / STAMP).is_file() and not (out / STAMP).read_text().startswith("export "):
        raise UserError(f"{out}: give another folder after the dataset's, for the copy." if out else "Give a second folder, for the copy.")
    files = page.parts(dataset, every)
    sizes = {name: (folder / name).stat().st_size for splits in files.values() for name in splits.values()}
    made_for(out, "export " + sha256_text(json.dumps([dataset.key, sizes, form, ROWS, __version__])))
    for half in out.glob("data/*/.*.partial"):  # of a killed export; nobody's upload
        half.unlink()
    jobs, layout = [], {}
    for config, splits in files.items():
        layout[config] = {split: f"data/{config}/{split}-*.parquet" for split in splits}
        for split, name in splits.items():
            count = -(-len(rows_of(folder / name)) // ROWS)
            jobs += [(config.partition("_")[0], folder / name, k * ROWS, out / "data" / config / f"{split}-{k:05d}-of-{count:05d}.parquet") for k in range(count)]
    rows_of.cache_clear()
    side_by_side(partial(write_shard, folder, form), jobs, min(workers, len(jobs)), lines("exporting shards"))
    page.card(folder, out / "README.md", layout)
    return out
