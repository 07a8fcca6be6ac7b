"""Multi-turn GRPO over TRL's GRPOTrainer (paper section 4.3).

How this differs from the paper's training: TRL instead of verl and SGLang; rollouts from the kit's own KV-cache stream;
a judge that reads the world's facts; sizes by the profile. The rest (group advantages, four-term reward, history with
ground-truth replies, token-mean loss, no KL) is the same.
"""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset as Rows
from transformers import BatchFeature, Qwen2VLImageProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from ..chat import IGNORE
from ..corpus.build import Dataset
from ..dialogue import Segment
from ..engines import StreamEngine, VLLMEngine
from ..files import read_csv, write_csv
from ..model import encoder_for, load_to_play, normalised, patches, save
from ..profile import RL, Profile, add_profile_arguments, load_profile, positive
from ..progress import rank, ranks
from ..score import judge_of
from .common import Collator, CsvLog, arguments, begin, finish, schedule, store
from .rollout import TERMS, EarlyJudge, fitted, judge_rollouts, roll_out, statistics

COLUMNS = [
    "loss", "reward", "reward_std", *(f"{t}{s}" for t in TERMS for s in ("", "_std")), *(f"share_{t}" for t in TERMS),
    "reply_turns", "duplicates", "groups_without_variance", "judge_dropped", "logprob_gap", "rollout_s", "judge_s", "train_s",
]  # fmt: skip


class FrameProcessor(Qwen2VLImageProcessor):
    """The image processor for frames that are already resized: whole batches at once, as bytes (see model.patches)."""

    def __call__(self, images, **_):
        return BatchFeature(dict(zip(("pixel_values", "image_grid_thw"), patches(self, [image[None] for image in images]))))


class ProactiveGRPO(GRPOTrainer):
    """GRPOTrainer whose completions are whole dialogues with frames inside, rolled out by the stream.

    TRL builds the training forward's images from inside the completion only on its tool-image path, so `tools` is made
    non-empty after construction; no tool is ever called (trl 1.16, trl_design 1c; tests/test_grpo.py spies on it).
    """

    def __init__(self, *args, segments: Sequence[Segment], dataset: Dataset, judge, rl: RL, sampling_seed: int,
                 start: Path, dtype: str = "float32", graphs: bool = False, **kwargs):  # fmt: skip
        super().__init__(*args, **kwargs)
        self.tools, self._standalone_tools = ["frames"], []
        self.dataset, self.judge, self.rl, self.sampling_seed = dataset, judge, rl, sampling_seed
        processor = self.processing_class
        self.encoder = encoder_for(processor, dataset.frames(segments[0].dialogue, [0]))  # of one shape; `of` gives the others'
        if rl.max_prompt or rl.max_response:
            segments = [fitted(self.encoder.of(dataset.frames(one.dialogue, [0])), one, rl) for one in segments]
        self.segments, self.start = segments, start
        processor.image_processor = FrameProcessor(**processor.image_processor.to_dict())
        self.row: dict[str, float] = {}
        self.dtype, self.graphs = dtype, graphs
        self.vllm: VLLMEngine | None = None

    @contextmanager
    def playing(self):
        """The model, to be played. One gathering of ZeRO-3's weights, so that ranks with more turns than others hold up nobody; the
        stream computes as the training forward does (under the same autocast), so that both agree on log-probs."""
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model, self.accelerator.autocast():
            yield model.eval()
            model.train()

    def _generate_and_score_completions(self, inputs):
        self._rows = [example["row"] for example in inputs]
        self.row, self._started = {"logprob_gap": 0.0}, time.perf_counter()
        return super()._generate_and_score_completions(inputs)

    def _generate(self, prompts):
        """Roll out this batch; the 8-tuple that TRL's scoring expects."""
        group, chosen = self.num_generations, [self.segments[row] for row in self._rows]
        keys = [(self.sampling_seed, self.state.global_step, row, i % group) for i, row in enumerate(self._rows)]
        early = EarlyJudge(chosen, self.judge, self.rl)
        with self.playing() as model:
            if self.rl.engine == "vllm":
                room = {"max_len": self.rl.max_prompt + self.rl.max_response + 64} if self.rl.max_prompt else {}
                self.vllm = self.vllm or VLLMEngine(self.start, self.dtype, temperature=self.rl.temperature, memory=self.rl.vllm_memory, **room)
                self.vllm.load(model.named_parameters())
            engine = self.vllm or StreamEngine(model, self.processing_class.image_processor, graphs=self.graphs)
            rollouts = roll_out(engine, self.encoder, self.dataset, chosen[::group], group, keys, self.rl, early.heard)
        if self.vllm:
            self.vllm.rest()
        rolled = time.perf_counter()
        early.wait()
        judged = judge_rollouts(rollouts, chosen, self.judge, self.rl)
        everyone = gather_object([replace(r, prompt=[], frames=None, completion=[], mask=[], logps=[]) for r in rollouts])
        self.row |= statistics(everyone, group, self.rl.weights)
        self.row |= {"rollout_s": round(rolled - self._started, 3), "judge_s": round(judged, 3)}
        self.rollouts = rollouts
        sampled = sum(sum(r.mask) for r in rollouts)
        self.state.num_input_tokens_seen += sum(len(r.prompt) for r in rollouts) + sampled
        self._metrics["train"]["num_tokens"] = [self.state.num_input_tokens_seen]
        self._metrics["train"]["completions/mean_length"].append(sampled / len(rollouts))
        images = [list(r.frames) for r in rollouts]
        said = [[{"role": "assistant", "content": text} for _, text in r.turns] for r in rollouts]
        prompts, completions, masks, logps = zip(*((r.prompt, r.completion, r.mask, r.logps) for r in rollouts))
        return [*prompts], [*completions], [*masks], said, [*logps], {"score": [r.reward for r in rollouts]}, images, images

    def _prepare_inputs(self, generation_batch):
        """A micro-batch without columns that are padding only; rollouts of one prompt, and of like length, stand together.

        TRL shuffles here, but a step uses all rollouts of its generation at once: their order changes the padding only.
        """
        parts = self.args.steps_per_generation
        if self._step % (parts * self.num_iterations) == 0 or self._buffered_inputs is None:
            whole = split_pixel_values_by_grid(self._generate_and_score_completions(generation_batch))
            lengths = [*zip(whole["prompt_mask"].sum(1).tolist(), whole["completion_mask"].sum(1).tolist())]
            order = sorted(range(len(lengths)), key=lengths.__getitem__)
            for key, value in whole.items():
                if isinstance(value, list) or value is not None and value.ndim:
                    whole[key] = [value[i] for i in order] if isinstance(value, list) else value[order]
            self._buffered_inputs = [unsplit_pixel_values_by_grid(part) for part in split_tensor_dict(whole, parts)]
        inputs = dict(self._buffered_inputs[self._step % parts])
        left = int(inputs["prompt_mask"].any(0).int().argmax())
        right = int(inputs["completion_mask"].sum(1).max())
        width = inputs["prompt_ids"].shape[1]
        for key in ("prompt_ids", "prompt_mask"):
            inputs[key] = inputs[key][:, left:]
        inputs["mm_token_type_ids"] = inputs["mm_token_type_ids"][:, left : width + right]
        for key in {"completion_ids", "completion_mask", "tool_mask", "sampling_per_token_logps", "old_per_token_logps", "ref_per_token_logps"} & set(inputs):
            inputs[key] = inputs[key][:, :right]
        return inputs

    def _get_per_token_logps_and_entropies(self, *args, pixel_values, **kwargs):
        values = normalised(self.processing_class.image_processor, pixel_values)
        out = super()._get_per_token_logps_and_entropies(*args, pixel_values=values, **kwargs)
        self._last_logps = out[0].detach()
        if self.use_vllm:  # `_compute_loss` waits for it
            ratio = (self._last_logps - self._inputs["sampling_per_token_logps"]).nan_to_num().exp()
            self._inputs["importance_sampling_ratio"] = ratio.clamp(max=self.rl.importance_cap)
        return out

    def _compute_loss(self, model, inputs):
        """TRL's, with truncated importance weights where vLLM spoke (one policy step a generation: this forward's log-probs
        are the old ones too, so no other forward is needed); none for the stream, which computes as the training does."""
        self.use_vllm, self._inputs = self.rl.engine == "vllm", inputs
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self.use_vllm = False  # the rest of TRL must not look for its own engine
        if self.num_iterations == 1:  # the policy that is trained is still the one that spoke
            gap = (self._last_logps - inputs["sampling_per_token_logps"]).abs() * inputs["tool_mask"]
            self.row["logprob_gap"] = max(self.row["logprob_gap"], round(float(gap.max()), 8))
        return loss

    def log(self, logs, *args, **kwargs):
        if "loss" in logs:
            spent = time.perf_counter() - self._started
            self.row["train_s"] = round(spent - self.row["rollout_s"] - self.row["judge_s"], 3)
            self.row["logprob_gap"] = max(gather_object([self.row["logprob_gap"]]))
            logs = logs | self.row
        return super().log(logs, *args, **kwargs)


def _term(name: str) -> Callable:
    def reward(score, **_):
        return [getattr(one, name) for one in score]

    reward.__name__ = name
    return reward


class Watch(TrainerCallback):
    """Evaluates the policy after these steps of training, for Figure 5: `evaluate(model, step) -> rows`, kept across a resume.

    trainer: set once it is there (ProactiveGRPO).
    """

    def __init__(self, path: Path, steps: Collection[int], evaluate: Callable, seed: int):
        self.path, self.steps, self.evaluate, self.seed = path, steps, evaluate, seed
        self.rows: list[dict] = []
        self.trainer: Any = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step and self.path.exists():
            self.rows = [row for row in read_csv(self.path) if int(row["step"]) <= state.global_step]
        else:
            self._look(0)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            self._look(state.global_step)

    def _look(self, step: int) -> None:
        with self.trainer.playing() as model:
            self.rows += [{"seed": self.seed, "step": step} | row for row in self.evaluate(model, step)]
        if rank() == 0 and self.rows:  # none without development videos
            write_csv(self.path, self.rows)


def train(
    profile: Profile, rl: RL, segments: Sequence[Segment], dataset: Dataset, start: Path, out: Path, log: Path, seed: int,
    watch: Watch | None = None,
) -> Path:  # fmt: skip
    """GRPO from the SFT model in `start` into `out`; resumes at generation boundaries; returns `out`.

    A resumed run repeats the same losses: sampling is keyed by (seed, step, prompt, rollout).
    """
    begun = begin(profile, rl, dataset, start, out, seed)
    if begun is None:
        return out
    partial, checkpoint, model, processor = begun
    model.config._name_or_path = str(start)  # where TRL finds the reference of rl.beta: not in a checkpoint
    settings = GRPOConfig(
        **arguments(profile, rl, seed, partial),
        num_generations=rl.group, temperature=rl.temperature, shuffle_dataset=False,
        lr_scheduler_type="constant_with_warmup", max_grad_norm=rl.max_grad_norm, weight_decay=0.01,
        loss_type=rl.loss, beta=rl.beta, epsilon=rl.clip, scale_rewards="group", reward_weights=list(rl.weights),
    )  # fmt: skip
    order = schedule(len(segments), rl.prompts, rl.steps, seed)
    rows = Rows.from_list([{"prompt": [{"role": "user", "content": str(i)}], "row": i} for i in order])
    callbacks = [CsvLog(log, {c: c for c in COLUMNS}, rl.steps)] + ([watch] if watch else [])
    trainer = ProactiveGRPO(
        model=model, args=settings, train_dataset=rows, callbacks=callbacks, processing_class=deepcopy(processor),  # TRL changes it
        reward_funcs=[_term(name) for name in TERMS], segments=segments, dataset=dataset,
        judge=judge_of(profile), rl=rl, sampling_seed=seed, start=start, dtype=profile.model.dtype, graphs=profile.launch.graphs,
    )  # fmt: skip
    if watch:
        watch.trainer = trainer
    finish(trainer, checkpoint)
    return store(trainer, processor, out, profile)


def kl_to(reference, collator: Collator) -> Callable[[Any], float]:
    """model -> its KL divergence from `reference` in nats a token, over the assistant's tokens of the collator's dialogues."""
    batch = collator([{"row": i} for i in range(len(collator.dialogues))])
    batch["pixel_values"] = normalised(collator.processor.image_processor, batch["pixel_values"])
    spoken, _ = batch.pop("labels")[:, 1:] != IGNORE, batch.pop("weights")

    @torch.no_grad()
    def logps(model) -> torch.Tensor:
        hidden = model.model(**{name: value.to(model.device) for name, value in batch.items()}, use_cache=False)[0]
        return model.lm_head(hidden[:, :-1][spoken]).float().log_softmax(-1)

    there = logps(reference)
    return lambda model: round(float(((here := logps(model)).exp() * (here - there.to(here.device))).sum(-1).mean()), 6)


KL_DIALOGUES = 8  # fixed ones, on which the KL divergence from the SFT model is measured at evaluation steps
ARMS = {"no_pauc": 0, "no_rep": 1, "no_in_span": 2, "no_pfx": 3}  # Table 6: the weight that is set to zero


def _figure5(profile: Profile, dataset: Dataset, seed: int) -> Watch:
    """Watches the main run on development videos, its distance from the SFT model too; keeps the model at the arms' length."""
    from ..evaluate import Evaluator, pooled

    reference, processor = load_to_play(profile, profile.model_dir("sft", seed))
    divergence = kl_to(reference, Collator(dataset.sft(profile.video.train_interval)[:KL_DIALOGUES], dataset, processor))

    def look(model, step):
        if step == profile.ablation.rl_steps:
            save(model, processor, profile.model_dir("rl-short", seed))
        evaluator, kl = Evaluator(profile, dataset, model, processor), divergence(model)
        for domain in dataset.domains("dev"):
            mine = evaluator.records("dev", domain, profile.evaluate.dev_videos)[rank() :: ranks()]
            rows = gather_object(evaluator.score(evaluator.watch(mine, profile.video.test_interval)))
            evaluator.judge.settle(gather_object)  # all ranks stop, and before a row of silence is kept
            found = pooled(rows)
            yield {"domain": domain} | {key: found[key] for key in ("pauc", "duplicate", "reply_turns")} | {"kl": kl}

    steps = {*range(0, profile.rl.steps, profile.rl.eval_steps), profile.ablation.rl_steps, profile.rl.steps}
    return Watch(profile.results / f"figure5_seed{seed}.csv", steps, look, seed)


def add_arguments(parser) -> None:
    add_profile_arguments(parser)
    parser.add_argument("--arm", choices=[*ARMS, "upstream", "denominators"], help="a term left out (Table 6), or another variant of the reward (default: none, the main run)")
    parser.add_argument("--interval", type=positive, help="seconds between frames (default: the profile's)")


def run(args) -> None:
    """`mmduet2 grpo`: GRPO from the SFT model: `rl`, or an ablation's arm (`rl-no_rep`, `rl-1s`) at its shorter length.

    The main run also keeps the model that it is at the arms' length (`rl-short`), for a comparison at equal steps.
    """
    profile, seed = load_profile(args.profile), args.seed
    interval = args.interval or profile.video.train_interval
    other = interval != profile.video.train_interval
    name = "rl" + (f"-{args.arm}" if args.arm else "") + (f"-{interval:g}s" if other else "")
    rl, main = profile.at(interval).rl, name == "rl"
    if args.arm in ARMS:
        rl = rl.model_copy(update={"weights": tuple(0.0 if k == ARMS[args.arm] else w for k, w in enumerate(rl.weights))})
    elif args.arm:
        rl = rl.model_copy(update={"variant": args.arm})
    if not main:
        rl = rl.model_copy(update={"steps": profile.ablation.rl_steps})
    dataset = Dataset(profile.data)
    train(
        profile, rl, dataset.rl(interval), dataset, profile.model_dir("sft", seed), profile.model_dir(name, seed),
        profile.results / f"train_{name}_seed{seed}.csv", seed, _figure5(profile, dataset, seed) if main else None,
    )  # fmt: skip
