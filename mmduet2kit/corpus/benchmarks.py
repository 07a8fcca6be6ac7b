"""Public benchmarks, from their own published files, as the kit's records.

Records are those of ProactiveVideoQA's schema (upstream 1.1), which `mmduet2 score` and the evaluation read.
"""

import csv
from pathlib import Path

from .readers import _json, files, named, reader, seconds


@reader("proactivevideoqa")
def proactivevideoqa(folder: Path):
    """One record a question; a domain a folder. Times are seconds of the clip, reply spans as the benchmark has them."""
    for path in files(folder, "*/anno.json", "anno.json"):
        for row in _json(path):
            def make(row=row, path=path):
                domain = path.parent.resolve().name
                place = (path.parent / "videos" / row["video"]).relative_to(folder)
                said = [{"role": turn["role"], "content": str(turn["content"]), "time": seconds(turn["time"])} for turn in row["conversation"] if turn["role"] == "user"]
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
