"""W&B is gone in the middle of a run, or was never there: a warning, and the run does all that it would have done."""

import random
from functools import partial
from pathlib import Path

import pytest

from harness.spec import load_sweep
from harness.store import Store
from tests.faults.killing import Running
from tests.faults.test_real_kills import SMALL, command, sweep

pytestmark = pytest.mark.faults
KEY = "0123456789" * 4


def check_done(file: Path, said: str) -> None:
    store = Store(file.parent / "out" / file.stem)
    assert "\nreal: 7 trials, 7 done now, 0 failed" in said
    assert len(store.records()) == len(load_sweep(file).trials()) == 7 and store.failures() == []
    assert (file.parent / "out-reports" / "real.md").exists()


def test_its_process_is_killed(tmp_path: Path, draw: random.Random) -> None:
    file = sweep(tmp_path, SMALL)
    run = Running(command(file, "out"), draw)
    kill = partial(run.one_of, "wandb-core", partial(run.own, "wandb-core"))
    code, said = run.meanwhile([kill], 1.0)
    (warning,) = [line for line in said.splitlines() if "W&B" in line]
    assert run.kills["wandb-core"] == 1 and code == 0
    assert warning.startswith("W&B did not take trial ") and warning.endswith("; from here on it is disabled")
    check_done(file, said)


def test_it_cannot_be_reached(tmp_path: Path, draw: random.Random, monkeypatch) -> None:
    for name, value in {"MODE": "online", "BASE_URL": "http://127.0.0.1:9", "API_KEY": KEY}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    file = sweep(tmp_path, SMALL)
    said = Running(command(file, "out"), draw).finish()
    (warning,) = [line for line in said.splitlines() if "W&B" in line]
    assert warning.startswith("W&B did not take trial ") and warning.endswith("; from here on it is offline")
    check_done(file, said)
    runs = file.parent / "out" / "real" / "wandb"
    assert len([*runs.glob("offline-run-*")]) >= 7  # the six after, and the report
    assert KEY not in said and not [path for path in runs.rglob("*.*") if path.is_file() and holds(path, KEY)]


def holds(path: Path, key: str) -> bool:
    return key.encode() in path.read_bytes()
