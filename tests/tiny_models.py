"""A small Qwen2.5-VL with random weights, made once a session (played.py makes it)."""

import pytest

from mmduet2kit import model as models

from played import make_tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def tiny_model(tiny_folder):
    model, processor = models.load(tiny_folder)
    return model.eval(), processor
