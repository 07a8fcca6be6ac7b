"""Annotators (paper section 3, steps 1 and 2): captions of scenes, questions with an answer a scene, immediate answers.

One small interface: the procedural world's templates, and a multimodal model over an OpenAI-compatible endpoint with the kit's
own prompts. What comes back is checked against a schema, repaired once, and else None: the ledger says so, nothing is made up.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import yaml
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from ..dialogue import NO_REPLY
from ..endpoint import Endpoint
from ..files import sha256_text
from .questions import answers, draw_questions, summary

VERSION = "1"  # of the prompts: part of every key of the cache
PICTURES = 8  # of a scene, at most, evenly spaced
PROMPTS = yaml.safe_load(Path(__file__).with_name("prompts.yaml").read_text())
Text = Annotated[str, Field(min_length=1, max_length=2000)]


class Caption(BaseModel):
    caption: Text


class Asked(BaseModel):
    """A question and its answers, one a scene; null is NO REPLY."""

    question: Text
    answers: list[Text | None]


class Questions(BaseModel):
    questions: Annotated[list[Asked], Field(min_length=1, max_length=8)]


class Answer(BaseModel):
    answer: Text


@dataclass(frozen=True)
class Scene:
    """What an annotator is shown of a scene: pictures [N, H, W, 3] uint8, speech, and what the corpus itself notes of it."""

    pictures: np.ndarray
    speech: str = ""
    note: str = ""


class Annotator(Protocol):
    """None wherever no usable answer could be had."""

    name: str

    def caption(self, scene: Scene) -> str | None: ...

    def questions(self, captions: Sequence[str], count: int, seed: int) -> list[tuple[str, list[str]]] | None:
        """[(question, one answer or NO REPLY a scene)]."""

    def summary(self, question: str, earlier: Sequence[str]) -> str | None:
        """The immediate answer to a question that is asked after `earlier` scenes (nQnA)."""


class TemplateAnnotator:
    """The procedural world's: what a scene shows is in its note."""

    name = "template"

    def caption(self, scene: Scene) -> str | None:
        return scene.note or None

    def questions(self, captions: Sequence[str], count: int, seed: int) -> list[tuple[str, list[str]]] | None:
        picked = draw_questions(np.random.default_rng(seed), list(captions), count)
        return [(question, answers(kind, list(captions))) for kind, question in picked]

    def summary(self, question: str, earlier: Sequence[str]) -> str | None:
        return summary(list(earlier))


class LLMAnnotator:
    """A multimodal model over an endpoint (OPENAI_BASE_URL, MMDUET2_ANNOTATOR_MODEL); its answers are kept in `cache`."""

    name = "llm"

    def __init__(self, url: str | None = None, model: str | None = None, cache: Path | str = "annotations.sqlite", **options):
        self.endpoint = Endpoint("annotator 'llm'", "MMDUET2_ANNOTATOR_MODEL", url, model, cache, **options)
        self.counts, self.parallel = self.endpoint.counts, self.endpoint.parallel

    def caption(self, scene: Scene) -> str | None:
        shown = scene.pictures[np.unique(np.linspace(0, len(scene.pictures) - 1, PICTURES).round().astype(int))]
        found = self._ask("caption", Caption, {"speech": scene.speech, "note": scene.note}, shown)
        return found and " ".join(found.caption.split())

    def questions(self, captions: Sequence[str], count: int, seed: int) -> list[tuple[str, list[str]]] | None:
        def fits(found: Questions) -> str:
            wrong = [len(one.answers) for one in found.questions if len(one.answers) != len(captions)]
            return f"each question needs {len(captions)} answers, one a scene, and one has {wrong[0]}" if wrong else ""

        numbered = {f"scene {k}": caption for k, caption in enumerate(captions, 1)}
        found = self._ask("questions", Questions, numbered, check=fits, count=count)
        return found and [(one.question.strip(), [" ".join(a.split()) if a else NO_REPLY for a in one.answers]) for one in found.questions[:count]]

    def summary(self, question: str, earlier: Sequence[str]) -> str | None:
        found = self._ask("summary", Answer, {"question": question, "answers until now": list(earlier)})
        return found and " ".join(found.answer.split())

    def _ask(self, task: str, kind: type[BaseModel], texts: dict, pictures: Sequence[np.ndarray] = (), check=lambda found: "", **words):
        """The model's answer as `kind`; one that does not fit the schema is sent back once with what is wrong."""
        body, images = json.dumps(texts, ensure_ascii=False, indent=1), [_jpeg(picture) for picture in pictures]
        system = PROMPTS[task]
        for name, value in words.items():
            system = system.replace("{" + name + "}", str(value))
        said: list[dict] = [{"type": "text", "text": body}]
        said += [{"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}} for image in images]
        messages = [{"role": "system", "content": system}, {"role": "user", "content": said if images else body}]
        rejected: list[tuple[str, str]] = []

        def usable(text: str) -> str | None:
            start, end = (text := text.replace("<image>", "image")).find("{"), text.rfind("}")  # which stands for a frame in dialogues
            try:
                found = kind.model_validate_json(text[start : end + 1])
                wrong = check(found)
            except ValidationError as error:
                wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3])
            rejected or self.endpoint.count(**{task: 1})  # paid for now; its repair is no other
            rejected.extend([(text, wrong)] if wrong else [])
            return None if wrong else text[start : end + 1]

        key = sha256_text(json.dumps([VERSION, self.endpoint.model, system, body, images]))
        answer = self.endpoint.ask(key, messages, usable)
        if answer is None and rejected:
            text, wrong = rejected[-1]
            self.endpoint.count(repaired=1)
            again = [{"role": "assistant", "content": text[:4000]}, {"role": "user", "content": f"That does not fit ({wrong}). The JSON alone, please."}]
            answer = self.endpoint.ask(key, messages + again, usable)
        if answer is None and (self.counts - self.endpoint.settled)["failed"] >= self.parallel:  # no hours of waiting for what does not answer
            self.endpoint.settle()
        return None if answer is None else kind.model_validate_json(answer)


def _jpeg(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()


def get_annotator(name: str, cache: Path | str) -> Annotator:
    """The annotator of that name; `cache` keeps what an endpoint answered."""
    return TemplateAnnotator() if name == "template" else LLMAnnotator(cache=cache)
