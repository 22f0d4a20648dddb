"""Methods and their parameters by name, as their files declare them: read, not imported, for torch takes seconds."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class Parameter(NamedTuple):
    """A method's parameter."""

    name: str
    required: bool


@cache
def declared() -> dict[str, tuple[Parameter, ...]]:
    """Return what the table in methods/__init__.py names, in its order, with the fields of each dataclass."""
    found = find_spec("methods")
    assert found is not None and found.origin is not None
    folder = Path(found.origin).parent
    table = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    file_of = {
        alias.name: folder / f"{(node.module or '').rpartition('.')[2]}.py"
        for node in table.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    (methods,) = (
        node.value
        for node in table.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "METHODS"
    )
    assert isinstance(methods, ast.Dict)
    return {
        key.value: tuple(_parameters(kind.id, file_of).values())
        for key, kind in zip(methods.keys, methods.values, strict=True)
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and isinstance(kind, ast.Name)
    }


def _parameters(kind: str, file_of: dict[str, Path]) -> dict[str, Parameter]:
    """Return the fields of a class, those of its bases first, as a dataclass has them."""
    if kind not in file_of:
        return {}
    body = ast.parse(file_of[kind].read_text(encoding="utf-8")).body
    (found,) = (node for node in body if isinstance(node, ast.ClassDef) and node.name == kind)
    known: dict[str, Parameter] = {}
    for base in found.bases:
        if isinstance(base, ast.Name):
            known |= _parameters(base.id, file_of)
    for node in found.body:
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and not ast.unparse(node.annotation).startswith("ClassVar")
        ):
            known[node.target.id] = Parameter(node.target.id, required=node.value is None)
    return known
