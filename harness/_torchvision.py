"""Lets torchvision's PyPI build, which is compiled for CUDA, be imported beside a CPU build of torch.

There is no CPU build of torchvision on PyPI for every platform, and `import torchvision` then fails with
"operator torchvision::nms does not exist" although its transforms are plain Python. Importing this module costs
nothing: the work happens when torchvision is first imported, and a torchvision that loads is left alone.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_declared: list[Any] = []  # a torch.library.Library un-registers its operators when it is collected


class _Finder(importlib.abc.MetaPathFinder):
    """Runs once, before torchvision's first import, and then finds nothing."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_missing_operators()
        return None


def _declare_missing_operators() -> None:
    spec = importlib.machinery.PathFinder.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    import torch

    try:
        for library in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(library))
    except OSError:
        fragment = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            fragment.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(fragment)


def install() -> None:
    """Install the import hook, unless torchvision is imported already."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _Finder())
