"""Tells by their content whether the files of a model or task are still the same."""

import hashlib
from functools import cache
from pathlib import Path

BLOCK = 1 << 16  # bytes read at a time
STEP = 1 << 24  # bytes from one block to the next: fewer than a layer or a projector that is trained alone has


@cache
def fingerprint(folder: Path) -> str:
    """Return 16 hex digits of a hash of the names, sizes and samples of all files in a folder, or of one file.

    Read of a file are both ends and a block at every STEP, of a 7B model some 55 MB. A change that keeps a file's size
    and lies between the blocks is not told.
    """
    digest = hashlib.sha256()
    files = [folder] if folder.is_file() else folder.rglob("*")
    for path in sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            for place in (*range(0, size, STEP), max(size - BLOCK, 0)):
                file.seek(place)
                digest.update(file.read(BLOCK))
    return digest.hexdigest()[:16]
