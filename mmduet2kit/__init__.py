"""mmduet2kit: a reproducible research kit for MMDuet2, a Video MLLM that decides at every turn whether to speak."""

from . import torchvision_cpu  # noqa: F401 - cheap; must come before anything imports torchvision

__version__ = "0.1.0"
