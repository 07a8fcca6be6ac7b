"""An OpenAI-compatible endpoint (vLLM, SGLang, a paid one): tried again when trouble may pass, answers kept on disk, cost counted."""

import json
import os
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from .errors import UserError, whole_number
from .score.judges import MOST_DROPPED

TOKENS = ("prompt_tokens", "completion_tokens")
LARGEST = 4 << 20  # of an answer in bytes, and of the tokens that one may say it cost


class Endpoint:
    """url: the endpoint's base, to which /chat/completions is added; `who` and `variable` name it in what is said to the user.

    cache: a file in which answers are kept by their key, so that a killed run pays for none of them twice, and what was paid for
    them. per_minute: at most so many requests (0: MMDUET2_PER_MINUTE, else as many as `parallel` threads put). `counts`, of this
    process: asked, from_cache, prompt_tokens, completion_tokens, unparsed, failed.
    """

    def __init__(self, who: str, variable: str, url: str | None, model: str | None, cache: Path | str, *, parallel: int = 16,
                 timeout_s: float = 60.0, attempts: int = 4, longest_wait_s: float = 20.0, per_minute: float = 0):  # fmt: skip
        self.who, self.variable, self.parallel = who, variable, parallel
        self.every = 60 / rate if (rate := per_minute or whole_number("MMDUET2_PER_MINUTE")) else 0.0  # s between two requests
        self.url = (url or os.environ.get("OPENAI_BASE_URL", "")).rstrip("/")
        self.model = model or os.environ.get(variable, "")
        if not self.url or not self.model:
            raise UserError(f"The {who} needs an endpoint and a model: set OPENAI_BASE_URL (http://host:8000/v1), "
                            f"{variable} and, for a paid one, OPENAI_API_KEY.")
        key = os.environ.get("OPENAI_API_KEY", "")
        self.client = httpx.Client(timeout=timeout_s, headers={"Authorization": f"Bearer {key}"} if key else {},
                                   limits=httpx.Limits(max_connections=parallel))
        self.retry = dict(stop=stop_after_attempt(attempts), retry=retry_if_exception(_may_pass), reraise=True,
                          wait=wait_random_exponential(multiplier=0.5, max=longest_wait_s))  # fmt: skip
        self.lock, self.counts, self.settled, self.next, self.cache, self.store = threading.Lock(), Counter(), Counter(), 0.0, cache, None
        self._kept("select 1")

    def ask(self, key: str, messages: list[dict], parse: Callable[[str], str | None], **options) -> str | None:
        """The answer to these messages, as `parse` takes it (None: unusable, counted as unparsed, not kept); None where there is none.

        key: of the cache; messages and whatever decides the answer must be in it. options: of the request (max_tokens, ...).
        """
        with self.lock:
            if row := self._kept("select answer from answers where key = ?", key):
                self.counts["from_cache"] += 1
                return row[0]
        spent = {}
        try:
            for attempt in Retrying(**self.retry):
                with attempt:
                    said = self._post({"model": self.model, "messages": messages, "temperature": 0.0, "max_tokens": 2048} | options)
            if isinstance(usage := said.get("usage"), dict):
                spent = {k: v for k, v in usage.items() if k in TOKENS and type(v) is int and 0 <= v <= LARGEST}
            text = str(said["choices"][0]["message"]["content"])
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return self.count(asked=1, failed=1, **spent)
        self.count(asked=1, **spent)
        if (answer := parse(text)) is None:
            return self.count(unparsed=1)
        with self.lock:
            self._kept("insert or replace into answers values (?, ?)", key, answer)
        return answer

    def paid(self) -> Counter:
        """What `counts` counts and the seconds of `settle`, of all processes that shared the cache, this one's `from_cache` with them."""
        with self.lock:
            (told,) = self._kept("select json_group_object(name, much) from paid")
        return Counter(json.loads(told) | {"from_cache": self.counts["from_cache"]})

    def told(self, videos: int) -> str:
        """What was asked and paid for, tokens a second of the work in which it was asked and, `videos` having been paid for, the paper's."""
        tokens, seconds = sum((paid := self.paid())[name] for name in TOKENS), paid.pop("seconds", 0)
        text = f"{self.who}: " + ", ".join(f"{k} {n}" for k, n in sorted(paid.items()) if n)
        if not tokens or not videos or not seconds:
            return text
        much, hours = tokens / videos * 52_000 / 1e6, seconds / videos * 52_000 / 3600
        return f"{text}; {tokens / seconds:.0f} tokens/s; 52,000 videos (paper, section 3) so: {much:.3g} million tokens, {hours:.3g} h"

    def settle(self, seconds: float = 0.0) -> None:
        """UserError where more than MOST_DROPPED of what was asked since the last call failed: what would be made of that had holes for ever.

        seconds: that the work took since then.
        """
        seconds and self.count(seconds=seconds)
        since, self.settled = self.counts - self.settled, Counter(self.counts)
        if since["failed"] > MOST_DROPPED * since["asked"]:
            raise UserError(f"{self.url} gave the {self.who} no answer to {since['failed']} of {since['asked']} questions: "
                            "see that it is up, and start again; what it answered is kept.")  # fmt: skip

    def _kept(self, what: str, *values: str | float) -> tuple | None:
        """A row of the cache, which ranks share; where it cannot be used (a lock that stays, a full or read-only disk), of one in memory."""
        for place in (self.cache, ":memory:"):
            try:
                if self.store is None:
                    self.store = sqlite3.connect(place, check_same_thread=False, timeout=120)
                    for table in "answers (key text primary key, answer text)", "paid (name text primary key, much)":
                        self.store.execute(f"create table if not exists {table}")
                with self.store:
                    return self.store.execute(what, values).fetchone()
            except sqlite3.OperationalError as error:
                self.cache, self.store = ":memory:", None
                print(f"{place}: {error}; what the {self.who} answers from now on is not kept there, and asked again after a restart.", file=sys.stderr)
            except sqlite3.Error as error:
                raise UserError(f"{place} is not a cache of judgements ({error}): give another file.") from None

    def _post(self, body: dict):
        """What the server says to this, parsed; httpx.ReadTimeout where the whole of it does not come in time, or does not end."""
        with self.lock:  # each request has its turn
            wait, self.next = self.next - time.monotonic(), max(self.next, time.monotonic()) + self.every
        time.sleep(max(0.0, wait))
        with self.client.stream("POST", f"{self.url}/chat/completions", json=body) as reply:
            if reply.status_code in (401, 403, 404):
                raise UserError(f"{self.url} answers {reply.status_code} to the {self.who.split()[0]}'s model {self.model!r}: "
                                f"check OPENAI_BASE_URL, OPENAI_API_KEY and {self.variable}.")
            reply.raise_for_status()
            said, until = b"", time.monotonic() + self.client.timeout.read
            for part in reply.iter_bytes():
                said += part
                if time.monotonic() > until or len(said) > LARGEST:
                    raise httpx.ReadTimeout("its answer is too slow, or too long")
        return json.loads(said.decode(errors="replace"))

    def count(self, **more: float) -> None:
        """So much more of what `counts` has under these names."""
        with self.lock:
            self.counts.update(more)
            self._kept(f"insert into paid values {', '.join(['(?, ?)'] * len(more))} on conflict (name) do update set much = much + excluded.much",
                       *chain(*more.items()))  # fmt: skip


def _may_pass(error: BaseException) -> bool:
    """Is it worth trying again: no connection, a time-out, too many requests, a server's own error, a truncated body?"""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (408, 409, 429) or error.response.status_code >= 500
    return isinstance(error, (httpx.TransportError, json.JSONDecodeError))
