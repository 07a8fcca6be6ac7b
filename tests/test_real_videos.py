"""All ten notebooks on a dataset that `mmduet2 data build` made of video files, as the profiles paper and single_gpu run them: nobody
knows an onset there, one domain may be all there is, and what cannot be measured says NOT RUN."""

import json
import re
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import yaml

from mmduet2kit import cli
from mmduet2kit.corpus.build import Dataset
from mmduet2kit.corpus.films import annotate, write_video
from mmduet2kit.corpus.pipeline import Plan
from mmduet2kit.corpus.world import draw, plan
from mmduet2kit.files import read_csv, read_json, write_json
from mmduet2kit.profile import load_profile

from played import make_tiny

NAME = "real-videos"
RUN = Path("runs") / NAME
STAGES = sorted(path.stem for path in Path(__file__).parents[1].glob("notebooks/[0-9]*.ipynb"))
MINE = {
    "name": NAME, "extends": "smoke", "purpose": "a test", "dialogue": {"questions": [2, 3]},
    "sft": {"steps": 3, "batch": 4, "micro_batch": 4, "save_steps": 3}, "rl": {"steps": 3, "eval_steps": 1, "save_steps": 3},
    "ablation": {"rl_steps": 2, "sft_steps": 2, "arms": ["no_rep"], "no_reply_weights": []},
}  # fmt: skip


def films(folder: Path, kind: str, counts: dict[str, int]) -> Path:
    """Short films as ordinary files, with scenes as an annotator would note them, and named so that so many go to each split."""
    profile, records = load_profile("smoke"), []
    splits, names = Plan(profile, "template"), {split: 0 for split in counts}
    for number in count():
        name = f"film{number}.mp4"
        if names.get(split := splits.split(name), 10**9) < counts.get(split, 0):
            names[split] += 1
            film = plan(profile.world, "sft", kind, len(records))
            write_video(folder / name, draw(profile.world, film), profile.world.fps)
            records.append(annotate(film, "sft") | {"video": name, "name": name[:-4]})
        if names == counts:
            break
    write_json(folder / "scenes" / "all.json", records)
    return folder


def built(folder: Path, kind: str, counts: dict[str, int]) -> Path:
    """A profile's file that names a dataset built from such films, and a model."""
    films(folder / "films", kind, counts)
    command = ["data", "build", folder / "films", "--corpus", "procedural", "--annotator", "template", "--out", folder / "data", "--profile", "smoke"]
    assert cli.main([str(word) for word in (*command, "--workers", 1)]) == 0
    model = make_tiny(folder / "model", vocabulary=700)
    (folder / "mine.yaml").write_text(yaml.safe_dump(MINE | {"dataset": str(folder / "data"), "model": {"path": str(model)}}))
    return folder / "mine.yaml"
