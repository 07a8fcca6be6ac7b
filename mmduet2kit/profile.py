"""Profiles: one YAML file holds every number of a run, each with its source (paper, upstream, ours).

A profile may extend another (`extends: tiny`) and then states only what differs, so that a value stands in one place.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import UserError
from .files import sha256_text

FOLDER = Path(__file__).parent / "profiles"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def rising(pair):
    """A pair in order, for pydantic."""
    if pair[0] > pair[1]:
        raise ValueError("the first must not be larger than the second")
    return pair


Whole, Count = Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]
Amount, Size, Share = Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(ge=0, le=1)]
Wholes, Counts, Amounts, Sizes, Shares = (Annotated[tuple[kind, kind], AfterValidator(rising)] for kind in (Whole, Count, Amount, Size, Share))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DomainSpec(_Section):
    """One domain of the procedural world; lengths in seconds."""

    length: Size  # mean video length
    scene: Sizes  # shortest and longest scene
    gap: Amounts  # shortest and longest pause between scenes
    onset: Shares  # hidden onset, as a share of the scene
    scenes: Wholes | None = None  # fixed number of scenes (VAD), else as many as fit


class World(_Section):
    seed: Whole
    fps: Count
    side: Annotated[int, Field(ge=28, multiple_of=2)]  # pixels, square pictures
    noise: Amount  # standard deviation of the sensor noise, grey levels of 255
    distractors: Wholes
    domains: dict[str, DomainSpec]  # train_web, train_ego, WEB, EGO, TV, VAD, PO
    shrink: dict[str, Size]  # by which the benchmark's lengths were divided, stated in the report
    counts: dict[str, dict[str, Whole]]  # split -> domain -> videos

    @model_validator(mode="after")
    def _known(self):
        if unknown := {domain for split in self.counts.values() for domain in split} - set(self.domains):
            raise ValueError(f"counts names {min(unknown)!r}, which is none of the domains")
        return self


class Video(_Section):
    train_interval: Size  # seconds between frames in SFT and RL
    test_interval: Size
    train_frames_per_turn: Count
    test_frames_per_turn: dict[str, Count]
    visual_tokens: Count  # at most, a frame
    intervals = property(lambda self: (self.train_interval, self.test_interval))


class Dialogue(_Section):
    nqna_share: Share
    text_question_share: Share  # questions as a text-only turn (benchmark files) instead of after frames (Figure 2)
    single_frame_share: Share  # dialogues with one frame a turn
    offline_share: Annotated[float, Field(ge=0, lt=1)]  # offline samples among the SFT samples
    questions: Counts


class Model(_Section):
    path: Annotated[str, Field(min_length=1)] | None  # a Hugging Face folder or name; None: made and trained here
    dtype: Literal["float32", "bfloat16"]
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"]  # auto: flash-attn where it is installed, else sdpa
    hidden: Count  # sizes: of the model that is made here; of a named one they must be its own, for the cost model
    layers: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    intermediate: Count
    vision_hidden: Count
    vision_layers: Count
    vision_heads: Count
    vision_intermediate: Count
    vocabulary: Count
    init_range: Size


class _Training(_Section):
    """What all stages have; `batch` samples a step."""

    steps: Count
    micro_batch: Count
    lr: Size
    warmup: Share
    save_steps: Count
    freeze_vision: bool

    @model_validator(mode="after")
    def _divides(self):
        if self.batch % self.micro_batch:
            raise ValueError(f"a step of {self.batch} samples is no multiple of micro_batch {self.micro_batch}")
        return self


class Fit(_Training):
    """A supervised stage."""

    batch: Count
    weight_decay: Amount
    no_reply_weight: Amount
    jitter: Share  # augmentation of the frames: light, noise, place; 0 to 1
    max_tokens: Whole  # longer samples are left out and counted; 0: none


class RL(_Training):
    prompts: Count  # dialogues a step
    group: Annotated[int, Field(ge=2)]  # rollouts a dialogue
    engine: Literal["stream", "vllm"]  # who rolls out (engines.py)
    batch = property(lambda self: self.prompts * self.group)
    temperature: Size
    top_k: Whole
    max_new_tokens: Count  # a turn
    max_prompt: Whole  # tokens of history: its oldest turns are dropped whole; 0: no limit
    max_response: Whole  # tokens of a rollout, were every reply as long as allowed: its last turns are dropped whole; 0: no limit
    vllm_memory: Share  # of a GPU's memory, for vLLM while it generates
    importance_cap: Size  # of the weights that correct for vLLM's log-probs (truncated importance sampling)
    segment_turns: Counts
    segment_seconds: Sizes | None = Field(None, exclude_if=lambda seconds: seconds is None)  # instead; unset, no part of the digest
    loss: Literal["dapo", "bnpo", "grpo"]
    beta: Amount
    clip: Size
    max_grad_norm: Size
    variant: Literal["paper", "upstream", "denominators"]
    weights: tuple[Amount, Amount, Amount, Amount]
    prefix_chars: Count
    eval_steps: Count

    def turns(self, every: float) -> tuple[int, int]:
        """The shortest and the longest segment, in turns of `every` s."""
        return self.segment_turns if self.segment_seconds is None else tuple(max(1, round(s / every)) for s in self.segment_seconds)


class Launch(_Section):
    """How trainings are spread over GPUs; on CPUs only `checkpointing`, `graphs` and `grace_s` mean something."""

    zero: Literal[0, 2, 3]  # DeepSpeed's ZeRO stage; 0: without DeepSpeed
    offload: bool  # optimizer states in the machine's memory (needs ZeRO)
    adam: Literal["torch", "8bit"]
    checkpointing: bool  # compute activations again instead of keeping them
    graphs: bool  # the kit's stream decodes by CUDA graphs, in rollouts and evaluation (on a CPU: the same shapes, slower)
    grace_s: Size  # from TERM to KILL: time to save a checkpoint

    @model_validator(mode="after")
    def _fits(self):
        if self.offload and not self.zero:
            raise ValueError("offload needs zero: 2 or 3")
        if self.adam == "8bit" and self.zero:
            raise ValueError("adam: 8bit goes with zero: 0 only")
        return self


class JudgeSpec(_Section):
    """Who judges replies in RL and evaluation; `url` and `model` are the LLM judge's."""

    name: Literal["exact", "embedding", "llm"]
    url: str | None
    model: str | None


class Evaluate(_Section):
    batch: Count
    max_new_tokens: Count
    dev_videos: Count  # a domain, for Figure 5's curves
    reply_every_turn_budget: Share  # share of turns with a reply above which a run is FAIL (Table 6)
    po_window: Size
    speed_videos: Count
    thresholds: Count  # of the baseline, tried on the development videos: evenly between 0 and 1


class Ablation(_Section):
    rl_steps: Count
    sft_steps: Count
    arms: list[str]
    no_reply_weights: list[Size]  # of SFT at both intervals, beside sft.no_reply_weight


class Profile(_Section):
    """All numbers of a run; see `profiles/tiny.yaml` for each one's source."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]  # of the folder runs/<name>
    extends: str | None = None
    purpose: str
    meaningful: bool  # False: the numbers mean nothing (smoke)
    dataset: str | None  # a folder with a built dataset; None: made here, in the procedural world
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
    parallel: Count  # jobs side by side
    stage_timeout_s: Count
    world: World
    video: Video
    dialogue: Dialogue
    model: Model
    base: Fit
    sft: Fit
    rl: RL
    launch: Launch
    judge: JudgeSpec
    evaluate: Evaluate
    ablation: Ablation
    deviations: list[str]

    def hash(self) -> str:
        """Digest of the settings, without name, seeds, prose and how kernels are launched: what is frozen before the claims' seeds are run."""
        settings = self.model_dump(mode="json", exclude=dict.fromkeys(("name", "extends", "seeds", "purpose", "deviations"), True) | {"launch": {"graphs"}})
        return sha256_text(json.dumps(settings, sort_keys=True))

    run_dir = property(lambda self: Path("runs") / self.name)
    results = property(lambda self: self.run_dir / "results")
    data = property(lambda self: Path(self.dataset) if self.dataset else self.run_dir / "data")

    def at(self, every: float) -> "Profile":
        """The profile of an arm that trains on a frame every `every` s: its budgets of tokens hold the same seconds (upstream's 1 s script)."""
        budgets = {part: {name: round(getattr(getattr(self, part), name) * self.video.train_interval / every) for name in names}
                   for part, names in (("sft", ["max_tokens"]), ("rl", ["max_prompt", "max_response"]))} | {"video": {"train_interval": every}}  # fmt: skip
        return self.model_copy(update={part: getattr(self, part).model_copy(update=new) for part, new in budgets.items()})

    def sft_arm(self, every: float, weight: float) -> str:
        """What a frame `every` so many s and this NO REPLY weight add to an SFT model's name; nothing for the main one."""
        return f"-{every:g}s" * (every != self.video.train_interval) + f"-w{weight:g}" * (weight != self.sft.no_reply_weight)

    def model_dir(self, name: str, seed: int) -> Path:
        """Where a model lies: base, sft, threshold, rl, rl-no_rep, sft-1s, ...; base may be one that is named."""
        named = name == "base" and self.model.path
        return Path(named) if named else self.run_dir / "models" / f"{name}-seed{seed}"


def _merge(base, over):
    """`over` upon `base`: mappings are merged key by key, anything else is replaced."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: _merge(base.get(key), value) for key, value in over.items()}


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice: YAML itself takes the last one and says nothing."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        if len(set(map(str, keys))) < len(keys):
            raise yaml.YAMLError(f"a key stands twice in the mapping from line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def _raw(name: str, inside: Path = Path(), seen: tuple[Path, ...] = ()) -> dict:
    path = inside / name if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file() or path.parent == FOLDER and name not in NAMES:
        raise UserError(f"There is no profile '{name}': give one of {', '.join(NAMES)}, or the path of a YAML file.")
    if path.resolve() in seen:
        raise UserError(f"{path} extends itself, perhaps by way of others: name another profile.")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())}): mend it.") from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise UserError(f"{path} holds no profile: it must be a YAML mapping of names to values.")
    parent = _raw(str(raw["extends"]), path.parent, (*seen, path.resolve())) if raw.get("extends") else {}
    taken = {parent.get("name"), *(() if path.parent == FOLDER else NAMES)}
    if raw.get("name", parent.get("name")) in taken:
        raise UserError(f"{path} has no name of its own, and would write over another's run: add a line `name: mine`.")
    return _merge(parent, raw)


def positive(text: str) -> float:
    """An argument that must be a number above 0; argparse says so if it is none."""
    if not 0 < float(text) < float("inf"):
        raise ValueError(text)
    return float(text)


def share(text: str) -> tuple[int, int]:
    """An argument that says which part of the work is done here: "i/N", from 0/N to N-1/N."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--shard {text!r}: give this part's number and how many there are, from 0/4 to 3/4.")
    return int(index), int(count)


def seed(text: str) -> int:
    """An argument that must be a whole number from 0."""
    if not 0 <= int(text) < 2**31:
        raise ValueError(text)
    return int(text)


def add_profile_arguments(parser, seeded: bool = True) -> None:
    """The arguments that every command shares."""
    parser.add_argument("--profile", default="tiny", help=f"{', '.join(NAMES)} (study@2: seed 2 of study alone), or the path of a YAML file (default: tiny)")
    if seeded:
        parser.add_argument("--seed", type=seed, default=1, help="training seed, 0 or more (default: 1)")


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
