"""mmduet2kit: a reproducible research kit for MMDuet2, a Video MLLM that decides at every turn whether to speak."""

import os

# The same sums in every run: MKL's fast paths else depend on where a matrix lies in memory (no cost was measurable).
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

from . import torchvision_cpu  # noqa: E402, F401 - cheap; must come before anything imports torchvision

__version__ = "0.1.0"
