"""Reads YAML files of people, and words what is wrong with them in one line: the key, then what is allowed.

A file is a regular one of at most LARGEST bytes, and its content, every alias written out, at most MOST values, so that
nothing in it costs more than a moment.
"""

import stat
from collections.abc import Hashable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import ErrorDetails

from harness.errors import VtbenchError

LARGEST = 64 * 1024
LARGEST_RECORD = 2**26  # bytes of what runs leave as JSON
MOST = 100_000
DEEPEST = 20
LARGEST_NUMBER = 10**9  # of any that a person asks for


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key that is there twice instead of taking the last, and YAML bombs."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            self._measure(node, {}, 0)
        return node

    def _measure(self, node: yaml.Node, known: dict[int, tuple[int, int]], above: int) -> tuple[int, int]:
        """Return how many values a node has and how deep they are nested, every alias written out."""
        if id(node) not in known:
            inner = node.value if isinstance(node, yaml.CollectionNode) else ()
            nodes = [each for entry in inner for each in (entry if isinstance(entry, tuple) else (entry,))]
            # a node that contains itself goes down until it is too deep
            sizes = [self._measure(each, known, above + 1) for each in nodes] if above <= DEEPEST else [(0, DEEPEST)]
            size, depth = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
            if depth > DEEPEST:
                _refuse(f"values are nested deeper than {DEEPEST} levels", node.start_mark)
            if size > MOST:
                _refuse(f"with its aliases written out it has more than {MOST:,} values", node.start_mark)
            known[id(node)] = size, depth
        return known[id(node)]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                _refuse(f"the key {brief(key.value)} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, OverflowError) as error:  # 2026-13-45, a 5,000-digit number
            _refuse(f"{brief(node.value)} cannot be read as {node.tag.rpartition(':')[2]}: {error}", node.start_mark)


def _refuse(problem: str, mark: yaml.Mark) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, mark) from None


def _parse(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_mapping(path: Path) -> dict[str, Any]:
    """Return a YAML file's mapping. Errors: VtbenchError `file:line:column: …`."""
    text = read_text(path)
    try:
        raw = _parse(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        problem = error.problem or error.context or "cannot be read"
        hint = "; YAML indents with spaces, not tabs" if r"'\t'" in problem else ""
        raise VtbenchError(f"{place}: not YAML: {problem}{hint}") from None
    except yaml.reader.ReaderError as error:
        raise VtbenchError(f"{path}: not YAML: character {error.position} is {error.character:#x}") from None
    except RecursionError:
        raise VtbenchError(f"{path}: not YAML: values are nested deeper than {DEEPEST} levels") from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise VtbenchError(f"{path}: not a mapping of keys to values")
    return raw


def read_text(path: Path) -> str:
    """Return a small file's text. Errors: VtbenchError for what is no regular file of UTF-8, or too large a one."""
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise VtbenchError(f"{path}: is a directory; allowed is a file")
        if not stat.S_ISREG(found.st_mode):
            raise VtbenchError(f"{path}: is a device, a pipe or a socket; allowed is a file")
        if found.st_size > LARGEST:
            raise VtbenchError(f"{path}: has {found.st_size:,} bytes; allowed are at most {LARGEST:,}")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise VtbenchError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise VtbenchError(f"{path}: byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise VtbenchError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:  # a NUL in the path
        raise VtbenchError(f"{path}: {error}") from None


def plain(path: Path, largest: int) -> Path:
    """Return the path of what must be a file of its own and of at most so many bytes: no link, pipe or device.

    Errors: VtbenchError, OSError.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise VtbenchError("is a link, a pipe or a device; allowed is a file")
    if found.st_size > largest:
        raise VtbenchError(f"has {found.st_size:,} bytes; allowed are at most {largest:,}")
    return path


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
            read[key] = _parse(value)
        except (yaml.YAMLError, RecursionError):
            raise VtbenchError(f"{place}.{key}: {brief(value)} cannot be read") from None
    return read


def as_axis(value: object) -> object:
    """Take a scalar for a list of one."""
    return tuple(value) if isinstance(value, list) else (value,)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    seen = set()
    for value in values:
        if not isinstance(value, Hashable):
            continue
        if value in seen:
            raise ValueError(f"{brief(value)} is there twice")
        seen.add(value)
    return values


T = TypeVar("T")
Axis = Annotated[tuple[T, ...], BeforeValidator(as_axis), Field(min_length=1), AfterValidator(_distinct)]


def brief(value: object) -> str:
    """Return a value as Python writes it, a long one cut."""
    written = repr(value)
    return written if len(written) <= 100 else f"{written[:80]} … ({len(written)} characters)"


def suggest(given: object, known: Iterable[str]) -> str:
    """Return what is allowed, and what was probably meant."""
    known = list(known)
    near = get_close_matches(str(given)[:100], known, n=1)
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
        return f"{brief(value)} is not possible; {suggest(value, [name.strip(chr(39)) for name in expected])}"
    return f"{brief(value)} is not possible; it should be {error['msg'].removeprefix('Input should be ')}"


def explain_value(errors: list[ErrorDetails]) -> str:
    """Word pydantic's errors about one value, which fits none of the types that it may have."""
    value = errors[0]["input"]
    types = [error["msg"].removeprefix("Input should be ") for error in errors if error["input"] is value]
    return (
        explain(errors[0]) if len(types) == 1 else f"{brief(value)} is not possible; it should be {' or '.join(types)}"
    )
