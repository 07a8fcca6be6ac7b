"""`mmduet2 lmms`: Table 4's benchmarks by lmms-eval, for which this is a model adapter, and its results as one CSV.

lmms-eval 0.7.3 wants PyAV below 16, the kit 18: it lives in an environment of its own, installed without its dependencies (README).
As elsewhere in the kit a frame is a picture of its own; the paper gives 256 visual tokens to each (5.2) and not how many there are.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from .corpus.video import opened, _stated_end, fit_size, frames
from .dialogue import DEFAULT_SYSTEM, Turn
from .errors import UserError
from .files import read_json, sha256_file, sha256_text, write_csv
from .profile import add_profile_arguments, load_profile
from .progress import rank

try:
    from lmms_eval.api.model import lmms as Base
except ModuleNotFoundError:  # every other command works without it
    Base = object

BENCHMARKS = {  # lmms-eval's task: (the paper's column, metric, what makes percent of it)
    "videomme_w_subtitle": ("Video-MME with subtitles", "videomme_perception_score", 1),
    "videomme": ("Video-MME without subtitles", "videomme_perception_score", 1),
    "mvbench": ("MVBench", "mvbench_accuracy", 1),
    "longvideobench_val_v": ("LongVideoBench", "lvb_acc", 100),
}
COLUMNS = "model seed task accuracy n of status weights file".split()


@lru_cache(maxsize=2)  # the questions about a video follow each other
def sampled(video: str, most: int, tokens: int) -> np.ndarray:
    """At most `most` frames of a video, evenly spaced and no less than 1 s apart; uint8 [N, H, W, 3] of at most `tokens` visual tokens."""
    with opened(video) as (container, stream):
        length = float(_stated_end(container, stream) - (stream.start_time or 0) * stream.time_base)
    return np.stack([image for _, image in islice(frames(video, max(1.0, length / most), max_tokens=tokens), most)])


def pictures(visuals, most: int, tokens: int) -> np.ndarray:
    """What a task shows (a video, a folder of frames, or PIL pictures) as frames; those of other shapes get the first one's."""
    if len(visuals) == 1 and isinstance(visuals[0], str) and not Path(visuals[0]).is_dir():
        return sampled(visuals[0], most, tokens)
    shown = [each for one in visuals for each in (sorted(Path(one).iterdir()) if isinstance(one, str) else [one])]
    shown = [shown[k] for k in np.unique(np.linspace(0, len(shown) - 1, min(most, len(shown))).round().astype(int))]
    images = [(Image.open(one) if isinstance(one, Path) else one).convert("RGB") for one in shown]
    return np.stack([np.asarray(image.resize(fit_size(*images[0].size, tokens), Image.Resampling.BICUBIC)) for image in images])


class KitModel(Base):
    """lmms-eval's model `mmduet2`: any checkpoint that the kit loads, greedy, under Qwen's default system prompt (paper 5.2).

    frames, tokens: at most so many a video, and visual tokens each. name, seed and weights are for the results file.
    """

    is_simple = True

    def __init__(self, pretrained: str, frames: int = 64, tokens: int = 256, dtype: str = "float32", attention: str = "auto",
                 batch_size: int = 1, name: str = "", seed: int = 0, weights: str = "", device: str | None = None, **_):  # fmt: skip
        super().__init__()
        from accelerate import Accelerator

        from .engines import StreamEngine
        from .model import load

        self.accelerator = Accelerator()  # several processes share the questions
        self._rank, self._world_size, self.device = self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.device
        self.model, self.processor = load(str(pretrained), dtype, attention)
        self.engine = StreamEngine(self.model.eval().to(self.device), self.processor.image_processor, ahead=False)
        self.frames, self.tokens, self.batch = int(frames), int(tokens), int(batch_size)

    def generate_until(self, requests) -> Iterator[str]:
        """The answers, one after another as they are made, so that lmms-eval's cache keeps them of a run that is killed."""
        from tqdm import tqdm

        from .engines import Session
        from .model import encoder_for
        from .stream import Greedy

        for at in tqdm(range(0, len(requests), self.batch), disable=self._rank > 0, desc="questions"):
            sessions, chosen = [], requests[at : at + self.batch]
            for context, _, show, number, task, split in (request.args for request in chosen):
                seen = show(self.task_dict[task][split][number])
                if not seen:
                    raise UserError(f"Question {number} of {task} shows nothing: the kit's model answers questions about videos and pictures.")
                images = pictures(seen, self.frames, self.tokens)
                encoder = encoder_for(self.processor, images, getattr(self.model.config, "chat_form", "turns"))
                turn = Turn(tuple(range(len(images))), context.replace("<image>", "").strip())
                sessions.append(Session(encoder.system(DEFAULT_SYSTEM), images, [turn]))
            most = max(request.args[1].get("max_new_tokens", 512) for request in chosen)
            for request, (spoken,) in zip(chosen, self.engine.play(encoder, sessions, Greedy(), most)):
                text, until = spoken.text, request.args[1].get("until") or []
                for stop in [until] if isinstance(until, str) else until:
                    text = text.split(stop)[0] if stop.strip() else text  # a blank line would cut an answer that begins with one
                yield text.strip()

    def loglikelihood(self, requests):
        raise NotImplementedError("the tasks of Table 4 generate")

    generate_until_multi_round = loglikelihood


def manifest():
    """For lmms-eval's registry, by the entry point in pyproject.toml."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("mmduet2", simple_class_path="mmduet2kit.lmms.KitModel")


def collect(folder: Path, benchmarks=BENCHMARKS) -> list[dict]:
    """The rows of offline_benchmarks.csv from lmms-eval's results files under `folder`; of a model and task the newest run's,
    and a whole one's before a part.

    accuracy: percent; MVBench's is the mean over its tasks. status: `ok`, or PARTIAL where some questions or tasks were left out.
    """
    rows = {}
    for file in sorted(folder.rglob("*_results.json"), key=lambda file: file.name):  # named by date and time
        found = read_json(file)
        try:
            args, counts = found["config"]["model_args"], found["n-samples"]
            told = args if isinstance(args, dict) else dict(part.split("=", 1) for part in args.split(","))
            for task, (column, metric, scale) in benchmarks.items():
                parts = found.get("group_subtasks", {}).get(task) or [task]
                values = {part: found["results"][part][f"{metric},none"] for part in parts if f"{metric},none" in found["results"].get(part, {})}
                if values:
                    n, of = (sum(counts[part][key] for part in values) for key in ("effective", "original"))
                    status = "ok" if n == of and len(values) == len(parts) else "PARTIAL"
                    if status != "ok" and (told["name"], told["seed"], column) in rows:
                        continue
                    row = {"model": told["name"], "seed": told["seed"], "task": column, "accuracy": round(scale * sum(values.values()) / len(values), 4)}
                    rows[told["name"], told["seed"], column] = row | {"n": n, "of": of, "status": status, "weights": told["weights"], "file": file.name}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{file} is no results file of `mmduet2 lmms` ({error!r}): delete it, or move it elsewhere.") from None
    return list(rows.values())


def add_arguments(parser) -> None:
    add_profile_arguments(parser)
    parser.add_argument("--model", default="rl", help="as for mmduet2 evaluate (default: rl)")
    parser.add_argument("--tasks", default=",".join(BENCHMARKS), help="lmms-eval's names, by commas (default: Table 4's)")
    parser.add_argument("--frames", type=int, default=64, help="of a video, at most, and no less than 1 s apart (default: 64)")
    parser.add_argument("--visual-tokens", type=int, default=256, help="at most so many a frame (default: 256)")
    parser.add_argument("more", nargs=argparse.REMAINDER, metavar="-- ...", help="arguments of lmms-eval's own, such as --limit 8")


def run(args) -> int:
    """`mmduet2 lmms`: lmms-eval's files under results/lmms, and results/offline_benchmarks.csv, which Table 4 shows."""
    from .model import checkpoint, fetched

    profile = load_profile(args.profile)
    if min(args.frames, args.visual_tokens) < 1:
        raise UserError("--frames and --visual-tokens must be 1 or more.")
    if not find_spec("lmms_eval"):
        raise UserError("lmms-eval is not installed here: it needs an environment of its own, see 'Somebody's checkpoint, and the offline benchmarks' in the README.")
    folder, name = checkpoint(profile, args.model, args.seed)
    folder = fetched(folder)
    if set(",=") & set(str(folder)):
        raise UserError(f"lmms-eval takes no model from {folder}: rename it, without commas and equals signs.")
    weights = sha256_text(json.dumps([sha256_file(path) for path in sorted(folder.glob("*.safetensors"))]))[:16]
    told = {"pretrained": folder, "name": name, "seed": args.seed, "weights": weights, "frames": args.frames, "tokens": args.visual_tokens,
            "dtype": profile.model.dtype, "attention": profile.model.attention}  # fmt: skip
    place = profile.results / "lmms"
    before = set(place.rglob("*_results.json"))
    more = args.more[1:] if args.more[:1] == ["--"] else args.more
    sys.argv = ["lmms_eval", "--model", "mmduet2", "--model_args", ",".join(f"{key}={value}" for key, value in told.items()), "--tasks", args.tasks,
                "--output_path", str(place), "--use_cache", str(place / "cache"), "--log_samples", *more]  # fmt: skip
    os.environ.setdefault("LMMS_CACHE_RUN_ID", f"{name}-seed{args.seed}")  # else a killed run's answers are kept where no other looks
    from lmms_eval.cli.dispatch import main
    from lmms_eval.models import MODEL_REGISTRY_V2

    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)  # also where the kit is on the path, not installed
    main()
    if rank():
        return 0
    if not set(place.rglob("*_results.json")) - before:
        raise UserError("lmms-eval ended without results: what it says above is the reason.")
    rows = collect(place)
    write_csv(profile.results / "offline_benchmarks.csv", rows, COLUMNS)
    for row in rows:
        print("{model} seed {seed}, {task}: {accuracy} percent of {n} questions, {status}".format(**row))
    return 0
