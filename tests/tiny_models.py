"""A small Qwen2.5-VL with random weights, made once a session."""

from types import SimpleNamespace

import pytest

from mmduet2kit import model as models
from mmduet2kit.chat import message_text
from mmduet2kit.corpus.questions import QUESTIONS
from mmduet2kit.corpus.world import COLOURS, MOTIONS, SHAPES, sentence
from mmduet2kit.dialogue import DEFAULT_SYSTEM, NO_REPLY, PROACTIVE_SYSTEM

TEXTS = [
    message_text("system", PROACTIVE_SYSTEM), message_text("system", DEFAULT_SYSTEM), message_text("assistant", NO_REPLY),
    "So far there was a red circle and a blue ring. Subtitle: hello there.",
    *(sentence(c, s, m) for c in COLOURS for s in SHAPES for m in MOTIONS),
    *(q for pair in QUESTIONS.values() for q in pair),
]  # fmt: skip


def make_tiny(folder, seed=0, **sizes):
    spec = SimpleNamespace(**{
        **dict(hidden=64, layers=2, heads=2, kv_heads=1, head_dim=32, intermediate=96, vision_hidden=32, vision_layers=2,
               vision_heads=1, vision_intermediate=48, vocabulary=640, init_range=0.2, attention="sdpa"), **sizes,
    })  # fmt: skip
    tokenizer = models.train_tokenizer(TEXTS, spec.vocabulary)
    return models.save(models.make_model(spec, tokenizer, seed), models.make_processor(tokenizer), folder)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def tiny_model(tiny_folder):
    model, processor = models.load(tiny_folder)
    return model.eval(), processor
