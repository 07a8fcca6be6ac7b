"""Supervised stages over TRL's SFTTrainer: the base (captioning), SFT (paper section 4.2) and the threshold baseline."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset as Rows
from torch import nn
from torch.utils.data import ConcatDataset, Subset
from trl import SFTConfig, SFTTrainer

from ..chat import FORMS
from ..corpus.build import Dataset
from ..dialogue import Dialogue
from ..model import normalised
from ..profile import Fit, Profile, add_profile_arguments, load_profile, positive
from ..progress import ranks
from .common import HEAD, Collator, CsvLog, arguments, begin, finish, schedule, store


class DialogueSFT(SFTTrainer):
    """SFTTrainer whose batches come from the kit's collator, with a weight for every label (NO REPLY turns)."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Weighted token mean of the cross-entropy; inputs as `Collator` gives them."""
        weights, targets = inputs.pop("weights"), inputs.pop("targets", None)
        inputs["pixel_values"] = normalised(self.processing_class.image_processor, inputs["pixel_values"])
        if targets is not None:
            return self.decision_loss(model, inputs, targets)
        outputs = model(**inputs, fused_lm_head=True)
        # The tokens of all ranks count, and the gradients' mean over the ranks is taken: so a rank's share is its sum over that mean.
        count = sum(gather_object([int(outputs.label_mask.sum())])) if num_items_in_batch is None else int(num_items_in_batch)
        return -(outputs.log_probs * weights[:, 1:]).sum() * ranks() / max(count, 1)

    def decision_loss(self, model, inputs, targets):
        """Threshold baseline (after MMDuet): language loss on replies plus binary cross-entropy of a speak score a turn."""
        labels = inputs.pop("labels")
        hidden = model.model(**inputs, use_cache=False).last_hidden_state
        learn = labels[:, 1:] != -100
        words = nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][learn]), labels[:, 1:][learn])
        decided = ~targets.isnan()
        scores = self.model.threshold_head(hidden[decided]).squeeze(-1)
        return words + nn.functional.binary_cross_entropy_with_logits(scores, targets[decided])


def train(
    profile: Profile, fit: Fit, dialogues: Sequence[Dialogue], dataset: Dataset, start: Path, out: Path, log: Path, seed: int,
    decide=None, form: str = "turns",
) -> Path:  # fmt: skip
    """Train from `start` into `out` (a Hugging Face folder); resumes from its own checkpoints; returns `out`.

    Exits with 143 after a TERM, with a checkpoint to go on from.
    """
    begun = begin(profile, fit, dataset, start, out, seed, decide and decide.__name__, *([form] if form != "turns" else []))
    if begun is None:
        return out
    partial, checkpoint, model, processor = begun
    if form != "turns":
        model.config.chat_form = form  # whoever loads the model plays it in its own format
    if decide:
        torch.manual_seed(seed)
        model.threshold_head = nn.Linear(model.config.text_config.hidden_size, 1)
    collator = Collator(dialogues, dataset, processor, fit.no_reply_weight, decide, fit.jitter, form)
    lengths = [len(collator.encoder.of(dataset.frames(d, d.frame_indices()[:1])).encode(d).ids) for d in dialogues]
    fits = [k for k, length in enumerate(lengths) if length <= (fit.max_tokens or length)]
    if len(fits) < len(lengths):
        print(f"training on {len(fits)} of {len(lengths)} samples: the others are longer than max_tokens = {fit.max_tokens}")
        collator.dialogues, lengths = Subset(dialogues, fits), [lengths[k] for k in fits]
    order = schedule(len(lengths), fit.batch, fit.steps, seed, lengths if max(lengths) > 4 * min(lengths) else None)
    rows = Rows.from_dict({"row": order, "draw": list(range(len(order)))})
    settings = SFTConfig(
        **arguments(profile, fit, seed, partial), weight_decay=fit.weight_decay, lr_scheduler_type="cosine",
        max_length=None, train_sampling_strategy="sequential", dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    trainer = DialogueSFT(
        model=model, args=settings, processing_class=processor, train_dataset=rows, data_collator=collator,
        callbacks=[CsvLog(log, {"loss": "loss"}, fit.steps)],
    )  # fmt: skip
    finish(trainer, checkpoint)
    if decide:
        head = model.threshold_head
        del model.threshold_head
        out.mkdir(parents=True, exist_ok=True)
        torch.save(head.state_dict(), out / HEAD)
    return store(trainer, processor, out, profile)


def sft_dialogues(profile: Profile, dataset: Dataset, interval: float, seed: int) -> Sequence[Dialogue]:
    """Proactive dialogues with offline samples mixed in at the profile's share (paper section 4.2)."""
    dialogues, offline = dataset.sft(interval), dataset.offline("sft")
    share = profile.dialogue.offline_share
    count = min(round(len(dialogues) * share / (1 - share)), len(offline))
    picked = np.random.default_rng((seed, 7)).choice(len(offline), count, replace=False)
    return ConcatDataset([dialogues, Subset(offline, picked.tolist())])


def in_span(dialogue: Dialogue) -> list[int]:
    """Targets of the threshold model: 1 for every turn whose time lies within a gold span (MMDuet's relevance)."""
    return [int(any(g.start < t <= g.end for g in dialogue.gold)) for t in dialogue.times()]


def add_arguments(parser) -> None:
    add_profile_arguments(parser)
    parser.add_argument("--interval", type=positive, help="seconds between frames (default: the profile's)")
    parser.add_argument("--no-reply-weight", type=positive, help="of NO REPLY turns in the loss (default: the profile's)")
    parser.add_argument("--form", choices=FORMS, default="turns", help="of the chat (default: turns; frames: the paper's Appendix A)")
    parser.add_argument("--threshold", action="store_true", help="train the threshold baseline instead")


def run(args) -> None:
    """`mmduet2 sft`: SFT from the base model; at another interval or NO REPLY weight an arm, `sft-1s`, `sft-w1`, `sft-1s-w1`."""
    profile = load_profile(args.profile)
    interval, weight = args.interval or profile.video.train_interval, args.no_reply_weight or profile.sft.no_reply_weight
    arm = profile.sft_arm(interval, weight)
    name = ("threshold" if args.threshold else "sft") + arm + ("-frames" if args.form == "frames" else "")
    fit = profile.at(interval).sft.model_copy(update={"no_reply_weight": weight} | ({"steps": profile.ablation.sft_steps} if arm else {}))
    dataset = Dataset(profile.data)
    train(
        profile, fit, sft_dialogues(profile, dataset, interval, args.seed), dataset, profile.model_dir("base", args.seed),
        profile.model_dir(name, args.seed), profile.results / f"train_{name}_seed{args.seed}.csv", args.seed,
        in_span if args.threshold else None, args.form,
    )  # fmt: skip
