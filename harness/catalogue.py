"""What there is to choose from, as data."""

from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from methods import METHODS
from methods.interface import Method, Shape

LLAVA = Shape(patches=576, vit_layers=23, llm_layers=32)


def catalogue() -> list[dict[str, Any]]:
    """Return every method: name, paper, trained, the seams at which it cuts, and its parameters."""
    return [
        {
            "name": name,
            "paper": kind.paper,
            "trained": kind.trained,
            "seams": _seams(kind),
            "parameters": _parameters(kind),
        }
        for name, kind in METHODS.items()
    ]


def _seams(kind: type[Method]) -> list[str]:
    """Return where the method cuts LLaVA-1.5 at a budget that all methods can reach."""
    needed: dict[str, Any] = {"tokens": 144} if any(field.name == "tokens" for field in fields(kind)) else {}
    return list(dict.fromkeys(stage.seam for stage in kind(**needed).stages(LLAVA)))


def _parameters(kind: type[Method]) -> list[dict[str, Any]]:
    types = get_type_hints(kind)
    return [
        {
            "name": field.name,
            "type": _name(types[field.name]),
            "required": field.default is MISSING,
            "default": None if field.default is MISSING else field.default,
        }
        for field in sorted(fields(kind), key=lambda field: field.default is not MISSING)
    ]


def _name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("None", "null")
