"""Token reduction methods, one paper a file; `METHODS` is the table of names."""

from dataclasses import fields
from typing import Literal, get_args, get_origin, get_type_hints

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
    chosen = METHODS[name]
    allowed = [field.name for field in fields(chosen)]
    types = get_type_hints(chosen)
    for parameter, value in parameters.items():
        if parameter not in allowed:
            raise ValueError(f"{name}: {parameter!r} is not a parameter; allowed are {', '.join(allowed)}")
        if get_origin(types[parameter]) is Literal and value not in get_args(types[parameter]):
            raise ValueError(
                f"{name}: {parameter} {value!r} is unknown; allowed are {', '.join(get_args(types[parameter]))}"
            )
    if "tokens" in allowed and "tokens" not in parameters:
        raise ValueError(f"{name}: tokens is missing; it is the number of visual tokens to keep")
    return chosen(**parameters)  # type: ignore[arg-type]
