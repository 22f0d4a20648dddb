"""What a sweep costs beside its trials, each part as a ratio within one run on this machine.

a: `vtbench run` against a process of `lmms_eval` for each trial; b: Ray against a plain loop; c: eight workers whose
trials sleep; d: a sweep that is finished already; e: our batches against lmms-eval's `llava_hf`. What the numbers mean
is in `benchmarks/README.md`.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import torch
import typer

from benchmarks import batches, engine, finished, processes
from harness.provenance import provenance
from harness.store import write_json


class Part(NamedTuple):
    """A goal: what is measured, and whether it must be at least or at most so much."""

    what: str
    key: str  # of the value in the raw numbers
    sign: str
    goal: float
    unit: str = ""

    def holds(self, value: float) -> bool:
        return value >= self.goal if self.sign == "≥" else value <= self.goal


PARTS = {
    "a": Part("60 trials: vtbench run ÷ a process of lmms_eval each", "ratio", "≤", 0.25),
    "b": Part("Ray beside a plain loop, per trial after start-up", "overhead_ms", "≤", 50, " ms"),
    "c": Part("8 workers, sleeping trials: efficiency", "efficiency", "≥", 0.95),
    "d": Part("a finished sweep of 1,000 trials, again", "again_seconds", "≤", 5, " s"),
    "e": Part("samples/s: our batches ÷ llava_hf's one by one, the same answers", "ratio", "≥", 3),
}


def measures(folder: Path, *, whole: bool, quick: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what measures each part in a folder; quick: so little that it says nothing of time."""
    limit = 1 if quick else 30
    families = processes.FAMILIES[:2] if quick else processes.FAMILIES
    return {
        "a": lambda: processes.measure(folder, limit=limit, loop=None if whole else 2 if quick else 6, tasks=families),
        "b": lambda: engine.overhead(folder, limit=1 if quick else 4, rounds=1 if quick else 2, tasks=families),
        "c": lambda: engine.efficiency(folder, workers=2 if quick else 8, each=3 if quick else 40),
        "d": lambda: finished.measure(folder, trials=25 if quick else 1000),
        "e": lambda: batches.measure(limit=1 if quick else None, rounds=1 if quick else 2),
    }


def line(name: str, found: dict[str, Any]) -> str:
    """Return a part's line: goal, value, what else there is to know."""
    part = PARTS[name]
    value = found[part.key]
    held = "held" if part.holds(value) and found.get("equal", True) else "NOT held"
    return f"{name}  {part.what}: {value:.3g}{part.unit}, goal {part.sign} {part.goal:g}: {held} ({found['said']})"


def main(
    only: Annotated[str, typer.Option(help="parts, as a,c")] = ",".join(PARTS),
    out: Annotated[Path | None, typer.Option(help="results/benchmarks/sweep-cpu.json unless given")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="a: a process for all 60 trials, not for 6 of them")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="a few small trials, to see that it works")] = False,
) -> None:
    """Measure, print a line for each part and write the JSON after it; parts measured before stay in it."""
    chosen = only.split(",")
    if unknown := [each for each in chosen if each not in PARTS]:
        raise typer.BadParameter(f"only: {unknown[0]!r} is not possible; allowed are {', '.join(PARTS)}")
    name = f"sweep-cpu{'-quick' if quick else ''}.json"
    path = out or Path(__file__).parents[1] / "results" / "benchmarks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    where = provenance(torch.device("cpu"))
    results = processes.read_json(path) if path.exists() else {}
    for each in chosen:
        with TemporaryDirectory(prefix="vtbench-sweep-") as folder:
            began, load = time.perf_counter(), os.getloadavg()[0]
            found = measures(Path(folder), whole=whole, quick=quick)[each]()
        part = PARTS[each]
        results[each] = {
            "what": part.what,
            "goal": f"{part.sign} {part.goal:g}{part.unit}",
            **found,
            "seconds": round(time.perf_counter() - began, 1),
            "load_before": round(load, 1),  # of the machine, by others
            "provenance": where,
        }
        write_json(path, dict(sorted(results.items())))  # what is killed leaves the parts before it
        print(line(each, found), flush=True)
    print(path)


if __name__ == "__main__":
    typer.run(main)
