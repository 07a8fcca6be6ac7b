"""Public benchmarks and the authors' release, from their own published files, as the kit's records and dialogues.

Records are those of ProactiveVideoQA's schema (upstream 1.1), which `mmduet2 score` and the evaluation read.
"""

import csv
import re
from pathlib import Path

from ..dialogue import Dialogue, from_sft_row
from .readers import _json, files, named, reader, seconds

FORCED = re.compile(r"^I must reply( now)?\.\n")  # upstream: a prefix that SFT masks and inference forces; no part of the reply


@reader("proactivevideoqa")
def proactivevideoqa(folder: Path):
    """One record a question; a domain a folder. Times are seconds of the clip, reply spans as the benchmark has them."""
    for path in files(folder, "*/anno.json", "anno.json"):
        for row in _json(path):
            def make(row=row, path=path):
                domain = path.parent.name if path.parent != folder else folder.name
                place = (path.parent / "videos" / row["video"]).relative_to(folder)
                said = [{"role": turn["role"], "content": str(turn["content"]), "time": seconds(turn["time"])} for turn in row["conversation"]]
                answers = [{"role": "assistant", "content": str(a["content"]), "related_timespan": _pair(a["related_timespan"]),
                            "reply_timespan": _pair(a["reply_timespan"])} for a in row["answer"]]  # fmt: skip
                return {"video": str(place), "question_id": str(row["question_id"]), "domain": domain, "duration": seconds(row["duration"]),
                        "conversation": said, "answer": answers}  # fmt: skip

            yield named(row, "question_id"), make


def _pair(times) -> list[float]:
    start, end = map(seconds, times)
    if end < start:
        raise ValueError(f"a span from {start:g} to {end:g}")
    return [start, end]


@reader("streamingbench")
def streamingbench(folder: Path):
    """Proactive output: asked at `time_stamp`, to be said at `ground_truth_time_stamp`; the unreliable window of the JSON is ignored."""
    for path in files(folder, "**/questions_proactive.json", "**/Proactive_Output.csv"):
        if path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8-sig", errors="replace") as lines:
                rows = [(row, row.get("question_id") or "", None) for row in csv.DictReader(lines)]
        else:
            rows = [(one, "", group.get("video_path")) for group in _json(path) if isinstance(group, dict)
                    for one in (group["questions"] if isinstance(group.get("questions"), list) else [group])]
        for number, (row, name, video) in enumerate(rows):
            def make(row=row, name=name, video=video, number=number):
                if video is None and name:  # <category>_sample_<n>_<question>, <category>_<n>_<question>
                    sample = name.rsplit("_", 2)[1]
                    found = sorted(folder.glob(f"**/sample_{int(sample)}/*.mp4"))
                    video = str(found[0].relative_to(folder)) if found else f"sample_{sample}/video.mp4"
                asked, moment = seconds(row["time_stamp"]), seconds(row["ground_truth_time_stamp"])
                output = str(row["ground_truth_output"])
                return {"video": video.removeprefix("./"), "question_id": name or f"{Path(video).stem}_{number}", "domain": "PO",
                        "duration": None, "time_stamp": asked, "ground_truth_time_stamp": moment, "ground_truth_output": output,
                        "conversation": [{"role": "user", "content": row["question"], "time": asked}],
                        "answer": [{"role": "assistant", "content": output, "related_timespan": [moment, moment],
                                    "reply_timespan": [moment, moment]}]}  # fmt: skip

            yield name or str(number), make


@reader("mmduet2-data")
def mmduet2_data(folder: Path):
    """The authors' SFT dialogues; pictures are `<file>.hdf5:::<index>` or image files, 2 s apart by the file's name."""
    for path in files(folder, "sft/*.jsonl", "*-sft*.jsonl"):
        every = re.search(r"(\d+)_sec_per_frame", path.name)
        for row in _json(path):
            def make(row=row, interval=float(every[1]) if every else 2.0, name=path.stem):
                return released_dialogue(row, interval, name)

            yield "", make


def released_dialogue(row: dict, interval: float, corpus: str) -> Dialogue:
    """A row of the authors' SFT files as a dialogue: the k-th picture is frame k; spans are not in it."""
    meta = row.get("metadata") or {}
    pictures = [image["path"] if isinstance(image, dict) else image for image in row["images"]]
    messages = [m | {"content": FORCED.sub("", m["content"])} if m["role"] == "assistant" else m for m in row["messages"]]
    if sum(m["content"].count("<image>") for m in messages) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures for another number of <image>")
    video = str(meta["video_id"])
    images = [{"path": f"{video}:::{k * interval:g}"} for k in range(len(pictures))]
    facts = {"question_id": str(meta.get("question_id", video)), "video_id": video, "domain": "ego" if "ego" in corpus else "web",
             "kind": "released", "interval": interval, "gold": []}  # fmt: skip
    return from_sft_row({"messages": messages, "images": images, "metadata": facts})
