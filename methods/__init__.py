"""Token reduction methods, one paper a file; `METHODS` is the table of names."""

from methods.fastv import FastV
from methods.full import Full
from methods.interface import Method
from methods.ivtp import IVTP
from methods.pooling import Pooling
from methods.random import Random
from methods.tome import ToMe
from methods.topk import TopK

METHODS: dict[str, type[Method]] = {
    "full": Full,
    "random": Random,
    "pooling": Pooling,
    "topk": TopK,
    "tome": ToMe,
    "fastv": FastV,
    "ivtp": IVTP,
}


def method(name: str, **parameters: object) -> Method:
    """Return a method by its name: `method("ivtp", tokens=64)`.

    Errors: ValueError that names what is allowed, for an unknown method, parameter or value.
    """
    if name not in METHODS:
        raise ValueError(f"method: {name!r} is unknown; allowed are {', '.join(METHODS)}")
    allowed = METHODS[name].__dataclass_fields__
    for parameter in parameters:
        if parameter not in allowed:
            raise ValueError(f"{name}: {parameter!r} is not a parameter; allowed are {', '.join(allowed)}")
    if "tokens" in allowed and "tokens" not in parameters:
        raise ValueError(f"{name}: tokens is missing; it is the number of visual tokens to keep")
    return METHODS[name](**parameters)  # type: ignore[arg-type]
