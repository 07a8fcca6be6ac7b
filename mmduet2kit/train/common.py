"""What the training stages share: the collator over the kit's one encoder, trainer settings, the CSV log, stopping on TERM."""

import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PrinterCallback, TrainerCallback
from trl.trainer import utils as trl_utils

from .. import __version__
from ..chat import IGNORE
from ..corpus.build import Dataset
from ..dialogue import Dialogue
from ..errors import UserError
from ..files import is_made_for, made_for, read_csv, sha256_file, sha256_text, write_atomic, write_csv
from ..launch import free_port
from ..model import encoder_for, freeze_vision, load_model, load_processor, patches, save
from ..profile import RL, Fit, Profile
from ..progress import rank, ranks
from ..report import TEMPLATES

HEAD = "threshold_head.pt"  # beside the weights of a threshold model

# Without Triton, TRL scores positions without a label too, for devices that compile anew when shapes change. A CPU does not.
trl_utils._use_triton = lambda device, ask=trl_utils._use_triton: device.type == "cpu" or ask(device)


class Collator:
    """Rows `{"row": i}` -> padded batch: input_ids, attention_mask, labels, weights [B, L], pixel_values (uint8: `model.patches`), grids, types.

    `decide(dialogue)` gives one 0/1 target a turn for a threshold model, whose silent turns leave no tokens.
    """

    def __init__(self, dialogues: Sequence[Dialogue], dataset: Dataset, processor, no_reply_weight: float = 1.0,
                 decide: Callable[[Dialogue], list[int]] | None = None, jitter: float = 0.0, form: str = "turns"):  # fmt: skip
        self.dialogues, self.dataset, self.processor = dialogues, dataset, processor
        self.no_reply_weight, self.decide, self.jitter = no_reply_weight, decide, jitter
        self.encoder = encoder_for(processor, dataset.frames(dialogues[0]), form)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        chosen = [self.dialogues[row["row"]] for row in rows]
        frames = [self._jittered(self.dataset.frames(d), row.get("draw", 0)) for d, row in zip(chosen, rows)]
        encoded = [self.encoder.of(f).encode(d, self.no_reply_weight, silence=self.decide is None) for d, f in zip(chosen, frames)]
        width, pad = max(len(e.ids) for e in encoded), self.processor.tokenizer.pad_token_id
        ids = torch.tensor([e.ids + [pad] * (width - len(e.ids)) for e in encoded])
        batch = {
            "input_ids": ids,
            "attention_mask": torch.tensor([[1] * len(e.ids) + [0] * (width - len(e.ids)) for e in encoded]),
            "labels": torch.tensor([e.labels + [IGNORE] * (width - len(e.ids)) for e in encoded]),
            "weights": torch.tensor([e.weights + [0.0] * (width - len(e.ids)) for e in encoded]),
            "mm_token_type_ids": (ids == self.encoder.image_pad).int(),
        }
        batch["pixel_values"], batch["image_grid_thw"] = patches(self.processor.image_processor, frames)
        if self.decide:
            targets = torch.full((len(rows), width), float("nan"))
            for b, (d, e) in enumerate(zip(chosen, encoded)):
                wanted = self.decide(d)
                for position, turn in e.decisions:
                    targets[b, position] = wanted[turn]
            batch["targets"] = targets
        return batch

    def _jittered(self, frames: np.ndarray, draw: int) -> np.ndarray:
        """A sample's frames with other light and noise and moved a little: a small world is soon known by heart otherwise.

        Keyed by the sample's place in the schedule: the loader reads ahead, so a shared generator would not resume.
        """
        if not self.jitter:
            return frames
        rng = np.random.default_rng((draw, 13))
        gain, lift, *move = rng.uniform(-self.jitter, self.jitter, 4)
        moved = np.roll(frames, [round(6 * m) for m in move], axis=(1, 2))
        noise = rng.standard_normal(moved.shape[1:], np.float32) * 8 * self.jitter
        return np.clip(moved * (1 + 0.25 * gain) + 25 * lift + noise, 0, 255).astype(np.uint8)


def zero_config(profile: Profile) -> dict | None:
    """DeepSpeed's settings for the profile's ZeRO stage; None without one, and on CPUs (unless DS_ACCELERATOR says cpu: tests)."""
    launch = profile.launch
    if not launch.zero or not (torch.cuda.is_available() or os.environ.get("DS_ACCELERATOR") == "cpu"):
        return None
    sharding = {"stage": launch.zero, "contiguous_gradients": True, "overlap_comm": torch.cuda.is_available()}
    if launch.zero == 3:
        sharding["stage3_gather_16bit_weights_on_model_save"] = True
    if launch.offload:
        sharding["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return {"zero_optimization": sharding, "bf16": {"enabled": "auto"}, **dict.fromkeys(sizes, "auto"),
            "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}  # fmt: skip


def arguments(profile: Profile, fit: Fit | RL, seed: int, out: Path) -> dict:
    """Keyword arguments for TRL's configs, common to all stages: no reporting services, deterministic, resumable.

    Several ranks share a step's samples, whose number stays the same.
    """
    what = fit.prompts if isinstance(fit, RL) else fit.batch
    if what % ranks():
        raise UserError(f"{what} {'prompts' if isinstance(fit, RL) else 'samples'} a step cannot be shared by {ranks()} processes: "
                        "change the profile's batch (rl.prompts), or use fewer GPUs (CUDA_VISIBLE_DEVICES).")
    micro = math.gcd(fit.micro_batch, fit.batch // ranks())
    gpu, zero = torch.cuda.is_available(), zero_config(profile)
    if zero and ranks() == 1:  # DeepSpeed asks MPI for what no launcher has told
        os.environ.update(dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port())) | os.environ)
    return dict(
        output_dir=str(out), max_steps=fit.steps, seed=seed, data_seed=seed,
        per_device_train_batch_size=micro, gradient_accumulation_steps=fit.batch // ranks() // micro,
        learning_rate=fit.lr, warmup_steps=int(fit.warmup * fit.steps),
        save_steps=fit.save_steps, save_total_limit=1, save_only_model=False,
        bf16=profile.model.dtype == "bfloat16" and (gpu or zero is None),  # transformers lets ZeRO compute in bfloat16 on GPUs only
        use_cpu=not gpu and zero is None, deepspeed=zero,
        gradient_checkpointing=profile.launch.checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False},
        **({"optim": "adamw_torch_8bit"} if profile.launch.adam == "8bit" else {}),
        remove_unused_columns=False, dataloader_pin_memory=False,
        logging_steps=1, report_to=[], disable_tqdm=True, log_level="error",
    )  # fmt: skip


class CsvLog(TrainerCallback):
    """One CSV row a step (`columns` from the trainer's log), rewritten at saves so that a resumed run goes on from there."""

    def __init__(self, path: Path, columns: dict[str, str], total: int, say: Callable[[str], None] = print):
        self.path, self.columns, self.total, self.say = path, columns, total, say
        self.rows: list[dict] = []

    def on_train_begin(self, args, state, control, **kwargs):
        if self.path.exists() and state.global_step and state.is_world_process_zero:
            self.rows = [row for row in read_csv(self.path) if int(row["step"]) <= state.global_step]
        self.started = self.last = self.spoken = time.monotonic()
        self.first = state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        now = time.monotonic()
        row = {"step": state.global_step} | {c: logs.get(key, "") for c, key in self.columns.items()}
        self.rows.append(row | {"seconds": round(now - self.last, 3)})
        self.last = now
        if now - self.spoken > (5 if self.spoken == self.started else 30) or state.global_step == self.total:
            self.spoken = now
            left = (now - self.started) / max(state.global_step - self.first, 1) * (self.total - state.global_step)
            self.say(f"step {state.global_step} of {self.total}, loss {logs['loss']:.4g}, {left / 60:.1f} min left")

    def on_save(self, args, state, control, **kwargs):
        if self.rows:
            write_csv(self.path, self.rows)

    on_train_end = on_save


class StopOnTerm(TrainerCallback):
    """TERM (Slurm, a closed laptop, Ctrl-C of the runner), HUP or USR1 (srun's) saves a checkpoint at the next step's end and stops."""

    def __init__(self):
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, self._ask)

    def _ask(self, *_):
        self.asked = True

    def on_step_end(self, args, state, control, **kwargs):
        if any(gather_object([self.asked])):  # all ranks stop after the same step; only `_ask`, which may run meanwhile, writes `asked`
            control.should_save = control.should_training_stop = True


def schedule(count: int, batch: int, steps: int, seed: int, lengths: list[int] | None = None) -> list[int]:
    """Which sample stands where in a whole training run: `steps * batch` row numbers, every epoch in a new order.

    With `lengths`, samples of like length share a batch: a short offline sample beside a dialogue would be mostly padding.
    It is one long list so that a resumed run sees the samples of the first: trainers replay only the current epoch's order.
    """
    if not count:
        raise UserError("There is nothing to train on: the dataset holds no such sample. Make more videos, or make it anew.")
    rng, order = np.random.default_rng((seed, 11)), []
    while len(order) < steps * batch:
        epoch = rng.permutation(count)
        if lengths is not None:
            epoch = epoch[: max(count // batch, 1) * batch]  # whole batches only: a short one would shift all later ones
            epoch = epoch[np.argsort(np.asarray(lengths)[epoch], kind="stable")]
            cuts = np.split(epoch, range(batch, len(epoch), batch))
            epoch = np.concatenate([cuts[k] for k in rng.permutation(len(cuts))])
        order += epoch.tolist()
    return order[: steps * batch]


def begin(profile: Profile, fit: Fit | RL, dataset: Dataset, start: Path, out: Path, seed: int, *more) -> tuple[Path, str | None, Any, Any] | None:
    """(checkpoint folder, newest checkpoint, model, processor) of a training into `out`; None when that is done.

    What was made there from other weights, data, settings (`fit`, `more`) or seed is thrown away.
    """
    # One rank downloads and empties folders, the others wait; later they wait for the slowest judge, in this same process group.
    with PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=3)).main_process_first():
        weights = [sha256_file(path) for path in sorted(Path(start).glob("*.safetensors"))]
        key = sha256_text(f"{weights or start} {dataset.key} {(fit, *more)!r} {seed}")
        partial = out.with_name(out.name + ".partial")
        if is_made_for(out, key) and (out / "processor_config.json").exists():  # which is written last
            shutil.rmtree(partial, ignore_errors=True)
            return None
        whole = [file.parent for file in partial.glob("checkpoint-*/trainer_state.json") if file.read_text()[-3:] == "\n}\n"]  # written last
        checkpoint = max(whole, key=lambda folder: int(folder.name[11:]), default=None) if is_made_for(partial, key) else None
        # The Trainer's own loading matches no name of a Qwen2.5-VL checkpoint (saved under its published names) and says
        # nothing; from_pretrained translates them, so the weights are loaded here (tests: resumed losses repeat).
        # Always float32: with bfloat16 compute these are the masters; a step of 1e-6 would be lost in bfloat16 weights.
        model, processor = load_model(checkpoint or start, "float32", profile.model.attention), load_processor(start)
        for folder in (out, partial):  # only now: what is there stays if there is nothing to begin from
            made_for(folder, key)
        for folder in {*partial.glob("checkpoint-*")} - {checkpoint}:
            shutil.rmtree(folder)
        if fit.freeze_vision:
            freeze_vision(model)
        return partial, checkpoint and str(checkpoint), model, processor


def store(trainer, processor, out: Path, profile: Profile) -> Path:
    """The trained weights as an ordinary Hugging Face folder with a model card, in the profile's dtype (ZeRO-3's are gathered)."""
    if trainer.is_deepspeed_enabled:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    else:
        state = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    if rank() == 0:
        write_atomic(out / "README.md", card(out.name, profile, trainer.args, sum(w.numel() for w in state.values()) / 1e6))
    save(trainer.accelerator.unwrap_model(trainer.model), processor, out, profile.model.dtype, state)
    if rank() == 0:
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
    return out


def card(name: str, profile: Profile, args, millions: float) -> str:
    """The model card of `<kind>-seed<k>`: what it was trained on and how, what it is good for.

    args: the trainer's; millions: of parameters.
    """
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * ranks()
    base = profile.model.path and (Path(profile.model.path).name if Path(profile.model.path).is_dir() else profile.model.path)
    return TEMPLATES.get_template("train/card.md.jinja").render(
        name=name, base=base, profile=profile, args=args, batch=batch, millions=millions, version=__version__,
        data=Path(profile.dataset).name if profile.dataset else None)  # fmt: skip


def finish(trainer, checkpoint: str | None) -> None:
    """Train to the end, from `checkpoint` if any; after a TERM exit with 143, a checkpoint saved. UserError: not spread as asked."""
    kind, many, cards = trainer.accelerator.distributed_type.name, trainer.accelerator.num_processes, trainer.args.n_gpu
    wanted = ["DEEPSPEED"] if trainer.args.deepspeed else ["MULTI_CPU", "MULTI_GPU"] + ["NO"] * (ranks() == 1)
    if kind not in wanted or many != ranks() or cards > 1:
        raise UserError(f"This training would run as {kind} in {many} processes with {cards} GPUs each, not as {' or '.join(wanted)} in {ranks()} "
                        "with one: start it by ./run_all.sh, without ACCELERATE_* variables and without accelerate's own config file.")  # fmt: skip
    if trainer.args.device.type == "cpu":  # among ranks it is called "cpu:0", and torch cannot load an optimizer onto that
        vars(trainer.args)["_setup_devices"] = torch.device("cpu")
    save_rng, stop = trainer._save_rng_state, StopOnTerm()  # each rank's last file: all have theirs before trainer_state.json is written
    trainer._save_rng_state = lambda folder: (save_rng(folder), trainer.accelerator.wait_for_everyone())
    trainer.add_callback(stop)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    if any(gather_object([stop.asked])):  # all have saved: a rank that ended sooner would have those killed that still save
        sys.exit(143)
