"""Lets `import torchvision` work beside a CPU build of torch.

Why: torchvision 0.28.0 on the package registry is built against CUDA. Beside torch 2.13.0+cpu its C++ operators
cannot load; torchvision forgives that, but then registers shapes for two operators that now do not exist, and its import
ends in `operator torchvision::nms does not exist`. Qwen2.5-VL's processor needs torchvision only for image transforms,
which are pure torch, so declaring the two operators (without bodies) is enough.

Importing this module is cheap: it only leaves a note (an import hook) that acts at the moment torchvision is asked for.
Importing it twice, or where torchvision works, changes nothing. Every process that uses torchvision needs it.
"""

import sys
from importlib.machinery import PathFinder
from pathlib import Path


class _BeforeTorchvision:
    """An import hook that never finds anything; it declares the operators first and lets the import go on."""

    library = None  # must stay alive, else torch forgets the operators

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path) if name == "torchvision" and not cls.library else None
        if spec and spec.origin:
            import torch

            folder = Path(spec.origin).parent
            binaries = [path for path in folder.glob("_C*") if path.suffix in (".so", ".pyd", ".dylib")]
            try:  # loading them twice is harmless
                for binary in binaries:
                    torch.ops.load_library(str(binary))
            except (ImportError, OSError):
                binaries = []
            if not binaries:
                cls.library = torch.library.Library("torchvision", "DEF")
                for operator in ("nms", "qnms"):
                    cls.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


if "torchvision" not in sys.modules and "_BeforeTorchvision" not in (type(finder).__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, _BeforeTorchvision())
