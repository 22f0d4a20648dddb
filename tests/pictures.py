"""Pictures that are unlike others, broken ones, and POPE's task with them."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

QUESTION = "is there a red circle in the picture?"


def png(image: Image.Image, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RED, BLUE = Image.new("RGB", (60, 60), (200, 20, 20)), Image.new("RGB", (60, 60), (20, 20, 200))
LARGE = Image.frombytes("RGB", (80, 80), os.urandom(80 * 80 * 3))


def bomb() -> bytes:
    """Return a PNG of a few bytes that says it has 40,000 × 40,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BROKEN = {
    "no image": b"not an image",
    "an empty file": b"",
    "a file cut short": png(LARGE)[:3000],
    "a bomb": bomb(),
}
UNUSUAL = {
    "CMYK": png(RED.convert("CMYK"), "jpeg"),
    "one pixel": png(RED.resize((1, 1))),
    "one row": png(RED.resize((90, 1))),
    "animated": png(RED, "gif", save_all=True, append_images=[BLUE], duration=50),
    "with a palette": png(RED.quantize(4)),
    "grey with alpha": png(RED.convert("LA")),
    "of 16 bits": png(RED.convert("I").convert("I;16")),
}


def pope(path: Path, files: list[bytes]) -> dict[str, Any]:
    """Write a data set of a question about each of these files; return lmms-eval's POPE with it, as a task."""
    columns = ("question_id", "question", "answer", "category")
    rows = [
        {"id": i, "image": {"bytes": file, "path": None}}
        | dict(zip(columns, (str(i), QUESTION, "no", "x"), strict=True))
        for i, file in enumerate(files)
    ]
    text = dict.fromkeys(columns, datasets.Value("string"))
    features = datasets.Features({"id": datasets.Value("int64"), "image": datasets.Image()} | text)
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    files_of_splits = {"data_files": {"test": str(path)}}
    return {"task": "pope", "dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": files_of_splits}
