"""Run by test_vllm_engine.py where vllm is: the kit's stream and vLLM play the same sessions. Prints one line of JSON."""

import json
import sys

import numpy as np
import torch

from mmduet2kit.chat import ChatEncoder
from mmduet2kit.engines import Session, StreamEngine, VLLMEngine
from mmduet2kit.model import load
from mmduet2kit.stream import Greedy, Sampler

from played import frames_for, full_logits, random_dialogue


def gap(model, processor, encoder, sessions, said, temperature) -> float:
    """Largest difference between the log-probs reported and those of transformers' own forward (contract: full vocabulary)."""
    worst = 0.0
    for session, mine in zip(sessions, said, strict=True):
        ids, places, answers = list(session.start), [], iter(mine)
        for turn in session.turns:
            ids += encoder.user(turn)
            if turn.frames:
                one = next(answers)
                ids += encoder.header
                places += [(len(ids) + k, logp) for k, logp in enumerate(one.logps)]
                ids += one.ids + ([] if one.ids[-1] == encoder.im_end else [encoder.im_end]) + encoder.newline
        logps = (full_logits(model, processor, ids, session.frames, encoder.image_pad) / temperature).log_softmax(-1)
        worst = max([worst] + [abs(float(logps[at - 1, ids[at]]) - logp) for at, logp in places])
    return worst


def main(folder: str) -> None:
    model, processor = load(folder)
    model.eval()
    encoder, rng, out = ChatEncoder(processor.tokenizer, 4), np.random.default_rng(5), {}
    dialogues = [random_dialogue(rng, n) for n in (6, 3, 9, 5)]
    sessions = [Session(encoder.system("Answer."), frames_for(rng, d), d.turns) for d in dialogues]
    stream = StreamEngine(model, processor.image_processor)
    engine = VLLMEngine(folder, "float32", max_len=2048, temperature=1.2, disable_log_stats=True)
    for name, choose in (("greedy", Greedy()), ("sampled", Sampler([(1, i) for i in range(8)], 1.2, 5))):
        if name == "greedy":  # the engine's temperature is in its weights: greedy's log-probs are at 1
            engine.temperature = 1.0
            engine.load(model.named_parameters())
        else:
            engine.temperature = 1.2
            engine.load(model.named_parameters())
        copies = 1 if name == "greedy" else 2
        theirs = engine.play(encoder, sessions, choose, 8, copies)
        ours = stream.play(encoder, sessions, Greedy() if name == "greedy" else Sampler(choose.keys, 1.2, 5), 8, copies)
        many = [session for session in sessions for _ in range(copies)]
        out[name] = {
            "same": [[a.ids == b.ids for a, b in zip(x, y, strict=True)] for x, y in zip(ours, theirs, strict=True)],
            "gap": gap(model, processor, encoder, many, theirs, choose.temperature),
            "vision_tokens": sum(token in encoder.never_sampled for row in theirs for one in row for token in one.ids),
            "again": [[s.ids for s in row] for row in engine.play(encoder, sessions, choose, 8, copies)]
            == [[s.ids for s in row] for row in theirs],
        }
    out["cached_share"] = engine.counts["cached"] / engine.counts["prompt"]
    with torch.no_grad():  # new weights are seen, and nothing cached of the old ones is used
        model.lm_head.weight[encoder.silence[0]] *= -3
    engine.temperature = 1.0
    engine.load(model.named_parameters())
    new, kit = engine.play(encoder, sessions, Greedy(), 8), stream.play(encoder, sessions, Greedy(), 8)
    out["after_new_weights"] = {"same": [[s.ids for s in row] for row in new] == [[s.ids for s in row] for row in kit],
                                "gap": gap(model, processor, encoder, sessions, new, 1.0)}  # fmt: skip
    print("RESULT " + json.dumps(out))


main(sys.argv[1])
