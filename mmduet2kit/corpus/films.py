"""The procedural world on disk: H.264 files, annotations as an annotator would give them, and the hidden onsets apart."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from ..files import halfway, read_jsonl, write_json, write_jsonl
from ..profile import Profile, World
from ..progress import side_by_side
from .world import Plan, draw, plan

EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


def write_video(path: Path, pictures: Iterable[np.ndarray], fps: int) -> None:
    """Encode uint8 RGB pictures [H, W, 3] as H.264 MP4; one thread and no time stamps, so the same input gives the same bytes."""
    with halfway(path) as partial, av.open(str(partial), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream, scaler = None, VideoReformatter()
        for picture in pictures:
            if stream is None:
                # No lookahead (this preset has none) and no rate control: what libx264 estimates there differs in one
                # clip of a hundred from run to run, even with one thread (B-frames, scene cuts, macroblock tree, crf).
                options = {"preset": "ultrafast", "qp": "26", "threads": "1"}
                stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.codec_context.thread_count = 1
                stream.codec_context.flags |= av.codec.context.Flags.bitexact
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(scaler.reformat(frame, format="yuv420p", interpolation=EXACT)))
        container.mux(stream.encode(None))


def _film(world: World, job: tuple[Plan, Path]) -> None:
    if not job[1].exists():
        write_video(job[1], draw(world, job[0]), world.fps)


def make_films(profile: Profile, folder: Path, workers: int, progress: Callable[[int, int], None]) -> None:
    """Write every split's videos, annotations (`scenes/<split>.jsonl`) and onsets (`onsets/<split>.json`).

    Videos already there are kept (each is renamed into place when whole), so a killed run goes on where it stopped.
    """
    world, jobs = profile.world, []
    for split in world.counts:
        videos = [plan(world, split, domain, i) for domain, n in world.counts[split].items() for i in range(n)]
        jobs += [(v, folder / "videos" / split / f"{v.name}.mp4") for v in videos]
        write_jsonl(folder / "scenes" / f"{split}.jsonl", (annotate(v, split) for v in videos))
        write_json(folder / "onsets" / f"{split}.json", {v.name: [s.onset for s in v.scenes] for v in videos})
    side_by_side(partial(_film, world), jobs, workers, progress)


def annotate(video: Plan, split: str) -> dict:
    """What an annotator knows of a video: coarse scene spans with captions, subtitles. No onset."""
    return {
        "video": f"videos/{split}/{video.name}.mp4",
        "name": video.name,
        "domain": video.domain,
        "duration": video.duration,
        "scenes": [{"start": s.start, "end": s.end, "caption": s.caption} for s in video.scenes],
        "subtitles": [{"time": t, "text": text} for t, text in video.subtitles],
    }


def load_scenes(folder: Path, split: str) -> list[dict]:
    """The annotations of a split."""
    return read_jsonl(folder / "scenes" / f"{split}.jsonl")
