"""Questions and answers from scene captions: the template annotator of the procedural world (paper section 3, step 2)."""

import numpy as np

from ..dialogue import NO_REPLY
from .world import COLOURS, CORNERED, ROUND, article, facts

QUESTIONS = {
    "all": ("What things show up in the video?", "Tell me about everything that shows up."),
    "round": ("Which round things show up?", "Tell me about the round things."),
    "cornered": ("Which things with corners show up?", "Tell me about the things with corners."),
    **{c: (f"Which {c} things show up?", f"Tell me about the {c} things.") for c in COLOURS},
}
OFFLINE = {"caption": "Describe what the video shows.", "colour": "Which colour does the thing have?", "shape": "Which shape does the thing have?"}
NOTHING = "Nothing shows up."


def concerns(kind: str, caption: str) -> bool:
    """Whether a scene with this caption answers a question of this kind."""
    ((colour, shape, _),) = facts(caption)
    return kind in ("all", colour) or (kind == "round" and shape in ROUND) or (kind == "cornered" and shape in CORNERED)


def answers(kind: str, captions: list[str]) -> list[str]:
    """One answer a scene, or NO REPLY where the scene does not answer."""
    return [caption if concerns(kind, caption) else NO_REPLY for caption in captions]


def draw_questions(rng: np.random.Generator, captions: list[str], count: int) -> list[tuple[str, str]]:
    """`count` different (kind, question) pairs, each with at least one answer: all, a group of shapes, or one colour."""
    present = [kind for kind in QUESTIONS if any(concerns(kind, caption) for caption in captions)]
    weights = np.array([{"all": 0.4, "round": 0.175, "cornered": 0.175}.get(kind, 0.0) for kind in present])
    colours = np.array([kind in COLOURS for kind in present])
    weights[colours] = 0.25 / max(colours.sum(), 1)
    picked = rng.choice(present, size=min(count, len(present)), replace=False, p=weights / weights.sum())
    return [(str(kind), str(rng.choice(QUESTIONS[kind]))) for kind in picked]


def summary(captions: list[str]) -> str:
    """The immediate answer: what earlier scenes showed, in one sentence (paper section 3, nQnA)."""
    things = [f"{article(colour)} {colour} {shape}" for caption in captions for colour, shape, _ in facts(caption)]
    listed = things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]
    return f"So far there was {listed}."


def offline_answer(task: str, caption: str | None) -> str:
    """The gold text of an offline question about a stretch of video (None: nothing happens in it)."""
    if caption is None:
        return NOTHING
    ((colour, shape, _),) = facts(caption)
    return {"caption": caption, "colour": f"The thing is {colour}.", "shape": f"The thing is a {shape}."}[task]
