"""Keys and values of many sessions: rows of unequal length without holes, and forwards over them that a GPU replays."""

import torch

from .attention import GROUPED

MASKED = 2**26  # entries of a mask over histories fed to empty rows: beyond, causal attention without one (8 of 13k tokens: 11 GB for 3B's heads)


def read(model, cache, embeddings: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The language model's last hidden states [B, W, H] over new embeddings [B, W, H] at M-RoPE positions [3, B, W].

    Whatever attention the model trains with: masks over a ragged cache are not among those that every kernel takes.
    """
    language = model.model.language_model
    before, language.config._attn_implementation = language.config._attn_implementation, GROUPED
    try:
        return language(
            inputs_embeds=embeddings, position_ids=positions, attention_mask={"full_attention": mask}, past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # fmt: skip
    finally:
        language.config._attn_implementation = before


class RaggedCache:
    """Keys and values [rows, heads, capacity, dim] a layer; row r holds its first `lengths[r]` positions.

    Stands in for transformers' Cache: attention calls `update` once a layer with the new keys of the rows set by `begin`.
    `capacity` (tokens a row): how large the buffers are at first; they grow by half, and then they move.
    """

    def __init__(self, layers: int, rows: int, capacity: int = 0):
        self.lengths = torch.zeros(rows, dtype=torch.long)
        self.buffers: list[list[torch.Tensor] | None] = [None] * layers
        self.capacity = capacity
        self.fixed: torch.Tensor | None = None  # [rows, width]: where the next tokens of every row go (see `Replay`)
        self.copied = 0  # bytes of old keys and values moved so far: by growing, and to gather some of the rows

    def begin(self, rows: torch.Tensor, counts: torch.Tensor, width: int, device: torch.device) -> torch.Tensor | None:
        """Announce `counts[i]` new tokens (of `width` slots, right-padded) for each row; returns the mask [R, 1, width, keys].

        None where the rows were empty and a mask would be too large: every slot sees those before it, padding stands last.
        """
        start, alone = self.lengths[rows], len(rows) == 1
        places, self.keys = start[:, None] + torch.arange(width), int((start + counts).max())
        self.whole = alone or len(rows) == len(self.lengths) and bool((rows == torch.arange(len(rows))).all())  # no row need be copied
        # What is new stands at [some, :, slots]; the padding of short rows is written nowhere, or it might not fit.
        if alone:  # slices: nothing is gathered, and no index goes to a GPU
            self.rows, self.new, self.into = slice(int(rows), int(rows) + 1), (0, slice(int(counts))), (int(rows), slice(int(start), self.keys))
        else:
            some, slots = (torch.arange(width) < counts[:, None]).nonzero(as_tuple=True)
            self.new, self.into = (some.to(device), slots.to(device)), (rows[some].to(device), places[some, slots].to(device))
            self.rows = slice(None) if self.whole else rows.to(device)
        self.lengths[rows] = start + counts
        large = not start.any() and len(rows) * width * self.keys > MASKED
        return None if large else (torch.arange(self.keys, device=device) <= places[..., None].to(device))[:, None]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values [R, heads, width, dim]; return all of these rows' up to the longest.

        Both in the values' dtype: under autocast keys come in float32 from their rotation, and attention casts them anyway.
        """
        out, buffers = [], self.buffers[layer]
        if buffers is None or buffers[0].shape[2] < self.keys:
            buffers = self.buffers[layer] = [self._grown(old, value) for old in buffers or (None, None)]
        for buffer, new in zip(buffers, (key.to(value.dtype), value)):
            if self.fixed is None:
                buffer[self.into[0], :, self.into[1]] = new[self.new[0], :, self.new[1]]
            else:  # as many for every row, with shapes and addresses that never change
                buffer.scatter_(2, self.fixed[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3]), new)
            out.append(buffer[self.rows, :, : self.keys])
            if not self.whole:  # a number that changes would be compiled for again
                self.copied += out[-1].nbytes
        return out[0], out[1]

    def _grown(self, old: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        new = like.new_zeros(len(self.lengths), like.shape[1], self.capacity if self.keys <= self.capacity else max(256, int(self.keys * 1.5)), like.shape[3])
        if old is not None:
            new[:, :, : old.shape[2]] = old
            self.copied += old.nbytes
        return new

    def fork(self, copies: int) -> "RaggedCache":
        """A cache with every row repeated `copies` times: the rollouts of a group share their history's work."""
        other = RaggedCache(len(self.buffers), 0, self.capacity)
        other.lengths = self.lengths.repeat_interleave(copies)
        other.buffers = [b and [t.repeat_interleave(copies, dim=0) for t in b] for b in self.buffers]
        return other

    @property
    def room(self) -> int:
        """Tokens a row that the buffers hold now."""
        return self.buffers[0][0].shape[2] if self.buffers[0] else 0

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for pair in self.buffers if pair for t in pair)


class Replay:
    """A forward of `width` tokens for all rows at once, shapes and addresses fixed: on a GPU recorded as a CUDA graph, and replayed.

    Good for as long as the cache's buffers stay where they are (`room` is their size).

    What pads a row, and all of a row that has nothing new, is written behind its last position, where nothing is read and the
    next tokens overwrite it. On a CPU the same forward runs without a graph: the same tokens, slower, as all of the room is
    attended to. `compiled` by torch (half a minute a shape, at most eight shapes a process: torch runs others uncompiled) it is
    faster in a short cache. Needs a cache that has been fed. On a GPU the first call launches its kernels one by one, and the second
    records them: what a graph is to hold must have run before, and a play with one such forward needs none.
    """

    def __init__(self, model, cache: RaggedCache, width: int, compiled: bool = False):
        self.model, self.cache, self.room, self.calls, self.graph = model, cache, cache.room, 0, None
        self.compiled = torch.compile(self._forward, dynamic=False) if compiled else None  # else no cycle that keeps the cache
        rows, device, weight = len(cache.lengths), model.device, model.get_input_embeddings().weight
        self.embeddings = weight.new_zeros(rows, width, weight.shape[1])
        self.places = torch.zeros(rows, width, dtype=torch.long, device=device)
        self.positions = torch.zeros(3, rows, width, dtype=torch.long, device=device)
        self.steps = torch.arange(cache.room, device=device)

    def __call__(self, rows: torch.Tensor, counts: torch.Tensor, embeddings: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Append `counts[i]` of embeddings [R, width, H] at M-RoPE positions [3, R, width] to each row; hidden states [R, width, H]."""
        there = rows.to(self.places.device)
        self.embeddings[there], self.positions[:, there] = embeddings, positions
        self.places.copy_(self.cache.lengths[:, None] + torch.arange(self.places.shape[1]))
        self.cache.fixed, self.cache.keys, self.cache.rows, self.cache.whole = self.places, self.room, slice(None), True
        self.calls, forward = self.calls + 1, self.compiled or self._forward
        try:
            hidden = forward() if there.device.type == "cpu" or self.calls == 1 else self._replayed(forward)
        finally:
            self.cache.fixed = None
        self.cache.lengths[rows] += counts
        return hidden[there]

    def _forward(self) -> torch.Tensor:
        return read(self.model, self.cache, self.embeddings, self.positions, (self.steps <= self.places[..., None])[:, None])

    def _replayed(self, forward) -> torch.Tensor:
        if self.graph is None:
            graph = torch.cuda.CUDAGraph()
            torch._C._cuda_clearCublasWorkspaces()  # each graph has its own: one that goes takes its workspace with it (pytorch #193402)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may talk to the GPU meanwhile
                self.hidden = forward()
            torch._C._cuda_clearCublasWorkspaces()
            self.graph = graph
        self.graph.replay()
        return self.hidden
