"""`mmduet2 watch`: a model watches any video that FFmpeg opens, in real time or faster, and says when it speaks.

Frames are decoded ahead in a thread. In real time (`--speed 1`) a slow model either falls behind (`--late delay`: every frame
is seen, answers come later and later) or skips the oldest frames that wait (`--late drop`); the summary says how much.
"""

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from .corpus.video import address, frames
from .dialogue import NO_REPLY, PROACTIVE_SYSTEM, Turn
from .errors import UserError
from .model import encoder_for, load
from .profile import positive
from .stream import Greedy, Stream


class Ahead:
    """Frames from `source`, [(video time in s, image)], read by a thread; at most `size` of them wait.

    speed: seconds of video a second (0: as fast as they are taken); a frame is due when its `interval` (s of video) is over. late:
    what happens when `size` frames wait and one more is due: `delay` (the reader waits) or `drop` (the oldest is lost).
    Iterating gives (number of the frame, image, when it was due); what the reader raises is raised there.
    """

    def __init__(self, source: Iterable[tuple[float, np.ndarray]], size: int, speed: float = 0.0, late: str = "delay", interval: float = 0.0):
        self.size, self.speed, self.late, self.interval, self.dropped, self.behind = size, speed, late, interval, 0, 0.0
        self.waiting: deque = deque()
        self.changed, self.stopped, self.ended, self.error = threading.Condition(), threading.Event(), False, None
        threading.Thread(target=self._read, args=(source,), daemon=True).start()

    def _read(self, source) -> None:
        started = None
        try:
            for number, (shown, image) in enumerate(source):
                started = started or time.perf_counter()  # the clock starts with the first frame, not with opening the file
                due = started + (shown + self.interval) / self.speed if self.speed else None
                if due and self.stopped.wait(max(0.0, due - time.perf_counter())):
                    return
                with self.changed:
                    while len(self.waiting) >= self.size and not self.stopped.is_set():
                        if self.late == "drop" and self.speed:
                            self.waiting.popleft()
                            self.dropped += 1
                        else:
                            self.changed.wait()
                    if self.stopped.is_set():
                        return
                    self.waiting.append((number, image, due))
                    self.changed.notify_all()
        except Exception as error:  # raised again where the frames are taken
            self.error = error
        finally:
            with self.changed:
                self.ended = True
                self.changed.notify_all()

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, float]]:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.ended)
                if not self.waiting:
                    break
                number, image, due = self.waiting.popleft()
                self.changed.notify_all()
            now = time.perf_counter()
            self.behind = max(self.behind, now - (due or now))
            yield number, image, due or now
        if self.error:
            raise self.error

    def close(self) -> None:
        """Let the reader end; frames that wait are dropped."""
        with self.changed:
            self.stopped.set()
            self.waiting.clear()
            self.changed.notify_all()


def watch(stream: Stream, seen: Iterable[tuple[int, np.ndarray, float]], questions: list[tuple[float, str]], interval: float, frames_per_turn: int,
          max_new_tokens: int) -> Iterator[dict]:  # fmt: skip
    """Yield {"time", "text", "latency_s"} for every turn of `frames_per_turn` frames, silent ones with NO_REPLY.

    time: s of video, the end of the turn's last frame (contract). latency_s: from when that frame was due to the end of the
    reply. seen: as `Ahead` gives it. `questions` [(s of video, text)] may grow meanwhile; each is a turn of its own before
    the first turn after it, and leaves the list.
    """
    numbers, images = [], []

    def answer(due: float) -> dict:
        asked = sorted((q for q in questions if q[0] <= numbers[0] * interval + 1e-6), key=lambda q: q[0])
        for question in asked:
            questions.remove(question)
            stream.turn([0], [Turn(text=question[1])], [None], Greedy(), max_new_tokens)
        features = stream.see(np.stack(images))
        said = stream.turn([0], [Turn(tuple(numbers))], [features], Greedy(), max_new_tokens)[0].text.strip()
        return {"time": (numbers[-1] + 1) * interval, "text": said, "latency_s": round(time.perf_counter() - due, 4)}

    for number, image, due in seen:
        numbers.append(number)
        images.append(image)
        if len(numbers) == frames_per_turn:
            yield answer(due)
            numbers, images = [], []
    if numbers:
        yield answer(due)


def session(model, processor, image: np.ndarray, **options) -> Stream:
    """A stream of one session that has heard the system prompt; `image`: the video's first frame, `options`: Stream's."""
    encoder = encoder_for(processor, image[None], getattr(model.config, "chat_form", "turns"))
    stream = Stream(model, encoder, processor.image_processor, 1, **options)
    stream.begin(0, encoder.system(PROACTIVE_SYSTEM))
    return stream


def question_at(text: str) -> tuple[float, str]:
    """`12.5:Who came in?` as (12.5, "Who came in?")."""
    at, _, words = text.partition(":")
    try:
        seconds = 0.0 if float(at) == 0 else positive(at)
    except ValueError:
        raise UserError(f"--ask {text!r}: give seconds, a colon and the question, for example 12.5:'Who came in?'.") from None
    if not words.strip():
        raise UserError(f"--ask {text!r} asks nothing: write the question behind the colon.")
    return seconds, words.strip()


def newest_model(runs: Path = Path("runs")) -> Path:
    """The RL checkpoint made last under runs/."""
    made = [path.parent for path in runs.glob("*/models/rl-seed*/config.json") if ".partial" not in path.parent.name]
    if not made:
        raise UserError("there is no RL checkpoint under runs/: make one (./run_all.sh), or give a model's folder with --model.")
    return max(made, key=lambda folder: (folder / "config.json").stat().st_mtime)


def add_arguments(parser) -> None:
    parser.add_argument("video", help="a file, FIFO or URL that FFmpeg opens")
    parser.add_argument("--question", help="asked at the start")
    parser.add_argument("--ask", action="append", default=[], metavar="S:QUESTION", help="asked when S seconds were watched; repeatable")
    parser.add_argument("--model", help="a model's folder or hub name (default: the newest RL checkpoint under runs/)")
    parser.add_argument("--json", action="store_true", help="JSON lines in a terminal too (they are what a pipe or file gets)")
    parser.add_argument("--interval", type=positive, default=1.0, help="seconds between frames (default: 1)")
    parser.add_argument("--frames-per-turn", type=int, choices=range(1, 9), default=1, help="frames that it sees before each decision (default: 1)")
    parser.add_argument("--visual-tokens", type=int, help="at most so many a frame (default: the model's own, or 128)")
    parser.add_argument("--speed", type=float, default=0.0, help="1: real time, and questions typed in the terminal are asked; 0: the model's pace (default)")
    parser.add_argument("--late", choices=("delay", "drop"), default="delay", help="in real time, when frames come faster than the model: delay (all are seen, later and later) or drop (the oldest that wait) (default: delay)")
    parser.add_argument("--queue", type=int, default=8, help="frames that may wait (default: 8)")
    parser.add_argument("--context", type=int, default=8192, help="tokens; the oldest frames are forgotten beyond (default: 8192)")
    parser.add_argument("--max-new-tokens", type=int, default=100, help="of one reply (default: 100)")
    parser.add_argument("--no-ahead", action="store_true", help="decode NO REPLY token by token instead of verifying it")
    parser.add_argument("--graphs", action="store_true", help="run small forwards as CUDA graphs (on a CPU: the same, slower)")


def run(args) -> int:
    """`mmduet2 watch`: a line for every reply as soon as it is there; Ctrl-C ends it and keeps what was said."""
    questions = sorted(([(0.0, args.question.strip())] if args.question and args.question.strip() else [])
                       + [question_at(text) for text in args.ask], key=lambda q: q[0])  # fmt: skip
    sizes = args.queue, args.context, args.max_new_tokens, 1 if args.visual_tokens is None else args.visual_tokens
    for wrong, says in ((not questions, "nothing is asked: give --question, or --ask SECONDS:QUESTION."),
                        (not 1 <= min(sizes) <= max(sizes) <= 10**15, "--queue, --context, --max-new-tokens and --visual-tokens must lie between 1 and 10**15."),
                        (not 1e-3 <= (args.speed or 1) < 1e6, "--speed must be 0, or at least 0.001 and less than 1000000 (1: real time)."),
                        (args.late == "drop" and not args.speed, "--late drop needs --speed: at the model's own pace no frame is late."),
                        (sys.stdout is None, "its standard output is closed: send it to a terminal, a file or a pipe.")):  # fmt: skip
        if wrong:
            raise UserError(says)
    address(args.video)  # a wrong name is said before a model is loaded
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = load(newest_model() if args.model is None else args.model, "bfloat16" if device == "cuda" else "float32")
    model.eval().to(device)
    most = args.visual_tokens or getattr(model.config, "visual_tokens", 128)
    ahead = Ahead(frames(args.video, args.interval, max_tokens=most), args.queue, args.speed, args.late, args.interval)
    readable, turns, silent, last, stream = sys.stdout.isatty() and not args.json, 0, 0, 0.0, None
    started = time.perf_counter()
    try:
        seen = iter(ahead)
        first = next(seen, None)
        if first is None:
            raise UserError(f"{args.video} holds no frame at intervals of {args.interval:g} s: give a smaller --interval.")
        stream = session(model, processor, first[1], limit=args.context, ahead=not args.no_ahead, graphs=args.graphs)
        if args.speed and sys.stdin and sys.stdin.isatty():  # what is typed while the video plays is asked with the next frames
            threading.Thread(target=lambda: [questions.append((0.0, line.strip())) for line in sys.stdin if line.strip()], daemon=True).start()
        for said in watch(stream, chain([first], seen), questions, args.interval, args.frames_per_turn, args.max_new_tokens):
            turns, last = turns + 1, said["time"]
            silent += said["text"] == NO_REPLY  # the exact string: a reply may begin with it
            if said["text"] != NO_REPLY:
                line = f"{said['time']:8.1f} s  {said['text']}" if readable else json.dumps(said, ensure_ascii=False)
                print(line, flush=True)
    except RuntimeError as error:  # out of memory has a class of its own on GPUs only
        raise UserError("there is not enough memory: lower --context or --visual-tokens.") if "allocate" in str(error) else error
    finally:
        ahead.close()
        if stream:
            spent, counts = time.perf_counter() - started, stream.counts
            print(f"watched {last:g} s of video in {spent:.1f} s: {turns} turns, {silent} silent ({counts['accepted']} of them verified "
                  f"in one forward); {ahead.dropped} frames dropped, at most {ahead.behind:.1f} s behind; {counts['forgotten']} old "
                  f"frames forgotten" + "".join(f"; never asked: {text!r} ({at:g} s)" for at, text in questions), file=sys.stderr)  # fmt: skip
    return 0
