"""Streaming sessions over a growing KV cache: only new frames are encoded, only new tokens are fed.

Many sessions run as one batch although their turns and ends differ: every row of the cache has its own length, so there
are no holes and no left padding. M-RoPE positions are explicit (trl_design: the obvious `generate` calls on a cache that
is not empty fail or are silently wrong). Float32 results equal a full re-encode to about 1e-6 (tests/test_stream.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from .chat import ChatEncoder
from .dialogue import Turn
from .model import pixels


class RaggedCache:
    """Keys and values [rows, heads, capacity, dim] a layer; row r holds its first `lengths[r]` positions.

    Stands in for transformers' Cache: attention calls `update` once a layer with the new keys of the rows set by `begin`.
    """

    def __init__(self, layers: int, rows: int):
        self.lengths = torch.zeros(rows, dtype=torch.long)
        self.buffers: list[list[torch.Tensor] | None] = [None] * layers

    def begin(self, rows: torch.Tensor, counts: torch.Tensor, width: int) -> torch.Tensor:
        """Announce `counts[i]` new tokens (of `width` slots, right-padded) for each row; returns the mask [R, 1, width, keys]."""
        self.rows, start = rows, self.lengths[rows]
        self.places = start[:, None] + torch.arange(width)  # [R, width]
        self.keys = int((start + width).max())
        self.whole = len(rows) == len(self.lengths) and bool((rows == torch.arange(len(rows))).all())
        self.lengths[rows] = start + counts
        return (torch.arange(self.keys) <= self.places[..., None])[:, None]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values [R, heads, width, dim]; return all of these rows' up to the longest."""
        out, buffers = [], self.buffers[layer]
        if buffers is None:
            buffers = self.buffers[layer] = [self._grown(None, key) for _ in range(2)]
        elif buffers[0].shape[2] < self.keys:
            buffers = self.buffers[layer] = [self._grown(old, key) for old in buffers]
        for buffer, new in zip(buffers, (key, value)):
            buffer[self.rows[:, None], :, self.places] = new.transpose(1, 2)
            out.append(buffer[:, :, : self.keys] if self.whole else buffer[self.rows, :, : self.keys])
        return out[0], out[1]

    def _grown(self, old: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        capacity = max(256, int(self.keys * 1.5))
        new = like.new_zeros(len(self.lengths), like.shape[1], capacity, like.shape[3])
        if old is not None:
            new[:, :, : old.shape[2]] = old
        return new

    def fork(self, copies: int) -> "RaggedCache":
        """A cache with every row repeated `copies` times: the rollouts of a group share their history's work."""
        other = RaggedCache(len(self.buffers), 0)
        other.lengths = self.lengths.repeat_interleave(copies)
        other.buffers = [b and [t.repeat_interleave(copies, dim=0) for t in b] for b in self.buffers]
        return other


@dataclass
class Spoken:
    """One assistant turn: its token ids (end token included unless cut off), log-probs a token, text, and score if decided."""

    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    text: str = ""
    score: float | None = None


class Greedy:
    """Takes the most likely token; log-probs at temperature 1."""

    temperature = 1.0

    def __call__(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        return logits.argmax(-1)


class Sampler:
    """Samples at a temperature, optionally among the `top_k` likeliest; row r draws from its own stream of numbers.

    `keys[r]` is (seed, step, prompt, rollout) as the contract wants: neither ranks nor batches change what is drawn.
    """

    def __init__(self, keys: Sequence[tuple[int, ...]], temperature: float, top_k: int = 0):
        self.temperature, self.top_k = temperature, top_k
        self.draws = [np.random.Generator(np.random.Philox(np.random.SeedSequence(key))) for key in keys]

    def __call__(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        logits = logits / self.temperature
        if self.top_k:
            kept = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < kept, -torch.inf)
        uniform = torch.tensor([[self.draws[row].random()] for row in rows], dtype=torch.float64, device=logits.device)
        cumulative = logits.double().softmax(-1).cumsum(-1)
        return (cumulative <= uniform * cumulative[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)


class Stream:
    """A batch of streaming sessions of one model; row r is one session. All methods run without gradients."""

    def __init__(self, model, encoder: ChatEncoder, image_processor, rows: int):
        self.model, self.encoder, self.image_processor = model, encoder, image_processor
        self.cache = RaggedCache(model.config.text_config.num_hidden_layers, rows)
        self.positions = torch.zeros(rows, dtype=torch.long)
        self.pending: list[list[int]] = [[] for _ in range(rows)]
        self.grid: tuple[int, int] | None = None  # rows and columns of tokens of a frame, known once one was seen

    def fork(self, copies: int) -> "Stream":
        """Every session repeated `copies` times, one after another."""
        other = Stream(self.model, self.encoder, self.image_processor, 0)
        other.cache, other.positions = self.cache.fork(copies), self.positions.repeat_interleave(copies)
        other.pending = [list(p) for p in self.pending for _ in range(copies)]
        other.grid = self.grid
        return other

    @torch.no_grad()
    def see(self, frames: np.ndarray) -> torch.Tensor:
        """Vision features of frames [N, H, W, 3]: [N, tokens, hidden]."""
        values, grid = pixels(self.image_processor, frames)
        visual = self.model.model.visual
        features = visual(values.to(self.model.device, visual.dtype), grid_thw=grid.to(self.model.device)).pooler_output
        self.grid = (int(grid[0, 1]) // 2, int(grid[0, 2]) // 2)
        return features.view(len(frames), -1, features.shape[-1])

    @torch.no_grad()
    def feed(self, rows: Sequence[int], chunks: Sequence[list[int]], features: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Append token chunks to sessions; `features[i]` [n, tokens, hidden] fills chunk i's image tokens in order.

        Returns the hidden state after each chunk's last token, [len(rows), hidden].
        """
        width, device = max(map(len, chunks)), self.model.device
        which = torch.tensor(rows)
        counts = torch.tensor([len(chunk) for chunk in chunks])
        ids = torch.tensor([chunk + [self.encoder.im_end] * (width - len(chunk)) for chunk in chunks], device=device)
        relative, steps = torch.zeros(3, len(rows), width, dtype=torch.long), torch.zeros(len(rows), dtype=torch.long)
        for i, chunk in enumerate(chunks):
            places, steps[i] = layout(tuple(chunk), self.encoder.image_pad, self.grid)
            relative[:, i, : len(chunk)] = places
        positions = (relative + self.positions[which][None, :, None]).to(device)
        self.positions[which] += steps
        embeddings = self.model.get_input_embeddings()(ids)
        seen = [f.reshape(-1, f.shape[-1]) for f in features if f is not None and len(f)]
        if seen:
            real = torch.arange(width) < counts[:, None]
            images = (ids == self.encoder.image_pad) & real.to(device)
            embeddings[images] = torch.cat(seen).to(embeddings.dtype)
        mask = self.cache.begin(which, counts, width).to(device)
        hidden = self.model.model.language_model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask={"full_attention": mask},
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        return hidden[torch.arange(len(rows)), counts - 1]

    @torch.no_grad()
    def speak(self, rows: Sequence[int], hidden: torch.Tensor, choose, max_new_tokens: int) -> list[Spoken]:
        """Generate one assistant turn for each row (the header is already fed); vision tokens are never sampled.

        Log-probs are of log-softmax(logits / temperature) over the full vocabulary, before suppression and top-k (contract).
        """
        out = {row: Spoken() for row in rows}
        active = list(rows)
        for count in range(max_new_tokens):
            logits = self.model.lm_head(hidden).float()
            logps = (logits / choose.temperature).log_softmax(-1)
            logits[:, self.encoder.never_sampled] = -torch.inf
            tokens = choose(logits, active)
            picked = logps.gather(1, tokens[:, None])[:, 0].tolist()
            going = []
            for row, token, logp in zip(active, tokens.tolist(), picked):
                out[row].ids.append(token)
                out[row].logps.append(logp)
                self.pending[row] = [token]
                if token != self.encoder.im_end:
                    going.append(row)
            active = going
            if not active or count == max_new_tokens - 1:
                break
            hidden = self.feed(active, [self.pending[row] for row in active], [None] * len(active))
            for row in active:
                self.pending[row] = []
        for row in rows:
            spoken = out[row]
            cut = [] if spoken.ids[-1] == self.encoder.im_end else [self.encoder.im_end]
            self.pending[row] += cut + self.encoder.newline  # a reply cut off by the cap is closed by the environment
            spoken.text = self.encoder.decode(spoken.ids)
        return [out[row] for row in rows]


@lru_cache(maxsize=4096)
def layout(chunk: tuple[int, ...], image_pad: int, grid: tuple[int, int] | None) -> tuple[torch.Tensor, int]:
    """M-RoPE positions [3, n] of a token chunk starting at 0, and the position after it.

    A frame of `grid` = (rows, columns) tokens spans max(rows, columns) positions; text tokens one each.
    """
    columns: list[tuple[int, int, int]] = []
    position, index = 0, 0
    while index < len(chunk):
        if chunk[index] == image_pad:
            columns += [(position, position + y, position + x) for y in range(grid[0]) for x in range(grid[1])]
            position, index = position + max(grid), index + grid[0] * grid[1]
        else:
            columns.append((position,) * 3)
            position, index = position + 1, index + 1
    return torch.tensor(columns).T, position


def run(
    stream: Stream,
    turns: Sequence[Sequence[Turn]],
    features: Sequence[torch.Tensor],
    choose,
    max_new_tokens: int,
    decide: Callable[[torch.Tensor], torch.Tensor] | None = None,
    threshold: float | Sequence[float] = 0.0,
) -> list[list[Spoken]]:
    """Play user turns to every session and let the model answer each turn that has frames.

    `features[r]` [frames, tokens, hidden] are row r's frames in order. With `decide` (a threshold model's head on hidden
    states) the score decides whether the model speaks (above `threshold`, one for all or one a row), and silence adds no
    token. Returns, for each row, one Spoken a turn with frames; text-only turns are read, not answered.
    """
    out: list[list[Spoken]] = [[] for _ in turns]
    used, header = [0] * len(turns), stream.encoder.header
    for number in range(max(map(len, turns), default=0)):
        rows, chunks, seen = [], [], []
        for row, mine in enumerate(turns):
            if number >= len(mine):
                continue
            turn = mine[number]
            stream.pending[row] += stream.encoder.user(turn)
            if turn.frames:
                end = used[row] + len(turn.frames)
                rows.append(row)
                chunks.append(stream.pending[row] + ([] if decide else header))
                seen.append(features[row][used[row] : end])
                used[row], stream.pending[row] = end, []
        if not rows:
            continue
        hidden = stream.feed(rows, chunks, seen)
        spoken = {row: Spoken(text="NO REPLY") for row in rows}
        if decide:
            scores = decide(hidden).tolist()
            limits = [threshold] * len(turns) if isinstance(threshold, float) else threshold
            rows_now = [row for row, score in zip(rows, scores) if score > limits[row]]
            hidden = stream.feed(rows_now, [header] * len(rows_now), [None] * len(rows_now)) if rows_now else None
        else:
            scores, rows_now = [None] * len(rows), rows
        if rows_now:
            spoken |= dict(zip(rows_now, stream.speak(rows_now, hidden, choose, max_new_tokens)))
        for row, score in zip(rows, scores):
            spoken[row].score = score
            out[row].append(spoken[row])
    return out
