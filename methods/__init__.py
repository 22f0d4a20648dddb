"""Token reduction methods, one paper a file; `METHODS` is the table of names, `TRAINING_FREE` of those that run."""

from dataclasses import MISSING, fields
from typing import Literal, get_args, get_origin, get_type_hints

from methods.divprune import DivPrune
from methods.downsample import Downsample
from methods.evit import EViT
from methods.fastv import FastV
from methods.full import Full
from methods.interface import Method
from methods.ivtp import IVTP
from methods.ivtp_v import IVTPV
from methods.lvpruning import LVPruning
from methods.pooling import Pooling
from methods.prumerge import PruMerge
from methods.prumerge_plus import PruMergePlus
from methods.pyramiddrop import PyramidDrop
from methods.random import Random
from methods.sparsevlm import SparseVLM
from methods.tome import ToMe
from methods.tome_plus import ToMePlus
from methods.topk import TopK
from methods.topk_plus import TopKPlus
from methods.visionzip import VisionZip

METHODS: dict[str, type[Method]] = {
    "full": Full,
    "random": Random,
    "pooling": Pooling,
    "downsample": Downsample,
    "topk": TopK,
    "evit": EViT,
    "tome": ToMe,
    "prumerge": PruMerge,
    "prumerge+": PruMergePlus,
    "visionzip": VisionZip,
    "divprune": DivPrune,
    "fastv": FastV,
    "pyramiddrop": PyramidDrop,
    "sparsevlm": SparseVLM,
    "topk+": TopKPlus,
    "tome+": ToMePlus,
    "ivtp-v": IVTPV,
    "ivtp": IVTP,
    "lvpruning": LVPruning,
}
TRAINING_FREE = {name: kind for name, kind in METHODS.items() if not kind.trained}


def _fits(value: object, kind: object) -> bool:
    """Return whether a value is of a parameter's type; a whole number is a float, and a bool no number."""
    if get_origin(kind) is Literal:
        return value in get_args(kind) or isinstance(value, str)  # the method itself names the words that it allows
    if get_args(kind):
        return any(_fits(value, each) for each in get_args(kind))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def method(name: str, **parameters: object) -> Method:
    """Return a method by its name: `method("ivtp", tokens=64)`.

    Errors: ValueError that names what is allowed, for an unknown method, parameter or value.
    """
    if name not in METHODS:
        raise ValueError(f"method: {name!r} is unknown; allowed are {', '.join(METHODS)}")
    chosen = METHODS[name]
    allowed = [field.name for field in fields(chosen)]
    types = get_type_hints(chosen)
    for parameter, value in parameters.items():
        if parameter not in allowed:
            raise ValueError(f"{name}: {parameter!r} is not a parameter; allowed are {', '.join(allowed)}")
        kind = types[parameter]
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise ValueError(f"{name}: {parameter} {value!r} is unknown; allowed are {', '.join(get_args(kind))}")
        if not _fits(value, kind):
            raise ValueError(f"{name}: {parameter} {value!r} is of the wrong type")
    needed = [field.name for field in fields(chosen) if field.default is MISSING]
    if "tokens" in needed and "tokens" not in parameters:
        raise ValueError(f"{name}: tokens is missing; it is the number of visual tokens to keep")
    return chosen(**parameters)  # type: ignore[arg-type]
