"""Streams without end, with a trained model: `python tests/benchmarks/endless.py --profile tiny [--model rl] [--out FILE]`.

For several limits of the context: which replies change against the stream that forgets nothing, and what PAUC becomes; with each
test video of a domain as a stream of its own (lengths that the model was trained on), and with all of them joined to one (far
beyond), each with its question at its beginning. Then a stream of `--turns` turns under the smallest limit: the mean time of a
turn and the memory, block by block. Prints JSON.
"""

import argparse
import json
import resource
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from mmduet2kit.corpus.build import Dataset
from mmduet2kit.dialogue import NO_REPLY
from mmduet2kit.evaluate import Evaluator, Watched, pooled
from mmduet2kit.model import encoder_for, load
from mmduet2kit.profile import load_profile
from mmduet2kit.stream import Greedy, Stream

import told


class Watcher:
    """Plays dialogues one after another into one session."""

    def __init__(self, profile, model, processor):
        self.evaluator = Evaluator(profile, Dataset(profile.data), model, processor)
        self.model, self.processor, self.most = model, processor, profile.evaluate.max_new_tokens

    def watch(self, records: list[dict], interval: float, limit: int, joined: bool, seconds: list | None = None, memory: list | None = None):
        """(Watched of every record, the counts of all streams); seconds and cache bytes of every turn with frames go to the lists."""
        dialogues, stream, out, counts = [self.evaluator.dialogue(r, interval) for r in records], None, [], Counter()
        for record, dialogue in zip(records, dialogues):
            frames, used, replies = self.evaluator.dataset.frames(dialogue), 0, []
            if stream is None or not joined:
                encoder = encoder_for(self.processor, frames, getattr(self.model.config, "chat_form", "turns"))
                stream = Stream(self.model, encoder, self.processor.image_processor, 1, limit=limit)
                stream.begin(0, encoder.system(dialogue.system))
            for at, turn in zip(dialogue.times(), dialogue.turns):
                new, used = frames[used : used + len(turn.frames)], used + len(turn.frames)
                started = time.perf_counter()
                said = stream.turn([0], [turn], [stream.see(new) if len(new) else None], Greedy(), self.most)
                if said and seconds is not None:
                    seconds.append(time.perf_counter() - started)
                    memory.append(stream.cache.nbytes)
                replies += [(at, said[0].text.strip())] if said and said[0].text.strip() != NO_REPLY else []
            counts.update({"re-encoded": stream.counts["re-encoded"], "forgotten": stream.counts["forgotten"]} if not joined else {})
            out.append(Watched(record, replies, sum(bool(turn.frames) for turn in dialogue.turns)))
        counts = counts if not joined else stream.counts
        return out, counts | Counter(context=int(stream.cache.lengths[0]))


def compare(watcher: Watcher, records: list[dict], interval: float, limits: list[int], joined: bool) -> dict:
    """Against the unbounded stream: turns alike (same text, or both silent), replies kept word for word, PAUC, duplicates."""
    out, base = {}, None
    for limit in (0, *limits):
        watched, counts = watcher.watch(records, interval, limit, joined)
        texts = [dict(w.replies) for w in watched]
        found = pooled(watcher.evaluator.score(watched))
        base = base or texts
        turns = sum(w.decisions for w in watched)
        moved = sum(mine.get(t) != theirs.get(t) for mine, theirs in zip(texts, base) for t in {*mine, *theirs})
        kept = sum(mine.get(t) == text for mine, theirs in zip(texts, base) for t, text in theirs.items())
        out[str(limit or "none")] = {
            "pauc": round(found["pauc"], 2), "duplicate": round(found["duplicate"], 2), "replies": sum(map(len, texts)),
            "turns": turns, "turns_alike": round(1 - moved / turns, 4), "replies_kept": round(kept / max(1, sum(map(len, base))), 4),
            "context_tokens_at_the_end": counts["context"], "re_encoded": counts["re-encoded"], "frames_forgotten": counts["forgotten"],
        }  # fmt: skip
    return out


def flat(watcher: Watcher, records: list[dict], interval: float, limit: int, turns: int, blocks: int = 10) -> dict:
    """Mean and p95 of a turn's milliseconds, bytes of the cache, and this process's peak memory, over blocks of the stream."""
    seconds: list[float] = []
    memory: list[int] = []
    each = sum(bool(t.frames) for r in records for t in watcher.evaluator.dialogue(r, interval).turns)
    watcher.watch(records * -(-turns // each), interval, limit, True, seconds, memory)
    parts = np.array_split(np.array(seconds[:turns]), blocks)
    means = [1000 * float(part.mean()) for part in parts]
    return {
        "limit": limit, "turns": turns, "ms_a_turn": [round(m, 3) for m in means],
        "p95_ms": [round(1000 * float(np.percentile(part, 95)), 3) for part in parts],
        "last_block_over_first": round(means[-1] / means[0], 3),
        "cache_mb": [round(int(part[-1]) / 1e6, 3) for part in np.array_split(np.array(memory[:turns]), blocks)],
        "peak_process_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--model", default="rl")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--domain", default="EGO")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limits", default="1024,768,512,384,256")
    parser.add_argument("--turns", type=int, default=4000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    profile = load_profile(args.profile)
    seed = profile.seeds[0] if args.seed is None else args.seed
    model, processor = load(profile.model_dir(args.model, seed), profile.model.dtype, profile.model.attention)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    watcher, limits = Watcher(profile, model, processor), [int(limit) for limit in args.limits.split(",")]
    records, interval = watcher.evaluator.records(args.split, args.domain), profile.video.test_interval
    out = {
        "profile": profile.name, "model": args.model, "seed": seed, "domain": args.domain, "videos": len(records),
        **told.head(),
        "each_video_a_stream": compare(watcher, records, interval, limits, joined=False),
        "one_stream_without_end": compare(watcher, records, interval, limits, joined=True),
        "flat": flat(watcher, records, interval, min(limits), args.turns),
    }  # fmt: skip
    told.write(out, args.out)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
