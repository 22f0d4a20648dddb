"""A small store as `vtbench run` leaves it, with pictures, kept patches, and answers that harm a careless page."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

TASKS = ("vqa_color", "vqa_count")
DOCS = 12  # a task
PICTURED = 8  # of each task
SIDE = 4
RED = (200, 40, 40)
HARMFUL = (
    "<script>document.title = 'harmed'</script>",
    "</script><img src=x onerror=\"document.title='harmed'\">",
    "**bold** [link](javascript:alert(1)) | `code` & &amp; \" ' \\",
    "\u202eright to left\u202c שלום",
    "long " * 4000,
    "{{ 7 * 7 }} ${7 * 7} <!-- --> ]]> \x07 \u2028",
)
ROWS = [("full", None), ("topk", 64), ("random", 64), ("topk", 16), ("random", 16)]


def kept(method: str, document: int) -> list[int]:
    """The patches that a method keeps of a document's picture: its diagonal, or the first ones."""
    return [0, 5, 10, 15] if method == "topk" else list(range(document % SIDE + 1))


def score(row: int, task: int, document: int) -> float:
    """The full model errs on the first document of a task, the others each on documents of their own."""
    return float(document != 0) if row == 0 else float((document + task) % (row + 1) != 0)


def answer(row: int, document: int) -> str:
    return HARMFUL[document] if row == 1 and document < len(HARMFUL) else f"row {row}"


def webp() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8 * SIDE, 8 * SIDE), RED).save(file, "webp", lossless=True)
    return file.getvalue()


def samples(row: int, method: str) -> pd.DataFrame:
    """What a trial leaves of its samples."""
    asked = [(t, d) for t in range(len(TASKS)) for d in range(DOCS)]
    return pd.DataFrame(
        {
            "task": [TASKS[t] for t, _ in asked],
            "doc_id": [d for _, d in asked],
            "image_id": [str(d) for _, d in asked],
            "question": [f"how <b>many</b> {'Squares' if d % 2 else 'rings'} of {TASKS[t]}?" for t, d in asked],
            "target": [f"target {d}" for _, d in asked],
            "answer": [answer(row, d) for _, d in asked],
            "score": [score(row, t, d) for t, d in asked],
            "pictures": [[f"picture{d}"] for _, d in asked],
            "kept": [None if method == "full" else [kept(method, d)] for _, d in asked],
            "merged": [method == "random"] * len(asked),
            "words": [["rings"] if method == "topk" else None for _ in asked],
        }
    )


def store(folder: Path, *, lack: tuple[str, ...] = ()) -> Path:
    """Write the sweep `folder`; lack: columns that an older store has not."""
    for row, (method, tokens) in enumerate(ROWS):
        trial = {
            "model": "pocket",
            "task": "vqa",
            "method": method,
            "parameters": {} if tokens is None else {"tokens": tokens},
            "limit": DOCS,
            "seed": 0,
            "dtype": "float32",
            "attention": "sdpa",
        }
        table = samples(row, method).drop(columns=list(lack))
        n = tokens or 576
        means = table.groupby("task")["score"].mean()
        record = {
            "id": f"{row:016x}",
            "trial": trial,
            "scores": {task: {"exact_match": float(means[task]), "n": DOCS} for task in TASKS},
            "tokens": {"patches": SIDE**2, "nominal": n, "into_llm": n, "mean_llm": n, "llm": [n] * 6, "vit": [n] * 8},
            "flops": {"tokens_basis": "every sample, then the mean", "total": {"flops": 10**9 + 10**6 * n}},
            "latency": None,
            "memory": None,
            "provenance": {"started": f"2026-01-01T00:00:{row:02}", "device": "cpu", "cpu_or_gpu_name": "a CPU"},
        }
        path = folder / record["id"]
        path.mkdir(parents=True)
        (path / "trial.yaml").write_text(yaml.safe_dump(trial))
        table.to_parquet(path / "samples.parquet", index=False)
        (path / "record.json").write_text(json.dumps(record))
    (folder / "images").mkdir()
    for document in range(PICTURED):
        (folder / "images" / f"picture{document}.webp").write_bytes(webp())
    return folder


def bits(mask: bytes) -> list[int]:
    """The patches of a bit mask, one by one."""
    return [i for i in range(SIDE**2) if mask[i // 8] >> (i % 8) & 1]


def overlaid() -> tuple[int, int, int]:
    """The colour of a patch that went, as `harness.show.overlay` makes it."""
    grey = 0.35 * float(np.dot(RED, [0.299, 0.587, 0.114])) + 0.65 * 255
    return (round(grey),) * 3
