"""How a benchmark's questions are put to a model, and how an evaluation goes on where it was killed.

**Push** (the kit's, after the released inference): frames arrive one turn after another with the question (and TV's subtitles)
as text-only turns at their own times; after every turn with frames the model decides once, by itself: it speaks or says NO
REPLY. A reply's time is the clock of its turn. No text that the model reads holds an answer, a span or a hint that now is the
time. ProactiveVideoQA: from the video's first frame to its last; by its own scripts (seen in ports of them)
models that cannot wait are asked anew each second with the clip so far (answerable? what is the answer?), and replies have that clip's end as their time, which this clock
gives too. StreamingBench PO: from the question's time to 4 s after the gold time, which are the frames of its poll; the model is
not told where that ends, and what came later would be wrong by every rule.

**Poll** (StreamingBench's own, src/benchmark/StreamingBenchProactive.py and src/data/count.py @8929923): each second from 1 s
after the question until 4 s after the gold time the model is shown, as a new conversation, the clip from the question until
now, and asked whether it is the right time to output the gold text, which it so reads; the first answer with "yes" in it, in
any case, is followed by the question itself on the same clip, and ends it. Both are greedy here, under Qwen's default system
prompt; the paragraph around the question is worded anew.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .corpus.dialogues import frame_count, from_benchmark
from .dialogue import DEFAULT_SYSTEM, NO_REPLY, Dialogue, Turn
from .files import read_json, sha256_text, write_json

AFTER = 4.0  # s behind the gold time at which the official poll ends
FRAME = "Look at these frames of a video and answer the question about them. Say only what the frames show.\n\nQuestion: {}\n\nAnswer:"
NOW = '{} Is it the right time to output "{}"? You can only answer yes or no.'  # official, the question before it


def official(record: dict) -> bool:
    """Is this StreamingBench's proactive output: a question with a time, and a time for one given output?"""
    return "ground_truth_time_stamp" in record


def _clip(record: dict, interval: float, until: float) -> tuple[int, ...]:
    """The frames from the question's time until `until`; at least one."""
    end = frame_count(min(until, record["duration"]), interval)
    start = min(int(record["time_stamp"] / interval + 1e-6), end - 1)
    return tuple(range(start, end))


def push(record: dict, interval: float, per_turn: int) -> Dialogue:
    """A benchmark's record as the dialogue that the push protocol plays."""
    whole = from_benchmark(record, interval, per_turn)
    if not official(record):
        return whole
    frames = _clip(record, interval, record["ground_truth_time_stamp"] + AFTER)
    turns = [Turn(text=record["conversation"][0]["content"])] + [Turn(frames[k : k + per_turn]) for k in range(0, len(frames), per_turn)]
    return Dialogue(whole.id, whole.video, interval, tuple(turns), whole.gold, whole.domain, whole.kind, skipped=frames[0])


def poll(records: Sequence[dict], interval: float, ask: Callable[[list[Dialogue]], list[str]]) -> list[tuple[list[tuple[float, str]], int]]:
    """([(s, answer)] of the poll that said yes, or none; polls made) for each record. `ask` answers one-turn dialogues."""
    def put(k: int, now: float, text: str) -> Dialogue:
        turn = Turn(_clip(records[k], interval, now), FRAME.format(text))
        return Dialogue(records[k]["question_id"], records[k]["video"], interval, (turn,), system=DEFAULT_SYSTEM)

    out: list[tuple[list[tuple[float, str]], int]] = [([], 0) for _ in records]
    waiting, seconds = list(range(len(records))), 0
    while waiting := [k for k in waiting if records[k]["time_stamp"] + seconds + 1 <= records[k]["ground_truth_time_stamp"] + AFTER]:
        seconds += 1
        now = {k: records[k]["time_stamp"] + seconds for k in waiting}
        texts = {k: (records[k]["conversation"][0]["content"], records[k]["ground_truth_output"]) for k in waiting}
        said = ask([put(k, now[k], NOW.format(*texts[k])) for k in waiting])
        yes = [k for k, text in zip(waiting, said, strict=True) if "yes" in text.lower()]
        answers = dict(zip(yes, ask([put(k, now[k], texts[k][0]) for k in yes]) if yes else [], strict=True))
        for k in waiting:  # the rules take NO REPLY for silence; here it is an answer like any
            out[k] = ([(now[k], answers[k].strip().removeprefix(NO_REPLY))] if k in answers else [], seconds)
        waiting = [k for k in waiting if k not in answers]
    return out


@dataclass
class Pieces:
    """The outcomes of an evaluation's batches, a file each in a folder named by all that they depend on.

    A piece that is there is not made again, by whomever it was made: a killed evaluation goes on, and of `share` (i, N) the
    pieces k with k % N == i are made here, in any order and on any machine that sees the folder. Batches are the same for every
    N, so that the whole is the same too.
    """

    folder: Path
    share: tuple[int, int] = (0, 1)
    counted: int = 0

    @classmethod
    def of(cls, place: Path, key: str, share: tuple[int, int]) -> "Pieces":
        """Under `place`; key: what the outcomes depend on, this code apart."""
        code = "".join(path.read_text() for path in sorted(Path(__file__).parent.rglob("*.py")))
        return cls(place / sha256_text(key + code)[:16], share)

    def make(self, names: Collection[str], work: Callable[[str], dict], progress: Callable[[int, int], None]) -> None:
        """work(name) for those of this share that are not there."""
        mine = [name for k, name in enumerate(names, self.counted) if k % self.share[1] == self.share[0]]
        self.counted += len(names)
        for done, name in enumerate(mine, start=1):
            if not self.file(name).is_file():
                write_json(self.file(name), work(name))
                if done < len(mine):
                    progress(done, len(mine))

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def get(self, names: Iterable[str]) -> list[dict]:
        """These outcomes, all of which are there."""
        return [read_json(self.file(name)) for name in names]
