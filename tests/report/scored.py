"""Sweeps with scores, as the store has them, and what is read in their reports."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from harness import report
from harness.shown import Shown

TASKS = ["pocketvqa_count", "pocketvqa_where"]


def add(folder: Path, number: int, method: str, parameters: dict, *, right: float, measured: bool = True) -> None:
    """Write one trial as `harness.store` does."""
    rng = np.random.default_rng(7)
    draws = rng.random(200)
    samples = pd.DataFrame(
        {
            "task": [TASKS[i % 2] for i in range(200)],
            "doc_id": [i // 2 for i in range(200)],
            "image_id": [str(i // 4) for i in range(200)],
            "score": (draws < right).astype(float),
            "answer": ["x"] * 200,
        }
    )
    trial = {
        "model": "pocket",
        "task": "pocketvqa",
        "method": method,
        "parameters": parameters,
        "limit": 100,
        "seed": 0,
        "dtype": "float32",
        "attention": "sdpa",
    }
    nominal = parameters.get("tokens", 576)
    n = 41.5 if nominal is None else nominal
    record = {
        "id": f"{number:016x}",
        "trial": trial,
        "scores": {
            task: {"exact_match": float(samples.score[samples.task == task].mean()), "n": 100} for task in TASKS
        },
        "tokens": {"nominal": nominal, "into_llm": float(n), "mean_llm": float(n), "llm": [n] * 6, "vit": [n] * 8},
        "flops": {"tokens_basis": "every sample, then the mean", "total": {"flops": 10**9 + 10**6 * n}}
        if measured
        else None,
        "latency": {
            "clock": "CPU time",
            "exclusive": True,
            "prefill_ms": {"q25": 12.0, "median": 12.34, "q75": 13.0, "raw": [12.34]},
            "vision_ms": {"median": 4.0, "raw": [4.0]},
            "pruner_ms": None if method == "full" else {"median": -0.26, "raw": [-0.26]},
            "decode_ms": {"median": 1.5, "raw": [1.5]},
        }
        if measured
        else None,
        "memory": {"kv_visual_bytes": n * 3072, "peak_kind": "process RSS"} if measured else None,
        "provenance": {
            "vtbench": "0.1.0",
            "git_commit": "abc",
            "python": "3.11",
            "torch": "2.13",
            "device": "cpu",
            "cpu_or_gpu_name": "a <b> CPU",
            "started": f"2026-01-01T00:00:{number:02}",
            "protocol": 1,
        },
    }
    path = folder / record["id"]
    path.mkdir(parents=True)
    (path / "trial.yaml").write_text(yaml.safe_dump(trial))
    samples.to_parquet(path / "samples.parquet", index=False)
    (path / "record.json").write_text(json.dumps(record))


def mine(folder: Path) -> Path:
    """Write the trials of a sweep into the folder, one of them failed, and return it."""
    add(folder, 1, "full", {}, right=0.9)
    for number, tokens in enumerate((64, 16), start=2):
        add(folder, number, "topk", {"tokens": tokens}, right=0.5)
    number = 10
    for group in (2, 3):
        for threshold in (0.1, 0.2):
            tokens, right = 64, 0.9 if (group, threshold) == (3, 0.2) else 0.7
            add(folder, number, "ivtp", {"tokens": tokens, "group": group, "threshold": threshold}, right=right)
            number += 1
    add(folder, number, "ivtp", {"tokens": 16, "group": 3, "threshold": 0.2}, right=0.6, measured=False)
    failed = folder / ("f" * 16)
    failed.mkdir()
    trial = {"method": "pooling", "parameters": {"tokens": 50}, "task": "pocketvqa"}
    (failed / "trial.yaml").write_text(yaml.safe_dump(trial))
    (failed / "failure.json").write_text(json.dumps({"error": "out of <b>memory</b> | *bold*", "traceback": ""}))
    return folder


def amend(folder: Path, number: int, **trial: object) -> None:
    path = folder / f"{number:016x}" / "record.json"
    record = json.loads(path.read_text())
    record["trial"] |= trial
    path.write_text(json.dumps(record))


def rewrite(folder: Path, number: int, change) -> None:
    """Let `change(record, samples)` alter a trial and return its samples."""
    record_path, samples_path = (folder / f"{number:016x}" / name for name in ("record.json", "samples.parquet"))
    record = json.loads(record_path.read_text())
    samples = change(record, pd.read_parquet(samples_path))
    record_path.write_text(json.dumps(record))
    samples.to_parquet(samples_path, index=False)


def written(folder: Path, tmp_path: Path, shown: Shown | None = None) -> str:
    """Return the report without its sections of intervals and differences, which have lines of the same names."""
    markdown = report.write(folder, tmp_path / "reports", shown).read_text()
    return re.sub(r"## (Scores with|Which differences).*?(?=^## )", "", markdown, flags=re.DOTALL | re.MULTILINE)


def cells(markdown: str, start: str) -> list[str]:
    (line,) = [line for line in markdown.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]
