"""Scores: PAUC, the reward, duplicates, judges, and the rules of two benchmarks. No models, no files."""

from .benchmark import ASKED, FORMS, Form, ReplyScore, TurnScore, score_question, totals
from .duplicates import NO_REPLY, Duplicates, duplicate_flags, duplicate_proportion, spoken
from .judges import MOST_DROPPED, ExactJudge, Judge, MemoJudge, get_judge, judge_of, of_the_world
from .pauc import pauc
from .rewards import VARIANTS, Reward, Variant, proactive_reward

__all__ = [
    "ASKED", "FORMS", "Form", "ReplyScore", "TurnScore", "score_question", "totals",
    "NO_REPLY", "Duplicates", "duplicate_flags", "duplicate_proportion", "spoken",
    "MOST_DROPPED", "ExactJudge", "Judge", "MemoJudge", "get_judge", "judge_of", "of_the_world",
    "pauc", "VARIANTS", "Reward", "Variant", "proactive_reward",
]
