"""How long `vtbench run` takes to find that all of a large sweep is done."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.processes import quiet, vtbench_run
from harness.spec import load_sweep
from harness.store import Result, Store
from harness.trial import Warm, run

METHODS = ("random", "topk", "pooling", "divprune", "prumerge")
SEEDS = 5


def sweep_file(folder: Path, *, trials: int) -> Path:
    """Write a sweep of five methods, as many budgets as it takes, and five seeds; return its path."""
    path = folder / "thousand.yaml"
    axes = {
        "model": "pocket",
        "tasks": "pocket_tiny",
        "methods": list(METHODS),
        "tokens": list(range(16, 16 + trials // (len(METHODS) * SEEDS))),
        "seed": list(range(SEEDS)),
        "measure": ["accuracy", "flops", "tokens"],
    }
    path.write_text(yaml.safe_dump(axes), encoding="utf-8")
    return path


def store_of(sweep: Path, folder: Path) -> Store:
    """Return a store with every trial of the sweep: what its first trial really gave, with other scores.

    Each trial gives other answers than the first to a tenth of the questions.
    """
    trials, rng = load_sweep(sweep).trials(), np.random.default_rng(0)
    with quiet():
        real = run(trials[0], Warm("cpu"))
    store = Store(folder)
    assert real.samples is not None
    for trial in trials:
        samples = real.samples.copy()
        turned = rng.random(len(samples)) < 0.1
        samples["score"] = np.where(turned, 1 - samples["score"], samples["score"])
        record = copy.deepcopy(real.record) | {"id": trial.id, "trial": trial.model_dump(mode="json")}
        for task, rows in samples.groupby("task"):
            record["scores"][task]["exact_match"] = float(rows["score"].mean())
        store.write(trial, Result(record, samples, real.pictures))
    return store


def measure(folder: Path, *, trials: int) -> dict[str, Any]:
    """Time `vtbench run` on a sweep that is done, before it has a report and again when it has."""
    sweep = sweep_file(folder, trials=trials)
    store = store_of(sweep, folder / "results" / sweep.stem)
    first = vtbench_run(sweep, folder)
    again = [vtbench_run(sweep, folder) for _ in range(3)]
    found = len(store.records())
    return {
        "again_seconds": float(np.median(again)),
        "raw_seconds": again,
        "with_report_seconds": first,
        "trials": found,
        "said": f"{found} trials, median of 3; {first:.1f} s when the report is not there yet",
    }
