"""A sweep of 60 small trials by `vtbench run`, against what the peers do: a process of `lmms_eval` for each."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from harness.spec import Trial, load_sweep
from harness.store import Store
from methods import METHODS

FAMILIES = tuple(f"pocketvqa_{name}" for name in ("attribute", "existence", "count", "where", "relation", "ocr"))
CELLS = (
    "full",
    {"random": {"tokens": 64}},
    {"topk": {"tokens": [16, 64, 144]}},
    {"pooling": {"tokens": 64}},
    {"tome": {"tokens": 64}},
    {"fastv": {"tokens": [64, 144], "budget": "kept"}},
    {"ivtp": {"tokens": 64}},
)


def sweep_file(folder: Path, *, limit: int, tasks: Sequence[str] = FAMILIES) -> Path:
    """Write the sweep, ten cells a task, and return its path."""
    axes = {"model": "pocket", "tasks": list(tasks), "methods": list(CELLS), "limit": limit}
    path = folder / "sixty.yaml"
    path.write_text(yaml.safe_dump(axes | {"measure": ["accuracy", "tokens"]}), encoding="utf-8")
    return path


def spread_over(items: Sequence[Trial], count: int) -> list[Trial]:
    """Return so many of the items, from the first to the last."""
    return [items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int)]


def lmms_eval(trial: Trial, out: Path) -> list[str]:
    """Return the command that does the trial's work alone; parameters that are defaults go unsaid."""
    defaults = {field.name: field.default for field in fields(METHODS[trial.method])}
    given = {key: value for key, value in trial.parameters.items() if value != defaults[key]}
    args = {"model": trial.model, "method": trial.method, "seed": trial.seed, **given}
    return [
        *(sys.executable, "-m", "lmms_eval", "--model", "vtbench"),
        *("--model_args", ",".join(f"{key}={value}" for key, value in args.items())),
        *("--tasks", str(trial.task), "--limit", str(trial.limit), "--batch_size", str(trial.batch_size)),
        *("--output_path", str(out), "--log_samples"),
    ]


def timed(command: Sequence[str], folder: Path) -> float:
    """Return the seconds that a command takes. Errors: RuntimeError with its last lines when it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    taken = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")
    return taken


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress off the terminal, lmms-eval's and ours."""
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), redirect_stdout(nowhere):
        yield


def vtbench_run(sweep: Path, folder: Path) -> float:
    """Return the seconds of `vtbench run`, its report included."""
    command = [str(Path(sys.executable).with_name("vtbench")), "run", str(sweep)]
    return timed([*command, "--out", str(folder / "results"), "--reports", str(folder / "reports")], folder)


def measure(folder: Path, *, limit: int, loop: int | None, tasks: Sequence[str] = FAMILIES) -> dict[str, Any]:
    """Time both, ours first, so that the files are in memory for the others.

    loop: how many trials have their process, from which the time of all is taken; None: all of them.
    """
    sweep = sweep_file(folder, limit=limit, tasks=tasks)
    trials = load_sweep(sweep).trials()
    ours = vtbench_run(sweep, folder)
    store = Store(folder / "results" / sweep.stem)
    scores = {record["id"]: record["scores"] for record in store.records()}
    runs = []
    for trial in trials if loop is None else spread_over(trials, loop):
        out = folder / "loop" / trial.id
        seconds = timed(lmms_eval(trial, out), folder)
        (found,) = out.rglob("*_results.json")
        theirs = read_json(found)["results"][trial.task]
        mine = {key: value for key, value in scores[trial.id][str(trial.task)].items() if key != "n"}
        same = mine == {key: theirs[f"{key},none"] for key in mine}
        runs.append({"trial": trial.label, "seconds": seconds, "scores": mine, "equal": same})
    return compared(len(trials), ours, runs) | {"limit": limit}


def compared(trials: int, ours: float, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the ratio of our seconds to those of a process for every trial, of which some have run."""
    each = float(np.mean([run["seconds"] for run in runs]))
    equal = all(run["equal"] for run in runs)
    scaled = f"{len(runs)} of {trials} processes run, scaled up" if len(runs) < trials else f"all {trials} processes"
    return {
        "ratio": ours / (each * trials),
        "vtbench_seconds": ours,
        "loop_seconds": each * trials,
        "trials": trials,
        "processes": runs,
        "equal": equal,
        "said": f"{ours:.0f} s ÷ {each * trials:.0f} s, {each:.1f} s a process; {scaled}; "
        f"scores {'equal' if equal else 'DIFFER'}",
    }


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's content."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
