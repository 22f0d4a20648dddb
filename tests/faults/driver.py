"""A run of a sweep as a process of its own, whose trials are quick and always give the same: YAML, folder, Ray."""

import random
import sys
import time
from pathlib import Path

import pandas as pd

from harness.claim import Claim
from harness.spec import Resources, Trial, load_sweep
from harness.store import Result, Store
from harness.sweep import run


def prepare(device: str):
    """Return what runs a trial in 0.05 to 0.6 s."""

    def run(trial: Trial) -> Result:
        time.sleep(random.Random(trial.id).uniform(0.05, 0.6))
        return answer(trial)

    return run


def answer(trial: Trial) -> Result:
    """Return numbers that are the trial's own."""
    draw = random.Random(trial.id)
    samples = pd.DataFrame({"doc_id": range(50), "score": [draw.random() for _ in range(50)]})
    pictures = {f"{draw.randrange(8)}": b"picture" * 100}
    return Result(
        {"id": trial.id, "trial": trial.model_dump(mode="json"), "mean": samples.score.mean()}, samples, pictures
    )


def main(file: Path, folder: Path, address: str) -> None:
    """Do what is missing, also what failed."""
    store = Store(folder)
    with Claim(folder) as claim:
        store.tidy()
        print("claimed", flush=True)
        trials = load_sweep(file).trials()
        run(trials, store, Resources(), address=address, retry_failed=True, prepare=prepare, check=claim.check)
    print("over", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
