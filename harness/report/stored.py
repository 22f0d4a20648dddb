"""What a store has: its pictures, and what the cells of a samples.parquet hold, of which older ones lack columns."""

from contextlib import suppress
from math import isqrt
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import VtbenchError
from harness.reading import plain
from harness.report.results import Row, dig

LARGEST_PICTURE = 2**22  # bytes


def there(value: Any) -> bool:
    """Whether it is neither None nor NaN."""
    return not pd.api.types.is_scalar(value) or not pd.isna(value)


def pictures(folder: Path) -> dict[str, Path]:
    """Return the pictures that a sweep's folder has, by id; no links, which would put another's file into a page."""
    found = {}
    for path in sorted((folder / "images").glob("*.webp")):
        with suppress(VtbenchError, OSError):
            found[path.stem] = plain(path, LARGEST_PICTURE)
    return found


def listed(value: Any) -> list[Any]:
    """Return a list of the store, an empty one where there is none."""
    return list(value) if there(value) else []


def side(row: Row) -> int | None:
    """Return the patches along a picture; None where no record says or they make no square."""
    patches = next((found for record in row.records if (found := dig(record, "tokens", "patches"))), None)
    return isqrt(patches) if patches and isqrt(patches) ** 2 == patches else None
