"""Reads YAML files of people, and words what is wrong with them in one line: the key, then what is allowed."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import ErrorDetails

from harness.errors import VtbenchError


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key that is there twice instead of taking the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """Return a YAML file's mapping. Errors: VtbenchError `file:line:column: …`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise VtbenchError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise VtbenchError(f"{path}: byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise VtbenchError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    try:
        raw = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        problem = error.problem or error.context or "cannot be read"
        hint = "; YAML indents with spaces, not tabs" if r"'\t'" in problem else ""
        raise VtbenchError(f"{place}: not YAML: {problem}{hint}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise VtbenchError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise VtbenchError(f"{path}: not a mapping of keys to values")
    return raw


def read_pairs(place: str, pairs: Iterable[str], *, not_pairs: str) -> dict[str, Any]:
    """Return key=value pairs of a command line, the values read as YAML.

    place: whose keys they are; not_pairs: what to say where one is no pair or a key is there twice.
    Errors: VtbenchError.
    """
    read: dict[str, Any] = {}
    for pair in pairs:
        key, is_pair, value = pair.partition("=")
        if not is_pair or key in read:
            raise VtbenchError(not_pairs)
        try:
            read[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise VtbenchError(f"{place}.{key}: {value!r} cannot be read") from None
    return read


def suggest(given: object, known: Iterable[str]) -> str:
    """Return what is allowed, and what was probably meant."""
    known = list(known)
    near = get_close_matches(str(given), known, n=1)
    return (f"did you mean {near[0]}? " if near else "") + f"allowed are {', '.join(known)}"


def explain(error: ErrorDetails, known: Iterable[str] = ()) -> str:
    """Word one of pydantic's errors; `known` are the keys beside an unknown one."""
    value, kind = error["input"], error["type"]
    if kind == "extra_forbidden":
        return f"is not a key; {suggest(error['loc'][-1], known)}"
    if kind == "missing":
        return "is missing"
    if kind in ("too_short", "string_too_short"):
        return "is empty"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "literal_error":
        expected = error["ctx"]["expected"].replace(" or ", ", ").split(", ")
        return f"{value!r} is not possible; {suggest(value, [name.strip(chr(39)) for name in expected])}"
    return f"{value!r} is not possible; it should be {error['msg'].removeprefix('Input should be ')}"


def explain_value(errors: list[ErrorDetails]) -> str:
    """Word pydantic's errors about one value, which fits none of the types that it may have."""
    value = errors[0]["input"]
    types = [error["msg"].removeprefix("Input should be ") for error in errors if error["input"] is value]
    return explain(errors[0]) if len(types) == 1 else f"{value!r} is not possible; it should be {' or '.join(types)}"
