"""THE encoder: dialogue -> token ids, labels, loss weights. SFT, rollouts and inference all use it (design, rule 1).

The text equals Qwen2.5-VL's own chat template byte for byte (a test compares them); generated ids are kept as they are.
One image per frame, so that M-RoPE carries no absolute time and the clock is the number of frames (paper section 4.1).
"""

from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache

from .corpus.video import SIDE
from .dialogue import NO_REPLY, Dialogue, Turn

IGNORE = -100
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def message_text(role: str, content: str, frames: int = 0) -> str:
    """One message as text: frames first, then the words (Figure 2)."""
    return f"<|im_start|>{role}\n{'<|vision_start|><|image_pad|><|vision_end|>' * frames}{content}<|im_end|>\n"


def dialogue_text(dialogue: Dialogue, silence: bool = True) -> str:
    """The whole dialogue as text, one `<|image_pad|>` a frame (the template before the processor expands it)."""
    parts = [message_text("system", dialogue.system)]
    for turn in dialogue.turns:
        parts.append(message_text("user", turn.text or "", len(turn.frames)))
        if turn.reply is not None and (silence or turn.reply != NO_REPLY):
            parts.append(message_text("assistant", turn.reply))
    return "".join(parts)


@dataclass
class Encoded:
    """One encoded dialogue; all lists have one entry a token, except `frames` (one a frame) and `decisions`."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    decisions: list[tuple[int, int]] = field(default_factory=list)  # (token position, turn) where the model decides

    def add(self, ids: list[int], learn: bool = False, weight: float = 1.0) -> None:
        self.ids += ids
        self.labels += ids if learn else [IGNORE] * len(ids)
        self.weights += [weight if learn else 0.0] * len(ids)


FORMS = ("turns", "frames")


class ChatEncoder:
    """Encodes dialogues for one tokenizer. `tokens_per_frame`: visual tokens of a frame; `of` gives the encoder for others.

    form: `turns`, the paper's (section 4.1), or `frames`, its Appendix A: the user's turn stays open, and where the model
    decides, the next token is `<|vision_start|>` (one more frame) or `<|im_end|>` (its own turn); silence adds no token.
    """

    def __init__(self, tokenizer, tokens_per_frame: int, form: str = "turns"):
        self.tokenizer, self.form = tokenizer, form
        self.tokens_per_frame = tokens_per_frame
        ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIALS}
        self.im_start, self.im_end = ids["<|im_start|>"], ids["<|im_end|>"]
        self.image_pad = ids["<|image_pad|>"]
        self.newline = [*self._text("\n")]
        self.header = [self.im_start, *self._text("assistant\n")]
        if form == "frames":  # the user's turn is still open when the model speaks
            self.header = [self.im_end, *self.newline, *self.header]
        self.vision_start = ids["<|vision_start|>"]
        self.frame = [self.vision_start, *[self.image_pad] * tokens_per_frame, ids["<|vision_end|>"]]
        self.silence, self.sizes = self.reply(NO_REPLY), {tokens_per_frame: self}
        # A sampled vision token would crash the forward pass or, worse, drop all images silently (trl, transformers).
        self.never_sampled = [ids[name] for name in SPECIALS if name != "<|im_end|>"]

    def of(self, frames) -> "ChatEncoder":
        """The encoder for frames [N, H, W, 3] of this shape."""
        return self.sized((frames.shape[1] // SIDE) * (frames.shape[2] // SIDE))

    def sized(self, tokens: int) -> "ChatEncoder":
        """The encoder for frames of so many visual tokens: videos of other shapes have other numbers."""
        if tokens not in self.sizes:
            other = self.sizes[tokens] = copy(self)
            other.tokens_per_frame = tokens
            other.frame = [self.vision_start, *[self.image_pad] * tokens, self.frame[-1]]
        return self.sizes[tokens]

    @lru_cache(maxsize=65536)  # noqa: B019 - one encoder lives as long as its process
    def _text(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def system(self, text: str) -> list[int]:
        return [self.im_start, *self._text(f"system\n{text}"), self.im_end, *self.newline]

    def user(self, turn: Turn, begun: bool = False) -> list[int]:
        """A user turn, closed: frames, then text. In the format `frames` it stays open, and `begun` says that it is already."""
        apart = bool(turn.frames) or self.form == "frames"  # else the words follow "user" at once, and are one text with it
        start = [] if begun else [self.im_start, *self._text("user\n" if apart else f"user\n{turn.text or ''}")]
        words = self._text(turn.text) if turn.text and apart else ()
        end = [] if self.form == "frames" else [self.im_end, *self.newline]
        return [*start, *self.frame * len(turn.frames), *words, *end]

    def reply(self, text: str) -> list[int]:
        """What the assistant itself writes: its words and the end token (the newline after it is the environment's)."""
        return [*self._text(text), self.im_end]

    def closing(self, ids: list[int]) -> list[int]:
        """What the environment writes behind a reply of these ids: the end token, if a cap cut it off, and the newline."""
        return ([] if ids[-1:] == [self.im_end] else [self.im_end]) + self.newline

    def decode(self, ids: list[int]) -> str:
        """Text of a sampled reply, special tokens removed."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def encode(self, dialogue: Dialogue, no_reply_weight: float = 1.0, silence: bool = True) -> Encoded:
        """Encode a dialogue; labels on assistant turns only, end token included.

        `no_reply_weight` weighs the loss of NO REPLY turns (in the format `frames`: of the choice of one more frame). With
        `silence=False` silent turns leave no tokens at all. `decisions` lists where the model decides in the format `frames`,
        or a threshold model does (the last token of each user turn with frames).
        """
        out, begun, silent, frames = Encoded(), False, False, self.form == "frames"
        out.add(self.system(dialogue.system))
        for number, turn in enumerate(dialogue.turns):
            ids = self.user(turn, begun)
            if frames and silent and ids[:1] == [self.vision_start]:
                out.add(ids[:1], learn=True, weight=no_reply_weight)
                ids = ids[1:]
            out.add(ids)
            out.frames += turn.frames
            begun, silent = frames, False
            if turn.reply is None:
                continue
            out.decisions.append((len(out.ids) - 1, number))
            silent = turn.reply == NO_REPLY
            if frames and silent:
                continue
            if silence or not silent:
                out.add(self.header[:1], learn=frames)
                out.add(self.header[1:])
                out.add(self.reply(turn.reply), learn=True, weight=no_reply_weight if silent else 1.0)
                out.add(self.newline)
                begun = False
        return out
