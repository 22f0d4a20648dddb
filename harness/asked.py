"""Reads one method with its parameters as a command line gives them: a name, and pairs of key=value."""

from collections.abc import Iterable
from typing import Any

import yaml

from harness.errors import VtbenchError
from harness.reading import suggest
from harness.spec import method_axes
from methods import METHODS
from methods.interface import Method, Shape


def method_of(name: str, pairs: Iterable[str], tokens: int | None, shape: Shape, *, not_pairs: str) -> Method:
    """Return the method, which can run on this shape.

    tokens: its budget, where no pair sets one; not_pairs: what to say where a pair is none or a key is there twice.
    Errors: VtbenchError for what is unknown or impossible.
    """
    parameters: dict[str, Any] = {}
    for pair in pairs:
        key, is_pair, value = pair.partition("=")
        if not is_pair or key in parameters:
            raise VtbenchError(not_pairs)
        try:
            parameters[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise VtbenchError(f"--method.{name}.{key}: {value!r} cannot be read") from None
    if name not in METHODS:
        raise VtbenchError(f"--method: {name!r} is not a method; {suggest(name, METHODS)}")
    axes = method_axes("--method", {name: parameters}, None if tokens is None else (tokens,))
    (complete, *more) = axes.parameters()
    if more:
        raise VtbenchError(f"--method.{name}: has several values; allowed is one for each parameter")
    method = METHODS[name](**complete)
    with axes.blame():
        method.stages(shape)
    return method
