"""What there is to choose from, as data."""

from dataclasses import MISSING, fields
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from methods import METHODS
from methods.interface import Method, Seam, Shape

LLAVA = Shape(patches=576, vit_layers=23, llm_layers=32)


def catalogue() -> list[dict[str, Any]]:
    """Return every method: name, paper, summary, trained, the seams at which it cuts, positions and parameters.

    positions: the method's own policy, the default of its parameter.
    """
    return [
        {
            "name": name,
            "paper": kind.paper,
            "summary": (kind.__doc__ or "").splitlines()[0],
            "trained": kind.trained,
            "seams": _seams(kind),
            "positions": kind.positions,
            "parameters": _parameters(kind),
        }
        for name, kind in METHODS.items()
    ]


def _seams(kind: type[Method]) -> list[str]:
    """Return where the method cuts LLaVA-1.5, in the order of the data, at a budget that all methods can reach."""
    needed: dict[str, Any] = {"tokens": 256} if any(field.name == "tokens" for field in fields(kind)) else {}
    found = {stage.seam for stage in kind(**needed).stages(LLAVA)}
    return [seam for seam in get_args(Seam) if seam in found]


def _parameters(kind: type[Method]) -> list[dict[str, Any]]:
    """Return each parameter; allowed lists its values, or says the range of its numbers."""
    types = get_type_hints(kind, include_extras=True)
    return [
        {
            "name": field.name,
            "type": _name(types[field.name]),
            "allowed": _allowed(types[field.name]),
            "required": field.default is MISSING,
            "default": None if field.default is MISSING else field.default,
        }
        for field in sorted(fields(kind), key=lambda field: field.name != "tokens")
    ]


def _allowed(kind: Any) -> list[Any] | str | None:
    if get_origin(kind) is Annotated:
        return str(kind.__metadata__[0])
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return next((allowed for each in get_args(kind) if isinstance(allowed := _allowed(each), str)), None)


def _name(kind: Any) -> str:
    """Return a type as one says it: `int or all`, `int or null`."""
    if get_origin(kind) is Annotated:
        return _name(kind.__origin__)
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    if get_args(kind):
        return " or ".join(map(_name, get_args(kind)))
    return "null" if kind is NoneType else str(kind.__name__)
