"""Reads a method with the values of each of its parameters, as an entry of a sweep's `methods` has them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields
from itertools import product
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from harness.errors import VtbenchError
from harness.reading import explain_value, suggest
from methods import METHODS


def as_axis(value: object) -> object:
    """Take a scalar for a list of one."""
    return tuple(value) if isinstance(value, list) else (value,)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{value!r} is there twice")
    return values


T = TypeVar("T")
Axis = Annotated[tuple[T, ...], BeforeValidator(as_axis), Field(min_length=1), AfterValidator(_distinct)]


class MethodAxes(NamedTuple):
    """A method with the values of each of its parameters, and where the file says so."""

    place: str
    name: str
    values: dict[str, tuple[Any, ...]]

    def parameters(self) -> Iterator[dict[str, Any]]:
        """Yield every combination, defaults filled in. Errors: VtbenchError for values that the method refuses."""
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
            known = rest and parameter in {field.name for field in fields(METHODS[self.name])}
            raise VtbenchError(f"{self.place}{'.' if known else ': '}{error}") from None


def named(place: str, entry: object) -> tuple[str, Any]:
    """Return the method that an entry names, and the parameters that it gives. Errors: VtbenchError for no such."""
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        wanted = "a name, or {name: {parameter: values}}"
        raise VtbenchError(f"{place}: {entry!r} is not possible; it should be {wanted}")
    name, given = next(iter(entry.items()))
    if name not in METHODS:
        raise VtbenchError(f"{place}: {name!r} is not a method; {suggest(name, METHODS)}")
    return name, {} if given is None else given


def method_axes(place: str, name: str, given: object, tokens: tuple[int, ...] | None) -> MethodAxes:
    """Read a method's parameters; `tokens` is for a method with a budget that is not among them.

    Errors: VtbenchError for an unknown parameter or value, and for one that is missing.
    """
    known = {field.name: field for field in fields(METHODS[name])}
    if "tokens" in known and tokens is not None and isinstance(given, dict):
        given = {"tokens": list(tokens)} | given
    axes = some_axes(place, name, given)
    for field in known.values():
        if field.name not in axes.values and field.default is MISSING:
            raise VtbenchError(f"{place}.{field.name}: is missing")
    return axes


def some_axes(place: str, name: str, given: object) -> MethodAxes:
    """Read some of a method's parameters. Errors: VtbenchError for an unknown parameter or value."""
    types = get_type_hints(METHODS[name])
    known = [field.name for field in fields(METHODS[name])]
    if not isinstance(given, dict):
        raise VtbenchError(f"{place}: {given!r} is not possible; it should be a mapping of {', '.join(known)}")
    for parameter in given:
        if parameter not in known:
            raise VtbenchError(f"{place}.{parameter}: is not a parameter; {suggest(parameter, known)}")
    return MethodAxes(
        place,
        name,
        {parameter: _values(f"{place}.{parameter}", types[parameter], given[parameter]) for parameter in given},
    )


def check_one(place: str, entry: object) -> None:
    """Refuse an entry that is not some parameters of a method, a value each. Errors: VtbenchError."""
    name, given = named(place, entry)
    place = f"{place}.{name}"
    for parameter, values in some_axes(place, name, given).values.items():
        if len(values) > 1:
            raise VtbenchError(f"{place}.{parameter}: has several values; allowed is one")


def _values(place: str, kind: Any, given: object) -> tuple[Any, ...]:
    try:
        axis: tuple[Any, ...] = TypeAdapter(Axis[kind]).validate_python(given, strict=True)
    except ValidationError as error:
        raise VtbenchError(f"{place}: {explain_value(error.errors())}") from None
    return axis
