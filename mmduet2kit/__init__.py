"""mmduet2kit: a reproducible research kit for MMDuet2, a Video MLLM that decides at every turn whether to speak."""

__version__ = "0.1.0"
