"""All that can go wrong in a trial: told in the summary and in the report, and the other trials are done."""

import os
import time
from functools import partial
from typing import Any

import pytest
import torch

from harness import sweep
from harness.errors import VtbenchError
from harness.spec import Trial
from harness.store import Store

SWEEP = """
model: llava-1.5-7b
text_tokens: 8
tokens: 64
time_limit: 5
methods: [full, random, topk, tome, fastv, evit, divprune, pooling]
"""
WHY = {
    "random": "ZeroDivisionError: division by zero",
    "topk": "out of memory at batch size 8 and then 4: CUDA out of memory. Tried to allocate 20.00 GiB.",
    "tome": "stopped after 5 s, its time limit",
    "fastv": "its worker died 2 times, for want of memory perhaps",
    "evit": "in evit: AttributeError: 'NoneType' object has no attribute 'patches'",
    "divprune": "logits are NaN or infinite at token 1 of the answer to t, document 3",
}


def going_wrong():
    """Return what prepares a worker whose trials mostly go wrong; a function of its own, for workers know no tests."""

    def prepare(device: str):
        """Return what runs trials, most of which go wrong."""
        from harness import trial as real

        def attempt(trial: Trial, *more: Any) -> Any:
            if trial.method == "random":
                1 / 0
            elif trial.method == "topk":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee …")
            elif trial.method == "tome":
                time.sleep(1000)
            elif trial.method == "fastv":
                os._exit(1)
            elif trial.method == "evit":
                trial.make_method().stages(None)  # type: ignore[arg-type]
            elif trial.method == "divprune":
                raise VtbenchError("logits are NaN or infinite at token 1 of the answer to t, document 3")
            return counted(trial, *more)

        counted = real.attempt
        real.attempt = attempt
        return partial(real.run, warm=real.Warm(device))

    return prepare


@pytest.mark.faults
def test_each_is_told_and_the_others_go_on(tmp_path, monkeypatch, vtbench):
    monkeypatch.setattr(sweep, "run", partial(sweep.run, prepare=going_wrong()))

    code, said = vtbench(SWEEP)
    assert code == 1 and "x: 8 trials, 2 done now, 6 failed" in said
    summary = [line for line in said if line.startswith("failed: ")]
    report = (tmp_path / "reports" / "x.md").read_text()
    for method, why in WHY.items():
        (line,) = [line for line in summary if line.startswith(f"failed: {method} 64 on")]
        assert why in line and why in report
    store = Store(tmp_path / "out" / "x")
    assert {record["trial"]["method"] for record in store.records()} == {"full", "pooling"}

    code, said = vtbench(SWEEP)
    assert code == 1 and said[0] == (
        "x: 8 trials, 0 done now, 2 before, 0 failed, 6 failed before (--retry-failed tries them again)"
    )
    monkeypatch.setattr(sweep, "run", partial(sweep.run.func, prepare=sweep.prepare))
    code, said = vtbench(SWEEP, "--retry-failed")
    assert code == 0 and "x: 8 trials, 6 done now, 2 before, 0 failed" in said and store.failures() == []
