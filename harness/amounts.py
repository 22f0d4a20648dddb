"""Amounts as people write them: `8GiB` of memory, `30min` of time."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
NUMBER = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([a-zA-Z]+)", re.ASCII)


def _of(value: str, units: dict[str, int], example: str) -> float:
    """Return a text's amount. Errors: ValueError."""
    match = NUMBER.fullmatch(value)
    if match is None or match[2] not in units:
        raise ValueError(f"{value[:40]!r} is not possible; it should be like {example}, in {', '.join(units)}")
    return float(match[1]) * units[match[2]]


def _bytes(value: object) -> object:
    return int(_of(value, BYTES, "8GiB")) if isinstance(value, str) else value


def _seconds(value: object) -> object:
    return _of(value, SECONDS, "30min") if isinstance(value, str) else value


Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=1, le=2**50)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=366 * 86400)]


def duration(seconds: float) -> str:
    """Write 0.5 as `0.5 s`, 90 as `1 min 30 s`, 1800 as `30 min`."""
    if seconds < 60:
        return f"{seconds:g} s"
    parts, left = [], round(seconds)
    for unit in ("d", "h", "min", "s"):
        count, left = divmod(left, SECONDS[unit])
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
