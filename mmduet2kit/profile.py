"""Profiles: one YAML file holds every number of a run, each with its source (paper, upstream, ours).

A profile may extend another (`extends: tiny`) and then states only what differs, so that a value stands in one place.
"""

import json
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import UserError
from .files import sha256_text

FOLDER = Path(__file__).parent / "profiles"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DomainSpec(_Section):
    """One domain of the procedural world; lengths in seconds."""

    length: float  # mean video length
    scene: tuple[float, float]  # shortest and longest scene
    gap: tuple[float, float]  # shortest and longest pause between scenes
    onset: tuple[float, float]  # hidden onset, as a share of the scene
    scenes: tuple[int, int] | None = None  # fixed number of scenes (VAD), else as many as fit


class World(_Section):
    seed: int
    fps: int
    side: int  # pixels, square pictures
    noise: float  # standard deviation of the sensor noise, grey levels of 255
    distractors: tuple[int, int]
    domains: dict[str, DomainSpec]  # train_web, train_ego, WEB, EGO, TV, VAD, PO
    shrink: dict[str, float]  # by which the benchmark's lengths were divided, stated in the report
    counts: dict[str, dict[str, int]]  # split -> domain -> videos


class Video(_Section):
    train_interval: float  # seconds between frames in SFT and RL
    test_interval: float
    train_frames_per_turn: int
    test_frames_per_turn: dict[str, int]
    visual_tokens: int  # at most, a frame


class Dialogue(_Section):
    nqna_share: float
    text_question_share: float  # questions as a text-only turn (benchmark files) instead of after frames (Figure 2)
    single_frame_share: float  # dialogues with one frame a turn
    offline_share: float  # offline samples among the SFT samples
    questions: tuple[int, int]


class Model(_Section):
    path: str | None  # a Hugging Face folder or name; None: made and trained here
    dtype: Literal["float32", "bfloat16"]
    attention: Literal["sdpa", "eager", "flash_attention_2"]
    hidden: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    intermediate: int | None = None
    vision_hidden: int | None = None
    vision_layers: int | None = None
    vision_heads: int | None = None
    vision_intermediate: int | None = None
    vocabulary: int | None = None
    init_range: float | None = None


class Fit(_Section):
    """A supervised stage."""

    steps: int
    batch: int
    micro_batch: int
    lr: float
    warmup: float
    weight_decay: float
    save_steps: int
    freeze_vision: bool
    no_reply_weight: float
    jitter: float  # augmentation of the frames: light, noise, place; 0 to 1


class RL(_Section):
    steps: int
    prompts: int  # dialogues a step
    group: int  # rollouts a dialogue
    micro_batch: int
    lr: float
    warmup: float
    temperature: float
    top_k: int
    max_new_tokens: int  # a turn
    segment_turns: tuple[int, int]
    loss: Literal["dapo", "bnpo", "grpo"]
    beta: float
    clip: float
    max_grad_norm: float
    variant: Literal["paper", "upstream"]
    weights: tuple[float, float, float, float]
    prefix_chars: int
    save_steps: int
    eval_steps: int
    freeze_vision: bool


class Evaluate(_Section):
    batch: int
    max_new_tokens: int
    dev_videos: int  # a domain, for Figure 5's curves
    reply_every_turn_budget: float  # share of turns with a reply above which a run is FAIL (Table 6)
    po_window: float
    speed_videos: int
    thresholds: int  # of the baseline, tried on the development videos: evenly between 0 and 1


class Ablation(_Section):
    rl_steps: int
    sft_steps: int
    arms: list[str]


class Profile(_Section):
    """All numbers of a run; see `profiles/tiny.yaml` for each one's source."""

    name: str
    extends: str | None = None
    purpose: str
    meaningful: bool  # False: the numbers mean nothing (smoke)
    seeds: list[int]
    parallel: int  # jobs side by side
    stage_timeout_s: int
    world: World
    video: Video
    dialogue: Dialogue
    model: Model
    base: Fit
    sft: Fit
    rl: RL
    evaluate: Evaluate
    ablation: Ablation
    deviations: list[str]

    def hash(self) -> str:
        """Digest of the settings, without name, seeds and prose: what is frozen before the claims' seeds are run."""
        settings = self.model_dump(mode="json", exclude={"name", "extends", "seeds", "purpose", "deviations"})
        return sha256_text(json.dumps(settings, sort_keys=True))

    run_dir = property(lambda self: Path("runs") / self.name)
    results = property(lambda self: self.run_dir / "results")
    data = property(lambda self: self.run_dir / "data")

    def model_dir(self, name: str, seed: int) -> Path:
        """Where a model lies: base, sft, threshold, rl, rl-no_rep, sft-1s, ...; base may be one that is named."""
        named = name == "base" and self.model.path
        return Path(named) if named else self.run_dir / "models" / f"{name}-seed{seed}"


def _merge(base, over):
    """`over` upon `base`: mappings are merged key by key, anything else is replaced."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: _merge(base.get(key), value) for key, value in over.items()}


def _raw(name: str) -> dict:
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise UserError(f"There is no profile '{name}': give one of {known}, or the path of a YAML file.")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())}): mend it.") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no profile: it must be a YAML mapping.")
    parent = raw.get("extends")
    if parent == path.stem:
        raise UserError(f"{path} extends itself: name another profile.")
    if parent and raw.get("name") in (None, parent):
        raise UserError(f"{path} has no name of its own, and would write over runs/{parent}: add a line `name: mine`.")
    return _merge(_raw(str(parent)), raw) if parent else raw


def add_profile_arguments(parser, seed: bool = True) -> None:
    """The arguments that every command shares."""
    parser.add_argument("--profile", default="tiny", help="name or path of a profile (default: tiny)")
    if seed:
        parser.add_argument("--seed", type=int, default=1, help="training seed (default: 1)")


def load_profile(name: str = "tiny") -> Profile:
    """Load a profile by name (`tiny`) or path (`mine.yaml`); anything wrong raises UserError.

    `study@2` is one seed of it alone, with a run folder of its own (runs/study-2): a study of hours, seed by seed.
    """
    name, at, seed = name.partition("@")
    try:
        whole = Profile(**_raw(name))
        if at and seed not in map(str, whole.seeds):
            raise UserError(f"Profile '{name}' has no seed {seed!r}: give one of {', '.join(map(str, whole.seeds))}.")
        return whole.model_copy(update={"seeds": [int(seed)], "name": f"{whole.name}-{seed}"}) if at else whole
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"Profile '{name}': '{where}' is wrong ({first['msg'].lower()}): mend that line.") from None
