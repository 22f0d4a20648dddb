"""What the cells of a samples.parquet hold, where some trials left a column that older ones lack."""

from math import isqrt
from typing import Any

import pandas as pd

from harness.report.results import Row, dig


def there(value: Any) -> bool:
    """Whether it is neither None nor NaN."""
    return not pd.api.types.is_scalar(value) or not pd.isna(value)


def listed(value: Any) -> list[Any]:
    """Return a list of the store, an empty one where there is none."""
    return list(value) if there(value) else []


def side(row: Row) -> int | None:
    """Return the patches along a picture; None where no record says or they make no square."""
    patches = next((found for record in row.records if (found := dig(record, "tokens", "patches"))), None)
    return isqrt(patches) if patches and isqrt(patches) ** 2 == patches else None
