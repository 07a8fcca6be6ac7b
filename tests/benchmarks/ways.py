"""Ways to answer a turn, for tests/benchmarks/engine.py: the kit's stream, the released inference's, full re-encoding, TRL's."""

import copy
import time
from itertools import chain
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from transformers import LogitsProcessor

from mmduet2kit.attention import WINDOWS
from mmduet2kit.chat import ChatEncoder, dialogue_text
from mmduet2kit.dialogue import NO_REPLY, Dialogue, Turn
from mmduet2kit.model import make_model, make_processor, train_tokenizer
from mmduet2kit.stream import Stream

from played import TEXTS, pixels

SIZES = {
    "tiny": dict(hidden=128, layers=4, heads=4, kv_heads=2, head_dim=32, intermediate=384, vision_hidden=96, vision_layers=2,
                 vision_heads=3, vision_intermediate=288, vocabulary=640),
    "3b": dict(hidden=2048, layers=36, heads=16, kv_heads=2, head_dim=128, intermediate=11008, vision_hidden=1280,
               vision_layers=32, vision_heads=16, vision_intermediate=3420, vocabulary=151936),
}  # fmt: skip
PICTURES = {"tiny": (56, 56), "3b": (224, 448)}  # height, width: 4 and 128 visual tokens
START = "You are a helpful assistant."


class Scripted:
    """Says what is written, whatever the logits are: `script[row]` is a list of replies' ids. Speed, not quality."""

    temperature = 1.0

    def __init__(self, script):
        self.tokens = [chain.from_iterable(replies) for replies in script]

    def __call__(self, logits, rows):
        return torch.tensor([next(self.tokens[row]) for row in rows], device=logits.device)


def make(size: str, device: str, dtype: torch.dtype, seed: int = 0):
    """(model with random weights, processor, encoder, frame's (H, W)) at a size."""
    tokenizer = train_tokenizer(TEXTS, 640)
    spec = SimpleNamespace(**SIZES[size], init_range=0.02 if size == "3b" else 0.2, attention="sdpa")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = make_model(spec, tokenizer, seed)
    finally:
        torch.set_default_dtype(before)
    high, wide = PICTURES[size]
    processor = make_processor(tokenizer)
    model.model.visual.config._attn_implementation = WINDOWS
    return model.eval().to(device), processor, ChatEncoder(tokenizer, high * wide // 28**2), (high, wide)


def sync(model) -> float:
    """The time now, when the device has done all that it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Full:
    """Every turn encodes the whole dialogue and all frames again; within a turn, the cache of that forward is used."""

    def __init__(self, model, processor, encoder):
        self.model, self.processor, self.encoder = model, processor, encoder
        self.ids, self.frames = encoder.system(START), []

    @torch.no_grad()
    def turn(self, turn: Turn, frames: np.ndarray, said: list[int], answer: bool = True) -> list[torch.Tensor]:
        """Take `said` as the answer; logits before each of its tokens (nothing is run when `answer` is False)."""
        self.frames += list(frames)
        self.ids += self.encoder.user(turn) + self.encoder.header
        rows = []
        if answer:
            ids, device = torch.tensor([self.ids], device=self.model.device), self.model.device
            values, grid = pixels(self.processor.image_processor, np.stack(self.frames))
            out = self.model(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, logits_to_keep=1, image_grid_thw=grid.to(device),
                pixel_values=values.to(device, self.model.dtype), mm_token_type_ids=(ids == self.encoder.image_pad).int(),
            )  # fmt: skip
            cache, rows = out.past_key_values, [out.logits[0, -1].float()]
            next_position = len(self.ids) + int(self.model.model.rope_deltas.flatten()[0])
            for k, token in enumerate(said[:-1]):
                places = torch.full((3, 1, 1), next_position + k, device=device)
                out = self.model(input_ids=torch.tensor([[token]], device=device), past_key_values=cache, position_ids=places,
                                 use_cache=True)  # fmt: skip
                rows.append(out.logits[0, -1].float())
        self.ids += said + self.encoder.newline
        return rows


class Forced(LogitsProcessor):
    """The only token that `generate` may choose is the next of a script."""

    def __init__(self, said: list[int], start: int):
        self.said, self.start = said, start

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.said[input_ids.shape[1] - self.start]] = 0.0
        return forced


class Generated(Full):
    """Full re-encoding as most people write it: transformers' `generate` over the whole dialogue at every turn."""

    @torch.no_grad()
    def turn(self, turn: Turn, frames: np.ndarray, said: list[int], answer: bool = True):
        super().turn(turn, frames, said, answer=False)
        told = self.ids[: -len(said) - len(self.encoder.newline)]
        ids, device = torch.tensor([told], device=self.model.device), self.model.device
        values, grid = pixels(self.processor.image_processor, np.stack(self.frames))
        self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), image_grid_thw=grid.to(device), do_sample=False,
            pixel_values=values.to(device, self.model.dtype), mm_token_type_ids=(ids == self.encoder.image_pad).int(),
            max_new_tokens=len(said), logits_processor=[Forced(said, len(told))],
        )  # fmt: skip


def full_batched(model, processor, encoder, sessions, scripts) -> None:
    """Full re-encoding of many dialogues side by side: at each turn a batch without any cache, by the same batched forward as the kit's.

    sessions: with `start`, `frames` [N, H, W, 3] and `turns` of a frame each; scripts: the replies' ids, by session and turn.
    """
    told = [list(session.start) for session in sessions]
    for k in range(len(sessions[0].turns)):
        stream = Stream(model, encoder, processor.image_processor, len(sessions), ahead=False)
        seen = stream.see(np.concatenate([session.frames[: k + 1] for session in sessions])).split(k + 1)
        for ids, session in zip(told, sessions):
            ids += encoder.user(session.turns[k]) + encoder.header
        rows = range(len(sessions))
        hidden = stream.feed(rows, [list(ids) for ids in told], seen)
        said = stream.speak(rows, hidden, Scripted([[script[k]] for script in scripts]), 32)
        for ids, spoken in zip(told, said):
            ids += spoken.ids + encoder.closing(spoken.ids)


class Kit:
    """The kit's stream, one session."""

    def __init__(self, model, processor, encoder, **options):
        self.stream = Stream(model, encoder, processor.image_processor, 1, **options)
        self.stream.begin(0, encoder.system(START))

    def turn(self, turn: Turn, frames: np.ndarray, said: list[int], answer: bool = True):
        features = self.stream.see(frames)
        return self.stream.turn([0], [turn], [features], Scripted([[said]]), len(said))


class Released(Kit):
    """The kit's stream, with what the released inference does besides at each turn: the whole history is put into the
    template and tokenised, all frames are copied and go through the image processor."""

    def __init__(self, model, processor, encoder):
        super().__init__(model, processor, encoder)
        self.processor, self.turns, self.pictures = processor, [], []

    def turn(self, turn: Turn, frames: np.ndarray, said: list[int], answer: bool = True):
        self.turns.append(Turn(turn.frames, turn.text, NO_REPLY))
        self.pictures += [Image.fromarray(frame) for frame in frames]
        if answer:
            self.processor.tokenizer(dialogue_text(Dialogue("d", "v", 1.0, tuple(self.turns))), add_special_tokens=False)
            values = self.processor.image_processor(images=copy.deepcopy(self.pictures), return_tensors="pt")["pixel_values"]
            values.to(self.stream.model.device)
        return super().turn(turn, frames, said)
