"""Rolling out dialogues turn by turn: history with frames and ground-truth replies, the segment sampled, then the reward.

What the trainer gets is exactly what the model saw and said: token ids are kept, never decoded and re-tokenised.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..chat import ChatEncoder
from ..corpus.build import Dataset
from ..dialogue import NO_REPLY, Segment
from ..engines import Session
from ..profile import RL
from ..score import Reward, proactive_reward
from ..stream import Sampler, Spoken


@dataclass
class Rollout:
    """One rollout: prompt and completion ids, which completion tokens were sampled, their log-probs, turns, reward."""

    prompt: list[int]
    completion: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    turns: list[tuple[float, str]] = field(default_factory=list)
    reward: Reward | None = None

    def add(self, ids: list[int], logps: list[float] | None = None) -> None:
        self.completion += ids
        self.mask += [int(logps is not None)] * len(ids)
        self.logps += logps if logps is not None else [0.0] * len(ids)


def prompt_ids(encoder: ChatEncoder, segment: Segment) -> list[int]:
    """The history: system prompt, earlier user turns with frames, ground-truth replies."""
    d = segment.dialogue
    return encoder.encode(replace(d, turns=d.turns[: segment.first])).ids


def roll_out(
    engine, encoder: ChatEncoder, dataset: Dataset, segments: Sequence[Segment], group: int, keys: Sequence[tuple[int, ...]], rl: RL
) -> list[Rollout]:
    """`group` sampled rollouts of every segment, in order; `keys[i]` seeds rollout i's own stream of random numbers.

    The rollouts of a group share their history's cache and all frames' vision features (engines.py).
    """
    sessions = []
    for s in segments:
        kept = replace(s.dialogue, turns=s.dialogue.turns[: s.last])
        sessions.append(Session(prompt_ids(encoder, s), dataset.frames(kept), s.dialogue.turns[s.first : s.last]))
    said = engine.play(encoder, sessions, Sampler(keys, rl.temperature, rl.top_k), rl.max_new_tokens, group)
    return [_transcript(encoder, segments[i // group], sessions[i // group].start, mine) for i, mine in enumerate(said)]


def _transcript(encoder: ChatEncoder, segment: Segment, prompt: list[int], said: list[Spoken]) -> Rollout:
    out, answers, times = Rollout(prompt), iter(said), iter(segment.rollout_times())
    for turn in segment.dialogue.turns[segment.first : segment.last]:
        out.add(encoder.user(turn))
        if turn.frames:
            spoken = next(answers)
            out.add(encoder.header)
            out.add(spoken.ids, spoken.logps)
            out.add(encoder.closing(spoken.ids))
            out.turns.append((next(times), spoken.text.strip()))
    return out


def judge_rollouts(rollouts: list[Rollout], segments: Sequence[Segment], judge, rl: RL) -> float:
    """Fill in every rollout's reward (contract, section Reward); returns the seconds it took."""
    started = time.perf_counter()
    for rollout, segment in zip(rollouts, segments, strict=True):
        questions = {g.text: g.question for g in segment.gold}
        rollout.reward = proactive_reward(
            rollout.turns,
            [(g.start, g.end, g.text) for g in segment.gold],
            similarity=lambda gold, said, q=questions: judge.correctness(q.get(gold, ""), gold, said, 4),
            covered=judge.covered, history=segment.history_replies(),
            variant=rl.variant, weights=rl.weights, prefix_chars=rl.prefix_chars,
        )  # fmt: skip
    return time.perf_counter() - started


TERMS = ("pauc", "rep", "in_span", "pfx")


def statistics(rollouts: list[Rollout], group: int, weights: Sequence[float]) -> dict[str, float]:
    """What the CSV log says about one step's rollouts (paper 4.3.2: each term's share of the within-group variance)."""
    terms = np.array([[getattr(r.reward, name) for name in TERMS] for r in rollouts]).reshape(-1, group, 4)
    total = np.array([r.reward.total for r in rollouts]).reshape(-1, group)
    within = (terms * np.asarray(weights)).var(axis=1).mean(axis=0)
    replies = [sum(text != NO_REPLY for _, text in r.turns) for r in rollouts]
    repeated = [sum(r.reward.counts["covered"] for r in rollouts), sum(r.reward.counts["replies"] for r in rollouts)]
    row = {"reward": total.mean(), "reward_std": total.std()}
    for k, name in enumerate(TERMS):
        row |= {name: terms[..., k].mean(), f"{name}_std": terms[..., k].std()}
        row[f"share_{name}"] = within[k] / within.sum() if within.sum() else 0.0
    row |= {
        "reply_turns": np.mean(replies),
        "duplicates": repeated[0] / repeated[1] if repeated[1] else 0.0,
        "groups_without_variance": float((total.std(axis=1) < 1e-6).mean()),
    }
    return {key: round(float(value), 5) for key, value in row.items()}
