"""Reads a method with the values of each of its parameters, as an entry of a sweep's `methods` has them.

Names are looked up as the methods' files declare them; the methods themselves, and with them torch, come when values
are read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import product
from math import prod
from typing import Any, NamedTuple, get_type_hints

from pydantic import TypeAdapter, ValidationError

from harness.declared import declared
from harness.errors import VtbenchError
from harness.reading import LARGEST_NUMBER, Axis, brief, explain_value, suggest


class Asked(NamedTuple):
    """An entry of `methods` as the file has it: a method that there is, with parameters that it has."""

    place: str
    name: str
    given: dict[str, Any]

    @property
    def cells(self) -> int:
        """How many combinations of values it has."""
        return prod(len(value) if isinstance(value, list) else 1 for value in self.given.values())


class MethodAxes(NamedTuple):
    """A method with the values of each of its parameters, and where the file says so."""

    place: str
    name: str
    values: dict[str, tuple[Any, ...]]

    def parameters(self) -> Iterator[dict[str, Any]]:
        """Yield every combination, defaults filled in. Errors: VtbenchError for values that the method refuses."""
        from methods import METHODS

        for combination in product(*self.values.values()):
            with self.blame():
                yield asdict(METHODS[self.name](**dict(zip(self.values, combination, strict=True))))

    @contextmanager
    def blame(self) -> Iterator[None]:
        """Turn a method's ValueError, which starts with a parameter's name, into one that says where in the file."""
        try:
            yield
        except ValueError as error:
            parameter, _, rest = str(error).partition(": ")
            known = rest and parameter in {each.name for each in declared()[self.name]}
            raise VtbenchError(f"{self.place}{'.' if known else ': '}{error}") from None


def named(place: str, entry: object) -> tuple[str, Any]:
    """Return the method that an entry names, and the parameters that it gives. Errors: VtbenchError for no such."""
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        wanted = "a name, or {name: {parameter: values}}"
        raise VtbenchError(f"{place}: {brief(entry)} is not possible; it should be {wanted}")
    name, given = next(iter(entry.items()))
    if name not in declared():
        raise VtbenchError(f"{place}: {brief(name)} is not a method; {suggest(name, declared())}")
    return name, {} if given is None else given


def asked(place: str, name: str, given: object) -> Asked:
    """Look up a method's parameters. Errors: VtbenchError for what is unknown, or possible of no parameter."""
    known = [parameter.name for parameter in declared()[name]]
    if not isinstance(given, dict):
        raise VtbenchError(f"{place}: {brief(given)} is not possible; it should be a mapping of {', '.join(known)}")
    for parameter in given:
        if parameter not in known:
            raise VtbenchError(f"{place}.{parameter}: is not a parameter; {suggest(parameter, known)}")
        _values(f"{place}.{parameter}", Any, given[parameter])
    return Asked(place, name, given)


def with_budget(asked: Asked, tokens: tuple[int, ...] | None) -> Asked:
    """Give a method with a budget that names none these tokens. Errors: VtbenchError for a missing parameter."""
    known, given = declared()[asked.name], asked.given
    if tokens is not None and "tokens" in {parameter.name for parameter in known}:
        given = {"tokens": list(tokens)} | given
    for parameter in known:
        if parameter.required and parameter.name not in given:
            raise VtbenchError(f"{asked.place}.{parameter.name}: is missing")
    return asked._replace(given=given)


def method_axes(asked: Asked) -> MethodAxes:
    """Read the values of a method's parameters. Errors: VtbenchError for one that is not possible."""
    from methods import METHODS

    types = get_type_hints(METHODS[asked.name])
    values = {name: _values(f"{asked.place}.{name}", types[name], given) for name, given in asked.given.items()}
    return MethodAxes(asked.place, asked.name, values)


def check_one(place: str, entry: object) -> None:
    """Refuse an entry that is not some parameters of a method, a value each. Errors: VtbenchError."""
    name, given = named(place, entry)
    axes = method_axes(asked(f"{place}.{name}", name, given))
    for parameter, values in axes.values.items():
        if len(values) > 1:
            raise VtbenchError(f"{axes.place}.{parameter}: has several values; allowed is one")


def _values(place: str, kind: Any, given: object) -> tuple[Any, ...]:
    try:
        axis: tuple[Any, ...] = TypeAdapter(Axis[kind]).validate_python(given, strict=True)
    except ValidationError as error:
        raise VtbenchError(f"{place}: {explain_value(error.errors())}") from None
    for value in axis:
        if isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
            raise VtbenchError(f"{place}: {brief(value)} is not possible; allowed are numbers up to {LARGEST_NUMBER:,}")
    return axis
