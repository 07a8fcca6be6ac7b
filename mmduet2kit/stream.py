"""Streaming sessions over a growing KV cache: only new frames are encoded, only new tokens are fed.

Many sessions run as one batch although their turns and ends differ: every row of the cache has its own length, so there
are no holes and no left padding. M-RoPE positions are explicit (trl_design: the obvious `generate` calls on a cache that
is not empty fail or are silently wrong). Float32 results equal a full re-encode to about 1e-6 (tests/test_stream.py).

Silence is cheap: the tokens of NO REPLY are fed together with the turn, and the model's choice is checked at each of them
(`ahead`); where it chooses otherwise, the row goes back to the last token both agree on. A stream longer than its `limit`
forgets its oldest frames (`Stream.forget`).
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch

from .cache import RaggedCache, Replay, read
from .chat import ChatEncoder
from .dialogue import NO_REPLY, SUBTITLE, Turn
from .errors import UserError
from .model import normalised, patches

REPLAYED = 512  # slots of a forward (rows x width): beyond, arithmetic should take longer than launching (a guess for a 3B on an H200)


@dataclass
class Spoken:
    """One assistant turn: its token ids (end token included unless cut off), log-probs a token, text, and score if decided.

    silence: log-prob of the whole NO REPLY, end token included, where it was fed ahead (at the temperature of `logps`).
    """

    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    text: str = ""
    score: float | None = None
    silence: float | None = None

    @property
    def speaking(self) -> float | None:
        """The probability of speaking at this turn, whatever was chosen: the score, or what NO REPLY leaves; None if not known."""
        return self.score if self.score is not None or self.silence is None else -math.expm1(self.silence)


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
        self.temperature, self.top_k, self.keys = temperature, top_k, keys
        self.draws = [np.random.Generator(np.random.Philox(np.random.SeedSequence(key))) for key in keys]

    def __call__(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        logits = logits / self.temperature
        if self.top_k:
            kept = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < kept, -torch.inf)
        uniform = torch.tensor([[self.draws[row].random()] for row in rows], dtype=torch.float64, device=logits.device)
        cumulative = logits.double().softmax(-1).cumsum(-1)
        return (cumulative <= uniform * cumulative[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)


@dataclass
class Heard:
    """One user turn as a session remembers it: its text, its frames' features (see `Stream.see`), the reply's ids."""

    text: str | None
    features: torch.Tensor | None
    reply: list[int] | None = None


class Stream:
    """A batch of streaming sessions of one model; row r is one session. All methods run without gradients.

    limit: tokens that a session may hold (0: no limit, and nothing is remembered for re-encoding).
    ahead: feed NO REPLY with the turn and verify it in one forward. graphs: forwards of few tokens have fixed shapes
    (`cache.Replay`; compiled, if so wanted: give it a capacity), recorded anew where the cache has grown. capacity: tokens a row
    that it then holds from the start, at least (default: the limit).
    """

    def __init__(self, model, encoder: ChatEncoder, image_processor, rows: int, *, limit: int = 0, ahead: bool = True,
                 graphs: bool = False, compiled: bool = False, capacity: int = 0):
        self.model, self.encoder, self.image_processor = model, encoder, image_processor
        self.limit, self.ahead, self.graphs, self.compiled = limit, ahead, graphs, compiled
        self.cache = RaggedCache(model.config.text_config.num_hidden_layers, rows, (capacity or limit) if graphs else 0)
        self.positions = torch.zeros(rows, dtype=torch.long)
        self.pending: list[list[int]] = [[] for _ in range(rows)]
        self.start: list[list[int]] = [[] for _ in range(rows)]
        self.heard: list[list[Heard]] = [[] for _ in range(rows)]
        self.begun = [False] * rows  # format `frames`: is the user's turn open?
        self.counts: Counter = Counter()  # decisions, silent, accepted (silences verified ahead), forwards, replayed, forgotten
        self.replays: dict[int, Replay] = {}  # by their width

    def fork(self, copies: int) -> "Stream":
        """Every session repeated `copies` times, one after another."""
        other = Stream(self.model, self.encoder, self.image_processor, 0, limit=self.limit, ahead=self.ahead, graphs=self.graphs, compiled=self.compiled)
        other.cache, other.positions = self.cache.fork(copies), self.positions.repeat_interleave(copies)
        for name in ("pending", "start", "heard"):
            setattr(other, name, [list(one) for one in getattr(self, name) for _ in range(copies)])
        other.begun = [one for one in self.begun for _ in range(copies)]
        return other

    def begin(self, row: int, ids: Sequence[int]) -> None:
        """How a session starts (the system prompt's ids); fed with its first turn."""
        self.start[row], self.pending[row] = list(ids), list(ids)

    @torch.no_grad()
    def see(self, frames: np.ndarray) -> torch.Tensor:
        """Vision features of frames [N, H, W, 3]: [N, H / 28, W / 28, hidden]; each video has its own shape."""
        (parts, grid), visual = patches(self.image_processor, [frames], self.model.device), self.model.model.visual
        features = visual(normalised(self.image_processor, parts).to(visual.dtype), grid_thw=grid.to(self.model.device)).pooler_output
        return features.view(len(frames), int(grid[0, 1]) // 2, int(grid[0, 2]) // 2, -1)

    @torch.no_grad()
    def feed(self, rows: Sequence[int], chunks: Sequence[list[int]], features: Sequence[torch.Tensor | None], last: int = 1) -> torch.Tensor:
        """Append token chunks to sessions; `features[i]` (see `see`) fills chunk i's image tokens in order.

        Returns the hidden states after each chunk's `last` last tokens, [len(rows), last, hidden].
        """
        device, which, counts = self.model.device, torch.tensor(rows), torch.tensor([len(chunk) for chunk in chunks])
        width, replay = self._shape(int(counts.max()))
        ids = torch.tensor([chunk + [self.encoder.im_end] * (width - len(chunk)) for chunk in chunks], device=device)
        relative, steps = torch.zeros(3, len(rows), width, dtype=torch.long), torch.zeros(len(rows), dtype=torch.long)
        for i, chunk in enumerate(chunks):
            grid = None if features[i] is None else tuple(features[i].shape[1:3])
            relative[:, i, : len(chunk)], steps[i] = layout(tuple(chunk), self.encoder.image_pad, grid)
        positions = (relative + self.positions[which][None, :, None]).to(device)
        self.positions[which] += steps
        embeddings = self.model.get_input_embeddings()(ids)
        seen = [f.reshape(-1, f.shape[-1]) for f in features if f is not None and len(f)]
        if seen:
            embeddings[(ids == self.encoder.image_pad) & (torch.arange(width) < counts[:, None]).to(device)] = torch.cat(seen).to(embeddings.dtype)
        hidden = replay(which, counts, embeddings, positions) if replay else read(
            self.model, self.cache, embeddings, positions, self.cache.begin(which, counts, width, device))  # fmt: skip
        self.counts.update(forwards=1, replayed=int(replay is not None))
        return hidden[torch.arange(len(rows))[:, None], counts[:, None] - last + torch.arange(last)]

    def _shape(self, width: int) -> tuple[int, Replay | None]:
        """How wide a forward of `width` tokens a row is, and what replays it: None where many tokens hide what launching costs."""
        fixed = width if width == 1 else -(-width // 32) * 32
        if not self.graphs or len(self.begun) * fixed > REPLAYED or int(self.cache.lengths.max()) + fixed > self.cache.room:
            return width, None
        if fixed not in self.replays or self.replays[fixed].room != self.cache.room:
            self.replays[fixed] = Replay(self.model, self.cache, fixed, self.compiled)
        return fixed, self.replays[fixed]

    def _go_back(self, row: int, tokens: int) -> None:
        """Take the last text tokens of a session's cache back."""
        self.cache.lengths[row] -= tokens
        self.positions[row] -= tokens

    def _next(self, rows: Sequence[int]) -> torch.Tensor:
        """Feed the one pending token of each row; hidden states [len(rows), H]."""
        hidden = self.feed(rows, [self.pending[row] for row in rows], [None] * len(rows))[:, 0]
        for row in rows:
            self.pending[row] = []
        return hidden

    @torch.no_grad()
    def speak(self, rows: Sequence[int], hidden: torch.Tensor, choose, max_new_tokens: int) -> list[Spoken]:
        """Generate one assistant turn for each row; vision tokens are never sampled.

        hidden [len(rows), 1 + d, H]: after the header, and after each of d tokens of NO REPLY that were fed ahead.
        Log-probs are of log-softmax(logits / temperature) over the full vocabulary, before suppression and top-k (contract).
        """
        out, ahead = {row: Spoken() for row in rows}, self.encoder.silence[: hidden.shape[1] - 1]
        active, agreed, states = list(rows), dict.fromkeys(rows, True), dict(zip(rows, hidden))
        silence = self.encoder.silence[: hidden.shape[1]] if ahead else []  # what may follow each of `hidden`
        quiet: dict[int, list[float]] = {row: [] for row in rows}  # the log-probs of silence's tokens, as far as they are known
        current = hidden[:, 0]
        for count in range(max_new_tokens):
            logits = self.model.lm_head(current).float()
            logps = (logits / choose.temperature).log_softmax(-1)
            logits[:, self.encoder.never_sampled] = -torch.inf
            tokens = choose(logits, active)
            picked = logps.gather(1, tokens[:, None])[:, 0].tolist()
            if count < len(silence):
                for row, logp in zip(active, logps[:, silence[count]].tolist()):
                    quiet[row] += [logp] if agreed[row] else []
            for row, token, logp in zip(active, tokens.tolist(), picked):
                out[row].ids.append(token)
                out[row].logps.append(logp)
                if not (agreed[row] and count < len(ahead)):
                    self.pending[row] = [token]
                elif token != ahead[count]:
                    agreed[row], self.pending[row] = False, [token]
                    self._go_back(row, len(ahead) - count)
            active = [row for row in active if out[row].ids[-1] != self.encoder.im_end]
            if not active or count == max_new_tokens - 1:
                break
            fed = [row for row in active if self.pending[row]]
            new = dict(zip(fed, self._next(fed))) if fed else {}
            current = torch.stack([new[row] if row in new else states[row][count + 1] for row in active])
        rest = [(row, k) for row in rows for k in range(len(quiet[row]), len(silence))]
        if rest:  # of the rows that spoke
            logits = self.model.lm_head(torch.stack([states[row][k] for row, k in rest])).float()
            for (row, k), logps in zip(rest, (logits / choose.temperature).log_softmax(-1)):
                quiet[row].append(float(logps[silence[k]]))
        for row in rows:
            spoken = out[row]
            spoken.silence = sum(quiet[row]) if silence else None
            if agreed[row] and len(spoken.ids) < len(ahead):  # the cap ended it within NO REPLY
                self._go_back(row, len(ahead) - len(spoken.ids))
            self.pending[row] += self.encoder.closing(spoken.ids)
            spoken.text = self.encoder.decode(spoken.ids)
            self.counts["accepted"] += bool(ahead) and agreed[row] and spoken.ids == self.encoder.silence
        return [out[row] for row in rows]

    def turn(self, rows: Sequence[int], turns: Sequence[Turn], features: Sequence[torch.Tensor | None], choose,
             max_new_tokens: int, decide: Callable | None = None, thresholds: Sequence[float] = ()) -> dict[int, Spoken]:  # fmt: skip
        """One user turn for each of these rows, and the model's answer to those with frames: {row: what it said}.

        A turn without frames is read, not answered. With `decide` (a threshold model's head on hidden states) the score
        decides whether the model speaks (above the row's threshold), and silence adds no token.
        """
        asked, chunks, seen = [], [], []
        if self.encoder.form == "frames":
            decide, thresholds = self._own_turn, [0.5] * len(rows)
        ahead = [] if decide or not self.ahead else self.encoder.silence[:-1]
        for row, turn, frames in zip(rows, turns, features, strict=True):
            encoder = self.encoder.sized(frames.shape[1] * frames.shape[2]) if turn.frames else self.encoder
            self.pending[row] += encoder.user(turn, self.begun[row])
            self.begun[row] = self.encoder.form == "frames"
            if self.limit:
                self.heard[row].append(Heard(turn.text, frames if turn.frames else None))
            if turn.frames:
                tail = ([] if decide else self.encoder.header) + ahead
                reserve = len(self.encoder.header) + len(ahead) + max_new_tokens  # a header that follows a decision too
                if self.limit and int(self.cache.lengths[row]) + len(self.pending[row]) + reserve > self.limit:
                    frames = self.forget(row, reserve)
                asked.append(row)
                chunks.append(self.pending[row] + tail)
                seen.append(frames)
                self.pending[row] = []
        if not asked:
            return {}
        hidden = self.feed(asked, chunks, seen, 1 + len(ahead))
        spoken, scores, speaking = {row: Spoken(text=NO_REPLY) for row in asked}, {}, asked
        if decide:
            scores = dict(zip(asked, decide(hidden[:, 0]).tolist()))
            limits = dict(zip(rows, thresholds))
            speaking = [row for row in asked if scores[row] > limits[row]]
            header = self.encoder.header
            hidden = self.feed(speaking, [header] * len(speaking), [None] * len(speaking)) if speaking else None
        if speaking:
            spoken |= dict(zip(speaking, self.speak(speaking, hidden, choose, max_new_tokens)))
        for row in asked:
            spoken[row].score = scores.get(row)
            self.begun[row] &= row not in speaking
            self.counts.update(decisions=1, silent=spoken[row].text == NO_REPLY)
            if self.limit and spoken[row].ids:
                self.heard[row][-1].reply = spoken[row].ids
        return spoken

    def _own_turn(self, hidden: torch.Tensor) -> torch.Tensor:
        """P(the user's turn ends) against P(one more frame), renormalised over the two (paper, Appendix A); [R]."""
        logits = self.model.lm_head(hidden).float()[:, [self.encoder.im_end, self.encoder.vision_start]]
        return logits.softmax(-1)[:, 0]

    def forget(self, row: int, reserve: int) -> torch.Tensor:
        """Drop the oldest frames until the session fills half its limit (with `reserve` tokens to come); returns those kept.

        System prompt, questions, replies and the latest frames stay; subtitles go with the frames of their time. A turn with
        nothing left goes; one that keeps its words keeps its place. The session is encoded anew with positions from 0: from
        here on it equals a fresh one that was told what is left. Where words alone fill three quarters of the limit, the
        oldest turns go whole, questions last (counted as `turns`).
        """
        turns, encoder = self.heard[row], self.encoder
        silent, goal = encoder.silence, self.limit // 2

        def ids(one: Heard, begun: bool = False) -> list[int]:
            frames = tuple(range(len(one.features))) if one.features is not None else ()
            sized = encoder.sized(one.features.shape[1] * one.features.shape[2]) if frames else encoder
            if not frames and not one.text and one.reply in (None, silent):
                return []
            said = [] if one.reply is None else encoder.header + one.reply + encoder.closing(one.reply)
            return sized.user(Turn(frames, one.text), begun) + said

        sizes = [len(ids(one)) for one in turns]
        for k, one in enumerate(turns[:-1]):
            if len(self.start[row]) + sum(sizes) + reserve <= goal:
                break
            self.counts["forgotten"] += 0 if one.features is None else len(one.features)
            turns[k] = replace(one, features=None, text=None if (one.text or "").startswith(SUBTITLE) else one.text)
            sizes[k] = len(ids(turns[k]))
        for k in sorted(range(len(turns) - 1), key=lambda k: bool(turns[k].text)):
            if len(self.start[row]) + sum(sizes) + reserve <= self.limit * 3 // 4:
                break
            self.counts["turns"] += sizes[k] > 0
            sizes[k] = 0
        kept, begun, self.pending[row] = [one for one, size in zip(turns, sizes) if size], False, list(self.start[row])
        for one in kept:
            self.pending[row] += ids(one, begun)
            begun = encoder.form == "frames" and one.reply is None
        self.heard[row] = kept
        if len(self.pending[row]) + reserve > self.limit:
            raise UserError(f"A turn of {len(self.pending[row])} tokens plus {reserve} for its reply does not fit a context of {self.limit}: "
                            "raise --context, or lower --max-new-tokens.")
        self.cache.lengths[row] = self.positions[row] = 0
        self.counts["re-encoded"] += 1
        frames = [one.features for one in kept if one.features is not None]
        return torch.cat(frames) if frames else None


@lru_cache(maxsize=256)  # of long chunks each is half a megabyte
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


def run(stream: Stream, turns: Sequence[Sequence[Turn]], features: Sequence[torch.Tensor], choose, max_new_tokens: int,
        decide: Callable[[torch.Tensor], torch.Tensor] | None = None, threshold: float | Sequence[float] = 0.0,
        heard: Callable[[int, list[Spoken]], None] | None = None) -> list[list[Spoken]]:  # fmt: skip
    """Play user turns to every session and let the model answer each turn that has frames.

    `features[r]` (see `Stream.see`) are row r's frames in order. With `decide` (a threshold model's head on hidden
    states) the score decides whether the model speaks (above `threshold`, one for all or one a row), and silence adds no
    token. `heard(row, what it said so far)` is called after each of its turns. Returns, for each row, one Spoken a turn with
    frames; text-only turns are read, not answered.
    """
    out: list[list[Spoken]] = [[] for _ in turns]
    used = [0] * len(turns)
    limits = [threshold] * len(turns) if isinstance(threshold, float) else threshold
    for number in range(max(map(len, turns), default=0)):
        rows = [row for row, mine in enumerate(turns) if number < len(mine)]
        seen = []
        for row in rows:
            end = used[row] + len(turns[row][number].frames)
            seen.append(features[row][used[row] : end])
            used[row] = end
        said = stream.turn(rows, [turns[row][number] for row in rows], seen, choose, max_new_tokens, decide, [limits[row] for row in rows])
        for row, spoken in said.items():
            out[row].append(spoken)
            if heard:
                heard(row, out[row])
    return out
