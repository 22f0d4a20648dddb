"""What Ray costs beside the trials: against a plain loop, and of eight workers whose trials sleep."""

import multiprocessing
import os
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from ray.cluster_utils import Cluster

from benchmarks.processes import FAMILIES, quiet, sweep_file
from harness import sweep
from harness.spec import Resources, Trial, load_sweep
from harness.store import Result, Store
from harness.trial import Warm, run

CPUS = os.cpu_count() or 1
SLEEPS = 0.5, 1.5  # seconds, from and to
PATIENCE = 300  # seconds that the workers wait for one another


class Ends(NamedTuple):
    """When each trial's result was in the store, in seconds from the start, and how long it took by itself."""

    ends: list[float]
    trials: list[float]

    def said(self) -> dict[str, Any]:
        """Return the raw numbers; those after start-up are of all trials but the first."""
        after, count = self.ends[-1] - self.ends[0], len(self.ends) - 1
        return {
            "startup_seconds": self.ends[0] - self.trials[0],
            "per_trial_ms": 1000 * after / count,
            "outside_ms": 1000 * (after - sum(self.trials[1:])) / count,
            **self._asdict(),
        }


def seconds_of(result: Result) -> float:
    return float(result.record["provenance"]["seconds"])


def plain(path: Path, folder: Path) -> Ends:
    """Run a sweep's trials in one loop and store them."""
    began, store, found = time.perf_counter(), Store(folder), Ends([], [])
    torch.set_num_threads(CPUS)
    warm = Warm("cpu")
    for trial in load_sweep(path).trials():
        with quiet():
            result = run(trial, warm)
        store.write(trial, result)
        found.ends.append(time.perf_counter() - began)
        found.trials.append(seconds_of(result))
    return found


def through_ray(path: Path, folder: Path) -> Ends:
    """Run a sweep's trials on one worker of Ray, which has the whole machine."""
    began, found = time.perf_counter(), Ends([], [])

    def note(result: Result) -> None:
        found.ends.append(time.perf_counter() - began)
        found.trials.append(seconds_of(result))

    with quiet():
        sweep.run(load_sweep(path).trials(), Store(folder), Resources(cpus=CPUS), after=note)
    return found


def overhead(folder: Path, *, limit: int, rounds: int, tasks: Sequence[str] = FAMILIES) -> dict[str, Any]:
    """Time both in turns, the plain loop in a fresh process as the worker is one."""
    path = sweep_file(folder, limit=limit, tasks=tasks)
    found: dict[str, list[Ends]] = {"plain": [], "ray": []}
    for turn in range(rounds):
        for name in ("plain", "ray")[:: -1 if turn % 2 else 1]:
            out = folder / f"{name}{turn}"
            if name == "ray":
                found[name].append(through_ray(path, out))
            else:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                    found[name].append(process.submit(plain, path, out).result())
    return beside(found["plain"], found["ray"]) | {"limit": limit, "threads": CPUS}


def beside(plain: Sequence[Ends], ray: Sequence[Ends]) -> dict[str, Any]:
    """Return the milliseconds that Ray adds to a trial, the mean over rounds."""
    raw = {"plain": [each.said() for each in plain], "ray": [each.said() for each in ray]}
    keys = ("startup_seconds", "per_trial_ms", "outside_ms")
    mean = {name: {key: float(np.mean([each[key] for each in said])) for key in keys} for name, said in raw.items()}
    ms = {name: each["per_trial_ms"] for name, each in mean.items()}
    outside = {name: each["outside_ms"] for name, each in mean.items()}
    rounds = [b["per_trial_ms"] - a["per_trial_ms"] for a, b in zip(raw["plain"], raw["ray"], strict=True)]
    return {
        "overhead_ms": ms["ray"] - ms["plain"],
        "overhead_ms_by_round": rounds,
        "outside_ms": outside,
        "startup_seconds": {name: each["startup_seconds"] for name, each in mean.items()},
        "rounds": raw,
        "said": f"{ms['ray']:.0f} ms, plain {ms['plain']:.0f} ms; "
        f"by round {', '.join(f'{each:.0f}' for each in rounds)}; "
        f"outside the trial itself {outside['ray']:.0f} ms, plain {outside['plain']:.0f} ms; "
        f"until the first trial {mean['ray']['startup_seconds']:.1f} s, plain {mean['plain']['startup_seconds']:.1f} s",
    }


def sleeper(gate: Path, workers: int, seconds: dict[str, float]) -> Callable[[str], Callable[[Trial], Result]]:
    """Return what prepares workers that sleep, so many seconds for each trial's id.

    They begin together: processes that share two cores come up one after another, those of a cluster would not.
    """

    def prepare(device: str) -> Callable[[Trial], Result]:
        came = time.time()
        (gate / uuid.uuid4().hex).touch()
        while len(list(gate.iterdir())) < workers:
            if time.time() - came > PATIENCE:
                raise TimeoutError(f"not all {workers} workers have come up in {PATIENCE} s")
            time.sleep(0.01)
        ready = time.time()

        def execute(trial: Trial) -> Result:
            began = time.time()
            time.sleep(seconds[trial.id])
            times = {"came": came, "ready": ready, "began": began, "ended": time.time(), "slept": seconds[trial.id]}
            return Result({"id": trial.id, **times}, None)

        return execute

    return prepare


def efficiency(folder: Path, *, workers: int, each: int) -> dict[str, Any]:
    """Time sleeping trials, so many for each worker, on a Ray that is told of as many CPUs as workers."""
    path = folder / "sleep.yaml"
    axes = {"model": "random:pocket", "text_tokens": 8, "methods": ["full"], "seed": list(range(workers * each))}
    path.write_text(yaml.safe_dump(axes), encoding="utf-8")
    trials = load_sweep(path).trials()
    lengths = np.random.default_rng(0).uniform(*SLEEPS, len(trials)).tolist()
    gate = folder / "gate"
    gate.mkdir()
    prepare = sleeper(gate, workers, dict(zip((trial.id for trial in trials), lengths, strict=True)))
    began = time.time()
    head = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        store = Store(folder / "sleep")
        with quiet():
            sweep.run(trials, store, Resources(), address=cluster.address, prepare=prepare)
    finally:
        cluster.shutdown()
    return efficient(store.records(), workers, began)


def efficient(records: Sequence[dict[str, Any]], workers: int, began: float) -> dict[str, Any]:
    """Return the share of the workers' time, from the first one's readiness to the last end, that trials slept."""
    came, ready = sorted({each["came"] for each in records}), min(each["ready"] for each in records)
    wall, slept = max(each["ended"] for each in records) - ready, sum(each["slept"] for each in records)
    raw = [[round(each[key] - ready, 4) for key in ("began", "ended")] for each in records]
    value = slept / (workers * wall)
    return {
        "efficiency": value,
        "workers": workers,
        "trials": len(records),
        "slept_seconds": slept,
        "wall_seconds": wall,
        "startup_seconds": ready - began,
        "workers_came_seconds": [round(each - began, 2) for each in came],
        "began_ended": sorted(raw),
        "said": f"{len(records)} trials of {slept / len(records):.2f} s on {workers} workers in {wall:.1f} s; "
        f"start-up {ready - began:.1f} s",
    }
