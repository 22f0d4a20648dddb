"""Pictures and data sets that are broken, in a whole run: their trials say so, and the others are done."""

from functools import partial
from typing import Any

import pytest

from harness import sweep
from harness.spec import Trial
from harness.store import Store
from tests.pictures import BLUE, BROKEN, UNUSUAL, png, pope

SWEEP = """
model: pocket
tasks: pope
measure: [accuracy, tokens]
tokens: 64
methods: [full, random, topk, tome, evit, divprune, pooling]
"""
ROWS = {"random": "no image", "topk": "an empty file", "tome": "a file cut short", "evit": "a bomb"}
LOST = "divprune"
WHY = {method: "pope, document 1: its image cannot be read: " for method in ROWS} | {
    LOST: "pope: its data set cannot be read: FileNotFoundError: "
}


def asking(tasks: dict[str, dict[str, Any]]):
    """Return what prepares a worker whose trials each ask the task of their method."""

    def prepare(device: str):
        """Return what runs trials."""
        from lmms_eval.evaluator import simple_evaluate

        from harness import trial as real
        from harness.metrics import accuracy

        def attempt(trial: Trial, *more: Any) -> Any:
            task = tasks[trial.method]
            accuracy.simple_evaluate = lambda **settings: simple_evaluate(**settings | {"tasks": [task]})
            return observed(trial, *more)

        observed = real.attempt
        real.attempt = attempt
        return partial(real.run, warm=real.Warm(device))

    return prepare


@pytest.mark.faults
def test_each_is_told_and_the_others_go_on(tmp_path, monkeypatch, vtbench):
    files = {method: tmp_path / f"{method}.parquet" for method in (*WHY, "full", "pooling")}
    shown = {method: [png(BLUE), BROKEN[kind]] for method, kind in ROWS.items()}
    tasks = {method: pope(path, shown.get(method, [*UNUSUAL.values()])) for method, path in files.items()}
    files[LOST].unlink()
    monkeypatch.setattr(sweep, "run", partial(sweep.run, prepare=asking(tasks)))

    code, said = vtbench(SWEEP)
    assert code == 1 and "x: 7 trials, 2 done now, 5 failed" in said
    report = (tmp_path / "reports" / "x.md").read_text()
    for method, why in WHY.items():
        (line,) = [line for line in said if line.startswith(f"failed: {method} 64 on")]
        assert why in line and why in report
    store = Store(tmp_path / "out" / "x")
    assert {record["trial"]["method"]: record["scores"]["pope"]["n"] for record in store.records()} == {
        "full": len(UNUSUAL),
        "pooling": len(UNUSUAL),
    }
    for method in WHY:
        pope(files[method], [png(BLUE)])
    code, said = vtbench(SWEEP, "--retry-failed")
    assert code == 0 and "x: 7 trials, 5 done now, 2 before, 0 failed" in said and store.failures() == []
