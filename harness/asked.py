"""Reads one method with its parameters as a command line gives them: a name, and pairs of key=value."""

from collections.abc import Iterable

from harness.errors import VtbenchError
from harness.method_axes import asked, method_axes, with_budget
from harness.reading import read_pairs, suggest
from methods import METHODS
from methods.interface import Method, Shape


def method_of(name: str, pairs: Iterable[str], tokens: int | None, shape: Shape, *, not_pairs: str) -> Method:
    """Return the method, which can run on this shape.

    tokens: its budget, where no pair sets one; not_pairs: what to say where a pair is none or a key is there twice.
    Errors: VtbenchError for what is unknown or impossible.
    """
    parameters = read_pairs(name, pairs, not_pairs=not_pairs)
    if name not in METHODS:
        raise VtbenchError(f"--method: {name!r} is not a method; {suggest(name, METHODS)}")
    axes = method_axes(with_budget(asked(name, name, parameters), None if tokens is None else (tokens,)))
    (complete, *more) = axes.parameters()
    if more:
        raise VtbenchError(f"{name}: has several values; allowed is one for each parameter")
    method = METHODS[name](**complete)
    with axes.blame():
        method.stages(shape)
    return method
