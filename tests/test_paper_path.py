"""Everything that the profile `paper` switches on, in one run at tiny size: a dataset and a model that are named, ZeRO-2,
checkpointing, budgets, the released code's reward, an LLM judge, weights stored in bfloat16; by the commands that its notebooks call.

Apart, because a CPU cannot do them in one: bfloat16 compute with float32 masters (test_at_scale.py: transformers lets ZeRO
compute in bfloat16 on GPUs only), vLLM (test_vllm_engine.py), several ranks (test_distributed.py, test_launch.py).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from mmduet2kit import cli
from mmduet2kit.files import read_csv, read_json
from mmduet2kit.launch import free_port
from mmduet2kit.profile import load_profile

from test_launch import PROFILE
from test_llm_judge import server  # noqa: F401

TAKEN = {  # from paper.yaml, as it is
    "sft": ("freeze_vision", "no_reply_weight", "micro_batch", "jitter"),
    "rl": ("group", "micro_batch", "temperature", "top_k", "variant", "weights", "prefix_chars", "loss", "beta", "clip", "freeze_vision"),
}


def like_paper(tmp_path: Path, url: str) -> Path:
    """paper.yaml's switches with smoke's sizes."""
    paper = load_profile("paper")
    mine = {
        "name": "like-paper", "extends": "smoke", "dataset": str(tmp_path / "runs" / "launched" / "data"),
        "model": {"path": str(tmp_path / "runs" / "launched" / "models" / "base-seed1"), "dtype": paper.model.dtype, "attention": paper.model.attention},
        "judge": {"name": paper.judge.name, "url": url, "model": "a-model"},
        "launch": {"zero": paper.launch.zero, "checkpointing": paper.launch.checkpointing},
        **{part: {name: getattr(getattr(paper, part), name) for name in names} for part, names in TAKEN.items()},
    }  # fmt: skip
    mine["sft"] |= {"steps": 2, "batch": 2, "save_steps": 1, "max_tokens": 400}
    mine["rl"] |= {"steps": 2, "prompts": 2, "max_new_tokens": 12, "max_prompt": 120, "max_response": 160, "save_steps": 1, "eval_steps": 1}
    file = tmp_path / "like.yaml"
    file.write_text(yaml.safe_dump(mine | {"rl": {**mine["rl"], "weights": list(mine["rl"]["weights"])}}))
    return file


@pytest.mark.distributed
def test_the_papers_settings_run_from_sft_to_evaluation(tmp_path, monkeypatch, server, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(PROFILE)
    server.answer = lambda body: "yes" if "yes or no" in body["messages"][0]["content"] else str(1 + len(body["messages"][1]["content"]) % 3)
    assert cli.main(["data", "--profile", "mine.yaml"]) == 0 and cli.main(["base", "--profile", "mine.yaml"]) == 0
    profile = load_profile(str(like_paper(tmp_path, server.url)))
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
                                "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}  # fmt: skip

    def go(*command):
        done = subprocess.run([sys.executable, "-m", "mmduet2kit", *command, "--profile", "like.yaml"], capture_output=True, text=True,
                              env=environment | {"MASTER_PORT": str(free_port())}, timeout=300)  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    assert "is used as it is" in go("data")
    go("sft")
    before = len(server.requests)
    go("grpo")
    assert len(server.requests) > before  # the endpoint judged
    assert (profile.run_dir / "judge_cache.sqlite").is_file()
    for name, steps in (("sft", 2), ("rl", 2)):
        rows = read_csv(profile.results / f"train_{name}_seed1.csv")
        assert len(rows) == steps and all(torch.isfinite(torch.tensor(float(row["loss"]))) for row in rows)
        with safe_open(profile.model_dir(name, 1) / "model.safetensors", "pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}
    assert "evaluated WEB" in go("evaluate", "--domains", "WEB")
    found = read_json(profile.results / "eval" / "rl-seed1.json")["proactive"][0]["pooled"]
    assert found["spans"] > 0 and found["tokens_per_min"] > 0
    capsys.readouterr()


@pytest.mark.parametrize("name", ["paper", "single_gpu"])
def test_each_number_of_the_gpu_profiles_has_a_source(name):
    """A comment on its line, or on the block that it stands in."""
    lines = (Path(cli.__file__).parent / "profiles" / f"{name}.yaml").read_text().splitlines()
    bare, covered = [], False
    for line in lines:
        if line.lstrip().startswith("#"):
            covered = True  # a comment above covers what follows it, up to an empty line
        elif not line.strip():
            covered = False
        elif any(sign.isdigit() for sign in line.split("#")[0]) and "#" not in line and not covered and not line.startswith(("  - ", "purpose")):
            bare.append(line)
    assert len(bare) <= (4 if name == "paper" else 3), bare  # first lines of blocks whose last line has the comment


def test_the_paper_profile_has_the_papers_settings():
    p = load_profile("paper")
    assert (p.rl.steps, p.rl.prompts * p.rl.steps, p.rl.group, p.rl.lr, p.rl.temperature, p.rl.top_k) == (489, 7824, 4, 1e-6, 1.2, 10)
    assert (p.rl.max_prompt, p.rl.max_response, p.rl.max_new_tokens, p.rl.beta, p.rl.variant) == (17100, 8550, 100, 0.0, "upstream")
    assert tuple(p.rl.weights) == (3, 2, 0.5, 2) and p.rl.prefix_chars == 50 and not p.rl.freeze_vision
    assert (p.sft.lr, p.sft.batch, p.sft.warmup, p.sft.max_tokens, p.sft.freeze_vision) == (1e-5, 32, 0.05, 10000, True)
    dialogues, offline = 50_228 + 2_543 - 1_900, 50_000  # Table 1 less what is held out for RL; LLaVA-Video and tarsier2
    assert p.sft.steps * p.sft.batch == pytest.approx(dialogues + offline, abs=p.sft.batch) and p.video.visual_tokens == 128
    assert p.dialogue.offline_share == pytest.approx(offline / (dialogues + offline), abs=1e-4) and p.evaluate.max_new_tokens == 512
    assert [p.rl.turns(p.video.train_frames_per_turn * every) for every in (2.0, 1.0)] == [(5, 15), (10, 30)]  # 20 to 60 s
    assert (p.at(1.0).rl.max_prompt, p.at(1.0).rl.max_response, p.at(1.0).sft.max_tokens) == (34200, 17100, 20000)  # upstream's 1 s script
    assert (p.video.train_interval, p.video.test_interval, p.video.train_frames_per_turn) == (2.0, 1.0, 2)
    one = load_profile("single_gpu")
    same = ("lr", "group", "temperature", "top_k", "max_new_tokens", "variant", "weights", "max_prompt", "max_response")
    assert all(getattr(one.rl, name) == getattr(p.rl, name) for name in same) and one.launch.zero == 0
