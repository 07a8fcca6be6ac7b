"""Somebody's checkpoint loads like the kit's own: published key layouts, shards, a flat config, from a folder or the hub's cache."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmduet2kit import cli
from mmduet2kit import model as models
from mmduet2kit.corpus.build import build
from mmduet2kit.engines import Session, StreamEngine
from mmduet2kit.errors import UserError
from mmduet2kit.files import read_json
from mmduet2kit.model import encoder_for, fetched, load, safe_name
from mmduet2kit.profile import load_profile
from mmduet2kit.stream import Greedy

from played import frames_for, full_logits, pixels, random_dialogue, teach_silence
from published import publish
from tiny_models import tiny_folder, tiny_model  # noqa: F401

REVISION = "3224235ebb6256e2af7c196f2c265d6cf20c311a"


@pytest.fixture(scope="module")
def taught(tiny_folder, tmp_path_factory):  # noqa: F811
    """A folder of the kit's own whose model is silent at some turns and speaks at others."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("own") / "taught")
    return models.save(*teach_silence(*load(folder)), folder)


@pytest.mark.parametrize("head", [False, True])
def test_a_published_checkpoint_says_what_the_kits_own_says(taught, tmp_path, head):
    theirs = publish(taught, tmp_path / "theirs", head)
    assert len(list(theirs.glob("*.safetensors"))) == 2 and "text_config" not in read_json(theirs / "config.json")
    rng, found = np.random.default_rng(3), []
    dialogue = random_dialogue(rng, 12)
    frames = frames_for(rng, dialogue)
    for folder in (taught, theirs):
        model, processor = load(folder)
        encoder = encoder_for(processor, frames)
        ids = encoder.encode(dialogue.with_replies([None] * len(dialogue.turns))).ids
        session = Session(encoder.system(dialogue.system), frames, dialogue.turns)
        (said,) = StreamEngine(model.eval(), processor.image_processor).play(encoder, [session], Greedy(), 12)
        found.append({
            "logits": full_logits(model, processor, ids, frames, encoder.image_pad), "ids": ids, "said": [s.text for s in said],
            "pixels": pixels(processor.image_processor, frames), "tokens": encoder.tokens_per_frame,
            "template": processor.apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True),
            "tied": model.lm_head.weight is model.get_input_embeddings().weight,
        })  # fmt: skip
    mine, other = found
    assert mine["tokens"] == other["tokens"] == 4  # of 56 x 56 pixels, though its preprocessor would enlarge them to 256
    assert torch.equal(mine["logits"], other["logits"]) and mine["tied"] and other["tied"]
    assert all(torch.equal(a, b) for a, b in zip(mine["pixels"], other["pixels"]))
    assert [mine[key] for key in ("ids", "said", "template")] == [other[key] for key in ("ids", "said", "template")]
    assert len({*mine["said"]}) == 2 and "NO REPLY" in mine["said"]


def drop(weights, key):
    del weights[key]


def grow(weights, key):
    weights["model.layers.7.mlp.up_proj.weight"] = weights[key].clone()


def reshape(weights, key):
    weights[key] = torch.zeros(3, 3)


@pytest.mark.parametrize("damage, told", [
    (drop, r"missing model\.language_model\.layers\.0\.mlp\.gate_proj\.weight, and 0 more"),
    (grow, r"unknown model\.language_model\.layers\.7\.mlp\.up_proj\.weight"), (reshape, "mismatch")])  # fmt: skip
def test_weights_that_do_not_fit_are_one_sentence(tiny_folder, tmp_path, damage, told):  # noqa: F811
    """transformers only warns, and makes up what is missing."""
    theirs = publish(tiny_folder, tmp_path / "theirs")
    key = "model.layers.0.mlp.gate_proj.weight"
    shard = theirs / read_json(theirs / "model.safetensors.index.json")["weight_map"][key]
    weights = load_file(shard)
    damage(weights, key)
    save_file(weights, shard, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"No model could be loaded from .*{told}"):
        load(theirs)
    shard.unlink()
    with pytest.raises(UserError, match="No model could be loaded"):
        load(theirs)


def in_hub_cache(cache, folder, revision=REVISION):
    """Put a folder into the hub's cache as wangyueqian/MMDuet2, as a download would have."""
    home = cache / "models--wangyueqian--MMDuet2"
    shutil.copytree(folder, home / "snapshots" / revision)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(revision)


@pytest.fixture
def offline_hub(tmp_path, monkeypatch):
    for name, value in {"HF_HUB_OFFLINE": True, "HF_HUB_CACHE": str(tmp_path / "hub")}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    return tmp_path / "hub"


def test_a_hub_name_and_its_revision(tiny_folder, tmp_path, offline_hub):  # noqa: F811
    in_hub_cache(offline_hub, publish(tiny_folder, tmp_path / "theirs"))
    for name in ("wangyueqian/MMDuet2", f"wangyueqian/MMDuet2@{REVISION}"):
        assert fetched(name).name == REVISION
    model, _ = load(f"wangyueqian/MMDuet2@{REVISION}")
    assert torch.equal(model.lm_head.weight, load(tiny_folder)[0].lm_head.weight)
    for name in ("wangyueqian/MMDuet2@other", "wangyueqian/nothing"):
        with pytest.raises(UserError, match=f"No model could be loaded from {name} .*check the name, and that the hub can be reached"):
            load(name)


def test_result_files_of_a_checkpoint_have_a_safe_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {
        "wangyueqian/MMDuet2": "wangyueqian--MMDuet2", f"{tmp_path}/a b/rl/": "a-b--rl", "./rl": f"{tmp_path.name}--rl",
        "wangyueqian/MMDuet2@3224235": "wangyueqian--MMDuet2-3224235", "x/../y": f"{tmp_path.name}--y",
    }  # fmt: skip
    assert {name: safe_name(name) for name in names} == names
    assert len({safe_name("models/rl"), "rl", safe_name("./sft-1s"), "sft-1s"}) == 4


def test_evaluate_takes_a_checkpoint_of_any_name(tiny_folder, tmp_path, monkeypatch, offline_hub, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    tiny = load_profile("tiny")
    world = tiny.world.model_copy(update={"counts": {"base": {"clip": 2}, "sft": {"train_web": 2}, "rl": {"train_web": 1}, "dev": {"WEB": 1}, "test": {"WEB": 1}}})
    build(tiny.model_copy(update={"world": world, "parallel": 1}), tmp_path / "data", lambda _: lambda done, total: None)
    (tmp_path / "mine.yaml").write_text("extends: tiny\nname: mine\ndataset: data\nevaluate: {max_new_tokens: 4}\n")
    in_hub_cache(offline_hub, publish(tiny_folder, tmp_path / "theirs"))
    found = []
    for name, file in ((f"wangyueqian/MMDuet2@{REVISION}", f"wangyueqian--MMDuet2-{REVISION}"), ("./theirs", f"{tmp_path.name}--theirs")):
        assert cli.main(["evaluate", "--profile", "mine.yaml", "--model", name, "--domains", "WEB"]) == 0
        found.append(read_json(tmp_path / f"runs/mine/results/eval/{file}-seed1.json"))
        assert (tmp_path / f"runs/mine/results/eval/predictions/{file}-seed1-WEB-1s.jsonl").exists()
    assert found[0]["model"] == f"wangyueqian--MMDuet2-{REVISION}" and len(found[0]["weights"]) == 3  # the data's key, two shards
    assert json.dumps(found[0]["proactive"]) == json.dumps(found[1]["proactive"])
    capsys.readouterr()
    assert cli.main(["evaluate", "--profile", "mine.yaml", "--model", "./nothing"]) == 2
    assert "that folder does not exist" in capsys.readouterr().err
