"""A small Qwen2.5-VL, dialogues to play to it, and transformers' own forward; without pytest, for processes of their own."""

from types import SimpleNamespace

import numpy as np
import torch

from mmduet2kit import model as models
from mmduet2kit.chat import ChatEncoder, message_text
from mmduet2kit.corpus.dialogues import build_dialogue, build_segments, offline_dialogue
from mmduet2kit.corpus.films import annotate
from mmduet2kit.corpus.questions import QUESTIONS
from mmduet2kit.corpus.world import COLOURS, MOTIONS, SHAPES, plan, sentence
from mmduet2kit.dialogue import DEFAULT_SYSTEM, NO_REPLY, PROACTIVE_SYSTEM, Dialogue, Turn
from mmduet2kit.model import normalised, patches
from mmduet2kit.profile import load_profile

TEXTS = [
    message_text("system", PROACTIVE_SYSTEM), message_text("system", DEFAULT_SYSTEM), message_text("assistant", NO_REPLY),
    "So far there was a red circle and a blue ring. Subtitle: hello there.",
    *(sentence(c, s, m) for c in COLOURS for s in SHAPES for m in MOTIONS),
    *(q for pair in QUESTIONS.values() for q in pair),
]  # fmt: skip


def make_tiny(folder, seed=0, **sizes):
    spec = SimpleNamespace(**{
        **dict(hidden=64, layers=2, heads=2, kv_heads=1, head_dim=32, intermediate=96, vision_hidden=32, vision_layers=2,
               vision_heads=1, vision_intermediate=48, vocabulary=640, init_range=0.2, attention="sdpa"), **sizes,
    })  # fmt: skip
    tokenizer = models.train_tokenizer(TEXTS, spec.vocabulary)
    return models.save(models.make_model(spec, tokenizer, seed), models.make_processor(tokenizer), folder)


def random_dialogue(rng, turns, spoken=()):
    made, frame = [], 0
    for k in range(turns):
        if k and rng.random() < 0.2:
            made.append(Turn(text="Subtitle: hello there."))
        n = int(rng.integers(1, 3))
        made.append(
            Turn(tuple(range(frame, frame + n)), "What things show up?" if k == 0 else None, spoken[k] if spoken else None)
        )
        frame += n
    return Dialogue("d", "v", 2.0, tuple(made))


def teach_silence(model, processor, steps=60, form="turns"):
    """Teach a model in seconds to be silent at most turns with one frame, and to speak at most with two."""
    torch.manual_seed(0)
    encoder, rng = ChatEncoder(processor.tokenizer, 4, form), np.random.default_rng(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    says = {0: None, 1: NO_REPLY, 2: "A red circle spins."}
    for _ in range(steps):
        dialogue = random_dialogue(rng, 8)
        encoded = encoder.encode(dialogue.with_replies([says[len(turn.frames)] for turn in dialogue.turns]))
        ids, labels = torch.tensor([encoded.ids]), torch.tensor([encoded.labels])
        grid = torch.tensor([[1, 4, 4]] * (encoded.ids.count(encoder.image_pad) // 4))
        loss = model(input_ids=ids, labels=labels, pixel_values=torch.randn(16 * len(grid), 1176), image_grid_thw=grid,
                     mm_token_type_ids=(ids == encoder.image_pad).int()).loss  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), processor


def frames_for(rng, dialogue, shape=(56, 56)):
    return rng.integers(0, 255, (len(dialogue.frame_indices()), *shape, 3), dtype=np.uint8)


def pixels(image_processor, frames, device="cpu"):
    """(pixel_values [patches, 1176], image_grid_thw) of frames [N, H, W, 3], as transformers' own forward takes them."""
    parts, grid = patches(image_processor, [frames], device)
    return normalised(image_processor, parts), grid


def inputs_of(batch, processor):
    """What a model's own forward takes of a Collator's batch."""
    values = normalised(processor.image_processor, batch["pixel_values"])
    return {name: value for name, value in batch.items() if name != "weights"} | {"pixel_values": values}


def full_logits(model, processor, ids, frames, image_pad):
    """transformers' own forward over the whole sequence, which is what training runs."""
    values, grid = pixels(processor.image_processor, frames)
    ids = torch.tensor([ids])
    with torch.no_grad():
        return model(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=values, image_grid_thw=grid,
            mm_token_type_ids=(ids == image_pad).int(),
        ).logits[0]  # fmt: skip


SHAPES = [(56, 56), (56, 112), (112, 56)]  # two of them have the same number of tokens


class FakeDataset:
    """Random frames, the same for the same video and index; of `shapes`, when a test sets more, a video has one."""

    key, shapes = "fake", [(56, 56)]

    def frames(self, dialogue, indices=None):
        wanted = dialogue.frame_indices() if indices is None else indices
        seed = sum(dialogue.video.encode())
        shape = (*self.shapes[seed % len(self.shapes)], 3)
        return np.stack([np.random.default_rng((seed, i)).integers(0, 255, shape, np.uint8) for i in wanted])


def make_segments(count=6):
    profile, rng, out = load_profile("tiny"), np.random.default_rng(0), []
    for index in range(count):
        record = annotate(plan(profile.world, "rl", "train_web", index), "rl")
        out += build_segments(profile, build_dialogue(profile, record, rng, 2.0), rng, 1)
    return out


class LengthJudge:
    """Random weights never say a fact: a judge by length gives the group's rewards something to differ in."""

    name = "length"

    def correctness(self, question, gold, prediction, max_score):
        return float(len(prediction) % (max_score + 1))

    def covered(self, history, text):
        return text in history


def dialogues():
    profile, rng = load_profile("tiny"), np.random.default_rng(0)
    records = [annotate(plan(profile.world, "sft", "WEB", i), "sft") for i in range(8)]
    return [build_dialogue(profile, r, rng, 2.0) for r in records] + [offline_dialogue(r, rng, 2.0, (1, 3)) for r in records]
