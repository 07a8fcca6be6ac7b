"""Lets `import torchvision` work beside a CPU build of torch.

Why: torchvision 0.28.0 on the package registry is built against CUDA. Beside torch 2.13.0+cpu its C++
operators cannot load; torchvision forgives that, but then registers shapes for two operators that now do not
exist, and its import ends in `operator torchvision::nms does not exist`. Qwen2.5-VL's processor needs
torchvision only for image transforms, which are pure torch, so declaring the two operators (without bodies)
is enough.

Importing this module is cheap: it only leaves a note (an import hook) that acts at the moment torchvision is
asked for. Importing it twice, or where torchvision works, changes nothing. Every process that uses
torchvision needs it.
"""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

SCHEMAS = ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
           "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_declared = []  # the Library must stay alive, else torch forgets the operators


class _BeforeTorchvision:
    """An import hook that never finds anything; it declares the operators first and lets the import go on."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torchvision" and not _declared:
            spec = PathFinder.find_spec(name, path)
            if spec and spec.origin and not _operators_load(Path(spec.origin).parent):
                _declare()
        return None


def _operators_load(folder: Path) -> bool:
    """Whether torchvision's own C++ operators load beside this torch (loading them twice is harmless)."""
    import torch

    libraries = [p for p in folder.glob("_C*") if p.suffix in (".so", ".pyd", ".dylib")]
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except (ImportError, OSError):
        return False
    return bool(libraries)


def _declare() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _declared.append(library)


if "torchvision" not in sys.modules and not any(
        type(finder).__name__ == "_BeforeTorchvision" for finder in sys.meta_path):
    sys.meta_path.insert(0, _BeforeTorchvision())
