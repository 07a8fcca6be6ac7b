"""The data pipeline's throughput: `python tests/benchmarks/pipeline_speed.py [--videos 60] [--out FILE]`. Prints JSON.

Films videos of the procedural world of 90 s (448 x 224 pixels, 8 a second; not counted), then decodes them, looks for scenes
(PySceneDetect, though the world's own scenes are used), annotates by templates, builds dialogues through gates, and encodes them to ids
and labels: seconds of video for a second of a core, minutes for 1,000 videos, and what 52,000 of the paper's would take; the peak memory
of the processes at a quarter of the videos and at all of them.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from mmduet2kit.chat import ChatEncoder
from mmduet2kit.corpus import pipeline
from mmduet2kit.corpus.annotate import TemplateAnnotator
from mmduet2kit.corpus.build import Dataset
from mmduet2kit.corpus.films import annotate, write_video
from mmduet2kit.corpus.readers import READERS
from mmduet2kit.corpus.world import draw, plan
from mmduet2kit.files import write_jsonl
from mmduet2kit.manifest import cores
from mmduet2kit.model import train_tokenizer
from mmduet2kit.profile import load_profile
from mmduet2kit.progress import side_by_side
from mmduet2kit.score import get_judge

import told

SECONDS, FPS, VIDEOS = 90, 8, 52_000
SETTINGS = """
name: speed
extends: tiny
video: {visual_tokens: 128}
world:
  fps: 8
  domains: {train_web: {length: 90, scene: [8.0, 10.5], gap: [1.5, 5.0], onset: [0.05, 0.35]}}
"""


def film(world, out: Path, number: int) -> None:
    video = plan(world, "sft", "train_web", number)
    write_video(out / "videos" / "sft" / f"{video.name}.mp4", (p.repeat(2, 0).repeat(4, 1) for p in draw(world, video)), world.fps)


LOOK = pipeline.look


def searched(source: Path, out: Path, stored: float, tokens: int, clip) -> dict:
    """`pipeline.look`, with the search for cuts that videos without annotations need."""
    pipeline.cuts(pipeline.frames(source / clip.video, pipeline.LOOK_S, max_tokens=8))
    return LOOK(source, out, stored, tokens, clip)


def build(profile, source: Path, out: Path, count: int) -> dict:
    out.mkdir(parents=True)
    started, work = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    clips = [c for c, _ in zip(READERS["procedural"].read(source), range(count))]
    settings = pipeline.Plan(profile, "template")
    shards = pipeline.build_corpus(settings, TemplateAnnotator(), get_judge("exact"), clips, source, out, workers=cores())
    pipeline.join(settings, out, shards)
    dataset = Dataset(out)
    dialogues = [*dataset.sft(profile.video.train_interval)] + [s.dialogue for s in dataset.rl(profile.video.train_interval)]
    built = time.perf_counter()
    tokenizer = train_tokenizer((t.reply or t.text or "a" for d in dialogues for t in d.turns), 640)
    encoder, begun = ChatEncoder(tokenizer, profile.video.visual_tokens), time.perf_counter()
    tokens = sum(len(encoder.encode(d).ids) for d in dialogues)
    spent = built - started + time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"videos": count, "seconds": round(spent, 1), "dialogues": len(dialogues), "tokens": tokens,
            "video_s_per_core_s": round(count * SECONDS / spent / cores(), 1), "minutes_for_1000": round(1000 / count * spent / 60, 1),
            f"hours_for_{VIDEOS}_of_92.7_s": round(VIDEOS / count * spent * 92.7 / SECONDS / 3600, 1),
            "workers_cpu_s": round(after.ru_utime - work.ru_utime, 1),
            "peak_mb": {"this_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "a_worker": after.ru_maxrss // 1024}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=int, default=60)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out: dict = {**told.head(), "video": f"{SECONDS} s, 448 x 224, {FPS} fps"}
    with tempfile.TemporaryDirectory() as place:
        source = Path(place)
        (source / "speed.yaml").write_text(SETTINGS)
        profile = load_profile(str(source / "speed.yaml"))
        side_by_side(partial(film, profile.world, source), range(args.videos), cores())
        write_jsonl(source / "scenes" / "sft.jsonl", [annotate(plan(profile.world, "sft", "train_web", k), "sft") for k in range(args.videos)])
        pipeline.look = searched
        for name, count in (("quarter", max(1, args.videos // 4)), ("all", args.videos)):
            out[name] = build(profile, source, source / name, count)
            print(name, json.dumps(out[name]), file=sys.stderr, flush=True)
    told.write(out, args.out)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
