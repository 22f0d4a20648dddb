"""A run of a sweep as a process of its own, whose trials are quick and always give the same: YAML, folder, Ray."""

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from harness.claim import Claim
from harness.spec import Resources, Trial, load_sweep
from harness.store import Result, Store
from harness.sweep import run
from harness.workers import Prepare


def preparing(log: Path) -> Prepare:
    """Return what prepares a worker that writes down what it does: its process, when, and the trial it is in or -."""

    def prepare(device: str) -> Callable[[Trial], Result]:
        def write(trial: str) -> None:
            with log.open("a") as file:
                file.write(f"{os.getpid()} {time.time()} {trial}\n")

        def run(trial: Trial) -> Result:
            write(trial.id)
            time.sleep(random.Random(trial.id).uniform(0.05, 0.6))
            result = answer(trial)
            write("-")
            return result

        write("-")
        return run

    return prepare


def answer(trial: Trial) -> Result:
    """Return numbers that are the trial's own."""
    draw = random.Random(trial.id)
    samples = pd.DataFrame({"doc_id": range(50), "score": [draw.random() for _ in range(50)]})
    pictures = {f"{draw.randrange(8)}": b"picture" * 100}
    return Result(
        {"id": trial.id, "trial": trial.model_dump(mode="json"), "mean": samples.score.mean()}, samples, pictures
    )


def main(file: Path, folder: Path, address: str) -> int:
    """Do what is missing, but for what failed before; return the exit code."""
    store = Store(folder)
    with Claim(folder) as claim:
        store.tidy()
        print("claimed", flush=True)
        trials = load_sweep(file).trials()
        prepare = preparing(file.with_suffix(".log"))
        outcome = run(trials, store, Resources(), address=address, prepare=prepare, check=claim.check)
    print(f"over: {len(outcome.failures)} failed", flush=True)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
