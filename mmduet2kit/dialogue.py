"""The data model: frame clock, spans, turns, gold answers; read and written in the upstream schemas (JSONL).

Times are seconds of video. Frame k (from 1) shows time (k - 1) * interval and is consumed at k * interval; a turn's time,
and its reply's, is the number of frames consumed so far times the interval (paper section 4.1; upstream inference).
"""

from dataclasses import dataclass, replace

NO_REPLY = "NO REPLY"
SUBTITLE = "Subtitle: "  # how a user turn begins that asks nothing (TV)

# Paper, Figure 2 (needed verbatim: released checkpoints are conditioned on it).
PROACTIVE_SYSTEM = (
    "You are a helpful assistant. Your task is to answer questions based on continuously incoming video frames. "
    "Your responses should include information from the video since your last reply (if any). If the information in "
    'this segment of the video cannot answer the question, output "NO REPLY".'
)
DEFAULT_SYSTEM = "You are a helpful assistant."  # Qwen2.5-VL's own, for offline data (paper section 5.2)


@dataclass(frozen=True)
class Gold:
    """One gold turn: `text` answers `question` within [start, end]; `related_end` is when the event has left the screen."""

    start: float
    end: float
    text: str
    question: str = ""
    related_end: float | None = None


@dataclass(frozen=True)
class Turn:
    """A user turn (frames, text or both) with the assistant's answer to it.

    `frames` are 0-based indices into the video's frames at `interval`; `reply` is the assistant's text, NO_REPLY, or None
    where the assistant does not speak at all (a text-only turn, or not yet rolled out).
    """

    frames: tuple[int, ...] = ()
    text: str | None = None
    reply: str | None = None


@dataclass(frozen=True)
class Dialogue:
    """A proactive dialogue about one video at one frame interval."""

    id: str
    video: str
    interval: float
    turns: tuple[Turn, ...]
    gold: tuple[Gold, ...] = ()
    domain: str = ""
    kind: str = ""  # 1QnA, nQnA, offline
    system: str = PROACTIVE_SYSTEM
    skipped: int = 0  # frames that were consumed before those of the turns (a history that was cut)

    def times(self) -> list[float]:
        """The clock time of every turn."""
        times, consumed = [], self.skipped
        for turn in self.turns:
            consumed += len(turn.frames)
            times.append(consumed * self.interval)
        return times

    def frame_indices(self) -> list[int]:
        """All frames in the order the model sees them."""
        return [index for turn in self.turns for index in turn.frames]

    def with_replies(self, replies: list[str | None]) -> "Dialogue":
        return replace(self, turns=tuple(replace(t, reply=r) for t, r in zip(self.turns, replies, strict=True)))


def user_turns(frame_count: int, frames_per_turn: int, interval: float, texts: list[tuple[float, str]], text_only: bool) -> list[Turn]:
    """Cut `frame_count` frames into user turns and put each text where it belongs.

    A text of time t stands, with `text_only`, in a turn of its own before the first frame that is consumed after t
    (the benchmark's files); else behind the frames of the first turn whose time is >= t (Figure 2).
    """
    pending = sorted(texts, key=lambda item: item[0])
    turns: list[Turn] = []
    for start in range(0, frame_count, frames_per_turn):
        frames = tuple(range(start, min(start + frames_per_turn, frame_count)))
        before, now = start * interval, (frames[-1] + 1) * interval
        due = [text for time, text in pending if (time <= before + 1e-6 if text_only else time <= now + 1e-6)]
        pending = pending[len(due) :]
        if text_only:
            turns += [Turn(text=text) for text in due] + [Turn(frames=frames)]
        else:
            turns.append(Turn(frames=frames, text="\n".join(due) or None))
    return turns


def to_sft_row(dialogue: Dialogue) -> dict:
    """The upstream SFT schema (ms-swift): messages with one `<image>` a frame, images, metadata."""
    messages = [{"role": "system", "content": dialogue.system}]
    for turn in dialogue.turns:
        messages.append({"role": "user", "content": "<image>" * len(turn.frames) + (turn.text or "")})
        if turn.reply is not None:
            messages.append({"role": "assistant", "content": turn.reply})
    paths = [f"{dialogue.video}:::{index * dialogue.interval:g}" for index in dialogue.frame_indices()]
    return {
        "messages": messages,
        "images": [{"path": path} for path in paths],  # the video, and the time that the frame shows in seconds
        "metadata": {
            "question_id": dialogue.id, "video_id": dialogue.video, "domain": dialogue.domain, "kind": dialogue.kind,
            "interval": dialogue.interval, "gold": [[g.start, g.end, g.text, g.question] for g in dialogue.gold],
        },
    }  # fmt: skip


def from_sft_row(row: dict) -> Dialogue:
    """Read one row of the upstream SFT schema."""
    meta, turns, used = row["metadata"], [], 0
    seconds = [float(image["path"].rpartition(":::")[2]) for image in row["images"]]
    system = DEFAULT_SYSTEM
    for message in row["messages"]:
        if message["role"] == "system":
            system = message["content"]
        elif message["role"] == "user":
            count = message["content"].count("<image>")
            frames = tuple(round(time / meta["interval"]) for time in seconds[used : used + count])
            used += count
            turns.append(Turn(frames, message["content"].replace("<image>", "") or None))
        else:
            turns[-1] = replace(turns[-1], reply=message["content"])
    return Dialogue(
        meta["question_id"], meta["video_id"], meta["interval"], tuple(turns), tuple(Gold(*g) for g in meta["gold"]),
        meta["domain"], meta["kind"], system,
    )  # fmt: skip


@dataclass(frozen=True)
class Segment:
    """One RL row: the dialogue, and the turns [first, last) that are rolled out; turns before `first` are history.

    `gold` holds only the spans scored on this segment, clipped to its end (contract, RL segments).
    """

    dialogue: Dialogue
    first: int
    last: int
    gold: tuple[Gold, ...]

    def history_replies(self) -> list[str]:
        """Ground-truth replies before the segment: they count for r_rep and r_pfx."""
        return [t.reply for t in self.dialogue.turns[: self.first] if t.reply not in (None, NO_REPLY)]

    def rollout_times(self) -> list[float]:
        """Clock times of the rolled-out turns that get an assistant turn (those with frames)."""
        times = self.dialogue.times()
        return [times[k] for k in range(self.first, self.last) if self.dialogue.turns[k].frames]


def to_rl_row(segment: Segment) -> dict:
    """The upstream RL schema (verl): prompt up to the segment, images, ground truth; `user_turns` is its turn file.

    `prev_assistant_replies` stands inside `ground_truth`, where the released reward reads it.
    """
    d = segment.dialogue
    before = to_sft_row(replace(d, turns=d.turns[: segment.first]))
    truth = {
        "question_id": d.id,
        "answer": [{"content": g.text, "question": g.question, "reply_timespan": [g.start, g.end]} for g in segment.gold],
        "model_pred_timestamps": segment.rollout_times(),
        "prev_assistant_replies": segment.history_replies(),
    }
    extra = {"num_images": len(before["images"]), "segment": [segment.first, segment.last], "dialogue": to_sft_row(d)}
    return {
        "data_source": f"proactive/{d.domain}",
        "prompt": before["messages"],
        "images": [{"image": image["path"], "type": "image"} for image in before["images"]],
        "ability": "proactive",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": extra,
    }


def from_rl_row(row: dict) -> Segment:
    """Read one row of the upstream RL schema."""
    info, answers = row["extra_info"], row["reward_model"]["ground_truth"]["answer"]
    gold = tuple(Gold(*answer["reply_timespan"], answer["content"], answer["question"]) for answer in answers)
    return Segment(from_sft_row(info["dialogue"]), *info["segment"], gold)
