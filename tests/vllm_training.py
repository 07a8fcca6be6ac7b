"""Run by test_vllm_engine.py where vllm and torchao are, as one rank or as one of several. Prints JSON (the first rank).

MODEL FOLDER: two GRPO steps rolled out by vLLM; alone also SFT by 8-bit Adam.
"""

import json
import sys
from pathlib import Path

import numpy as np
from accelerate.utils import gather_object

from mmduet2kit.engines import Session
from mmduet2kit.files import read_csv
from mmduet2kit.profile import Launch, load_profile
from mmduet2kit.progress import rank, ranks
from mmduet2kit.stream import Greedy, Stream, run
from mmduet2kit.train import grpo, sft

from played import FakeDataset, LengthJudge, dialogues, frames_for, make_segments, random_dialogue


def step_by_vllm(folder: Path, place: Path) -> dict:
    """Two steps; then vLLM, with the weights that came of them, and the stream say the same."""
    held, profile = [], load_profile("tiny")
    rl = profile.rl.model_copy(update=dict(steps=2, prompts=2, group=4, micro_batch=4, max_new_tokens=8, save_steps=100, engine="vllm",
                                           temperature=1.2, top_k=5, freeze_vision=False, lr=1e-3))  # fmt: skip
    grpo.judge_of = lambda profile: LengthJudge()
    store = grpo.store
    grpo.store = lambda trainer, *a: held.append(trainer) or store(trainer, *a)
    loads, ratios, said, original = [], [], [], grpo.ProactiveGRPO._compute_loss

    def spy(self, model, inputs):
        loss = original(self, model, inputs)
        mask = inputs["tool_mask"].bool() if inputs.get("tool_mask") is not None else inputs["completion_mask"].bool()
        ratios.append(inputs["importance_sampling_ratio"][mask].tolist())
        return loss

    grpo.ProactiveGRPO._compute_loss = spy
    load = grpo.VLLMEngine.load
    grpo.VLLMEngine.load = lambda self, weights: loads.append(1) or load(self, weights)
    judge = grpo.judge_rollouts  # sees the rollouts of its own rank
    grpo.judge_rollouts = lambda rollouts, *a: said.append([r.completion for r in rollouts]) or judge(rollouts, *a)
    grpo.train(profile, rl, make_segments(), FakeDataset(), folder, place / "rl", place / "rl.csv", 3)
    (trainer,) = held
    rows, model, encoder, rng = read_csv(place / "rl.csv"), trainer.model.eval(), trainer.encoder, np.random.default_rng(0)
    some = [random_dialogue(rng, n) for n in (5, 3, 6)]
    sessions = [Session(encoder.system("Answer."), frames_for(rng, d), d.turns) for d in some]
    trainer.vllm.temperature = 1.0
    trainer.vllm.load(model.named_parameters())
    theirs = trainer.vllm.play(encoder, sessions, Greedy(), 8)
    stream = Stream(model, encoder, trainer.processing_class.image_processor, len(sessions))
    for row, session in enumerate(sessions):
        stream.begin(row, session.start)
    ours = run(stream, [s.turns for s in sessions], [stream.see(s.frames) for s in sessions], Greedy(), 8)
    flat = [r for some in ratios for r in some]
    return {"same": [[s.ids for s in row] for row in theirs] == [[s.ids for s in row] for row in ours],
            "gap": max(float(row["logprob_gap"]) for row in rows), "losses": [float(row["loss"]) for row in rows],
            "loads": len(loads), "steps": len(rows), "ratios": [min(flat), max(flat)], "said": [sum(step, []) for step in zip(*gather_object([said]))],
            "own": len(said[0]), "rewards": [float(row["reward"]) for row in rows]}  # fmt: skip


def by_8_bit_adam(folder: Path, place: Path) -> dict:
    profile, held = load_profile("tiny"), []
    launch = Launch(zero=0, offload=False, adam="8bit", checkpointing=False, graphs=False, grace_s=10)
    fit = profile.sft.model_copy(update=dict(steps=8, batch=4, micro_batch=2, lr=3e-3, warmup=0.0, save_steps=100))
    store = sft.store
    sft.store = lambda trainer, *a: held.append(trainer) or store(trainer, *a)
    sft.train(profile.model_copy(update={"launch": launch}), fit, dialogues(), FakeDataset(), folder, place / "sft", place / "sft.csv", 3)
    states = held[0].optimizer.state.values()
    return {"states": sorted({type(state["exp_avg"]).__name__ for state in states}),
            "losses": [float(row["loss"]) for row in read_csv(place / "sft.csv")]}  # fmt: skip


if __name__ == "__main__":
    folder, place = Path(sys.argv[1]), Path(sys.argv[2])
    found = {"grpo": step_by_vllm(folder, place)} | ({} if ranks() > 1 else {"adam": by_8_bit_adam(folder, place)})
    if not rank():
        print("RESULT " + json.dumps(found), flush=True)
