"""Rolling out dialogues turn by turn: history with frames and ground-truth replies, the segment sampled, then the reward.

What the trainer gets is exactly what the model saw and said: token ids are kept, never decoded and re-tokenised.
"""

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from ..chat import ChatEncoder
from ..corpus.build import Dataset
from ..dialogue import NO_REPLY, Segment, Turn
from ..engines import Session
from ..errors import UserError
from ..profile import RL
from ..score import MOST_DROPPED, Reward, proactive_reward
from ..stream import Sampler, Spoken


@dataclass
class Rollout:
    """One rollout: prompt and completion ids, which completion tokens were sampled, their log-probs, turns, reward.

    frames: all that it saw, [N, H, W, 3]; those of a group are one array.
    """

    prompt: list[int]
    frames: np.ndarray | None = None
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


def fitted(encoder: ChatEncoder, segment: Segment, rl: RL) -> Segment:
    """The segment within the profile's budgets, cut at whole turns (upstream cuts tokens off, the system prompt's first).

    As in `Stream.forget`, questions and replies of the history stay, its oldest frames go, and silent turns with them. Of the
    rollout the last turns go, so many that it fits whatever is said; gold is clipped to its new end.
    """
    d, first, last, kept, skipped = segment.dialogue, segment.first, segment.last, [], 0

    def size(turn: Turn) -> int:
        return len(encoder.encode(replace(d, turns=(turn,), system="")).ids) - len(encoder.system(""))

    over = len(prompt_ids(encoder, segment)) - rl.max_prompt if rl.max_prompt else 0
    for turn in d.turns[:first]:
        if over > 0 and turn.frames:
            skipped, left = skipped + len(turn.frames), Turn((), turn.text, None if turn.reply == NO_REPLY else turn.reply)
            stays = bool(left.text or left.reply)
            over, turn = over - size(turn) + stays * size(left), left if stays else None
        kept += [turn] if turn else []
    room = rl.max_response or sys.maxsize
    for number in range(first, last):
        said = len(encoder.header) + rl.max_new_tokens + len(encoder.closing([]))
        room -= len(encoder.user(d.turns[number])) + said * bool(d.turns[number].frames)
        if room < 0:
            last = max(number, first + 1)
            break
    gold = segment.gold
    if last < segment.last:  # as dialogues.build_segments clips: one turn after the last, whose reply then still counts inside
        now = d.times()[last - 1]
        end = now + len(d.turns[last - 1].frames) * d.interval
        gold = tuple(replace(g, end=min(g.end, end)) for g in gold if g.start < now)
    turns = (*kept, *d.turns[first:last])
    return Segment(replace(d, turns=turns, skipped=d.skipped + skipped), len(kept), len(turns), gold)


def roll_out(
    engine, encoder: ChatEncoder, dataset: Dataset, segments: Sequence[Segment], group: int, keys: Sequence[tuple[int, ...]], rl: RL,
    heard: Callable | None = None,
) -> list[Rollout]:  # fmt: skip
    """`group` sampled rollouts of every segment, in order; `keys[i]` seeds rollout i's own stream of random numbers.

    The rollouts of a group share their history's cache and all frames' vision features (engines.py). `heard(i, what rollout i
    said so far)` is called after each turn.
    """
    sessions, encoders = [], []
    for s in segments:
        frames = dataset.frames(replace(s.dialogue, turns=s.dialogue.turns[: s.last]))
        encoders.append(encoder.of(frames))
        sessions.append(Session(prompt_ids(encoders[-1], s), frames, s.dialogue.turns[s.first : s.last]))
    said = engine.play(encoder, sessions, Sampler(keys, rl.temperature, rl.top_k), rl.max_new_tokens, group, heard=heard)
    return [_transcript(encoders[i // group], segments[i // group], sessions[i // group], mine) for i, mine in enumerate(said)]


def _transcript(encoder: ChatEncoder, segment: Segment, session: Session, said: list[Spoken]) -> Rollout:
    out, answers, times = Rollout(session.start, session.frames), iter(said), iter(segment.rollout_times())
    for turn in segment.dialogue.turns[segment.first : segment.last]:
        out.add(encoder.user(turn))
        if turn.frames:
            spoken = next(answers)
            out.add(encoder.header)
            out.add(spoken.ids, spoken.logps)
            out.add(encoder.closing(spoken.ids))
            out.turns.append((next(times), spoken.text.strip()))
    return out


def reward_of(turns: list[tuple[float, str]], segment: Segment, judge, rl: RL) -> Reward:
    """The reward of these turns, (seconds, text) each (contract, section Reward)."""
    return proactive_reward(
        turns, [(g.start, g.end, g) for g in segment.gold],
        similarity=lambda gold, said: judge.correctness(gold.question, gold.text, said, 4),
        covered=judge.covered, history=segment.history_replies(),
        variant=rl.variant, weights=rl.weights, prefix_chars=rl.prefix_chars,
    )  # fmt: skip


class EarlyJudge:
    """Puts a slow judge's questions about a rollout while the model still generates: after each reply, those so far.

    The answers wait in the judge's memory until `judge_rollouts` asks for them; a judge without `parallel` is not asked, nor one
    that failed: what it could not answer would be asked again after each reply.
    """

    def __init__(self, segments: Sequence[Segment], judge, rl: RL):
        self.segments, self.judge, self.rl = segments, judge, rl
        self.pool = ThreadPoolExecutor(judge.parallel) if getattr(judge, "parallel", 1) > 1 else None
        self.jobs: list[Future] = []

    def heard(self, i: int, said: Sequence[Spoken]) -> None:
        """Rollout i has said this so far; a reply is sent off, silence asks nothing."""
        if self.pool and said[-1].text.strip() != NO_REPLY and not any(job.done() and dropped([job.result()]) for job in self.jobs):
            turns = [(at, one.text.strip()) for at, one in zip(self.segments[i].rollout_times(), said)]
            self.jobs.append(self.pool.submit(reward_of, turns, self.segments[i], self.judge, self.rl))

    def wait(self) -> None:
        """Until all of them are answered; raises what a question raised."""
        for job in self.jobs:
            job.result()
        if self.pool:
            self.pool.shutdown()


def judge_rollouts(rollouts: list[Rollout], segments: Sequence[Segment], judge, rl: RL) -> float:
    """Fill in every rollout's reward; returns the seconds it took."""
    started = time.perf_counter()
    with ThreadPoolExecutor(getattr(judge, "parallel", 1)) as pool:
        rewards = pool.map(lambda rollout, segment: reward_of(rollout.turns, segment, judge, rl), rollouts, segments)
        for rollout, reward in zip(rollouts, rewards, strict=True):
            rollout.reward = reward
    return time.perf_counter() - started


TERMS = ("pauc", "rep", "in_span", "pfx")


def dropped(rewards: Sequence[Reward]) -> float:
    """The share of these rewards' judgements that the judge did not give."""
    failed = sum(r.counts["dropped_scores"] + r.counts["dropped_covered"] for r in rewards)
    return failed / max(sum(r.counts["judged"] for r in rewards), 1)


def statistics(rollouts: list[Rollout], group: int, weights: Sequence[float]) -> dict[str, float]:
    """What the CSV log says about one step's rollouts (paper 4.3.2: each term's share of the within-group variance).

    UserError where the judge failed too often (MOST_DROPPED); all ranks see the same rollouts, and stop together.
    """
    if (lost := dropped([r.reward for r in rollouts])) > MOST_DROPPED:
        raise UserError(f"The judge gave no answer to {100 * lost:.0f} percent of a step's questions (at most {100 * MOST_DROPPED:.0f} are passed "
                        "over): see that its endpoint is up, and start again; training goes on from its last checkpoint.")  # fmt: skip
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
        "judge_dropped": lost,
    }
    return {key: round(float(value), 5) for key, value in row.items()}
