"""PocketVQA's pictures, read once a process: lmms-eval runs a task's `utils.py` anew for every function it names."""

from functools import cache
from pathlib import Path

import pyarrow.parquet as pq


@cache
def pictures() -> dict[int, bytes]:
    """Return the pictures as PNG, by their scene's seed."""
    table = pq.read_table(Path(__file__).parent / "pocketvqa" / "test" / "images.parquet")
    return dict(zip(table["image_id"].to_pylist(), table["png"].to_pylist(), strict=True))
