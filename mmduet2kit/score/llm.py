"""The judge that asks a language model, over any OpenAI-compatible endpoint (vLLM, SGLang, a paid one).

The scales are those of the paper's judges (upstream: five levels in training, three in evaluation, yes or no for repetition);
the prompts are the kit's own. Texts to be judged are handed over as JSON strings and called data, so a reply cannot end its
own quotation, with every < as \\u003c, so that none holds a special token (<|im_start|>) that would open a turn of the chat.
Only an answer that is nothing but a level counts: anything else is a failure, counted and never scored.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..endpoint import Endpoint
from ..files import sha256_text

PROMPTS = yaml.safe_load(Path(__file__).with_name("prompts.yaml").read_text())
THINKING = re.compile(r"^\s*<think>.*?</think>", re.S)


class LLMJudge:
    """url: the endpoint's base, to which /chat/completions is added. None is returned where no answer could be had.

    `counts` tells what happened (endpoint.py).
    """

    name = "llm"

    def __init__(self, url: str | None = None, model: str | None = None, cache: Path | str = "judge_cache.sqlite", **options):
        self.endpoint = Endpoint("judge 'llm'", "MMDUET2_JUDGE_MODEL", url, model, cache, **options)
        self.url, self.parallel, self.counts = self.endpoint.url, self.endpoint.parallel, self.endpoint.counts

    def correctness(self, question: str, gold: str, prediction: str, max_score: float) -> float | None:
        """Score out of 4 (five levels, training) or 2 (three levels, evaluation); another `max_score` raises ValueError."""
        if max_score not in (2, 4):
            raise ValueError(f"the judge's scales end at 2 or 4, not {max_score}")
        texts = {"question": question, "ground truth": gold, "predicted answer": prediction}
        answer = self._ask(int(max_score), texts, r"[1-5]" if max_score == 4 else r"[1-3]")
        return None if answer is None else float(answer) - 1

    def covered(self, history: Sequence[str], text: str) -> bool | None:
        """Is all of `text` already said in `history`?"""
        answer = self._ask("covered", {"said earlier": " ".join(history), "said now": text}, "yes|no")
        return None if answer is None else answer == "yes"

    def _ask(self, task, texts: dict[str, str], wanted: str) -> str | None:
        body = json.dumps(texts, ensure_ascii=False, indent=1).replace("<", "\\u003c")
        messages = [{"role": "system", "content": PROMPTS[task]}, {"role": "user", "content": body}]
        key = sha256_text(json.dumps([self.endpoint.model, messages]))

        def level(text: str) -> str | None:
            answer = THINKING.sub("", text).strip().rstrip(".").lower()
            return answer if re.fullmatch(wanted, answer) else None

        return self.endpoint.ask(key, messages, level)
