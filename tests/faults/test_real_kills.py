"""SIGKILL at random points of sweeps of the pocket model, by `vtbench run` as people call it."""

import random
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from harness.spec import load_sweep
from harness.store import Store
from tests.faults.killing import Running, check_gone, lose_a_node, nodes, of_this_process, workers

pytestmark = pytest.mark.faults
SLOWLY = 10.0  # seconds; a worker comes up in 6
SMALL = """
model: pocket
tasks: pocket_tiny
limit: 2
measure: [accuracy, tokens]
tokens: [16, 32, 64]
methods: [full, topk, tome]
"""
LONGER = """
model: pocket
tasks: pocket_tiny
measure: [accuracy, tokens]
tokens: [16, 32, 64, 128]
methods: [full, topk, tome]
"""
LARGER = """
model: pocket
tasks: pocket_tiny
limit: 1
measure: [accuracy, tokens]
tokens: [16, 24, 32, 48, 64, 96, 128, 144]
seed: [0, 1]
methods: [full, random, topk, tome, evit, divprune]
"""


def sweep(folder: Path, content: str) -> Path:
    path = folder / "real.yaml"
    path.write_text(content)
    return path


def command(file: Path, name: str, *more: str) -> list[str]:
    places = ["--out", str(file.parent / name), "--reports", str(file.parent / f"{name}-reports")]
    return [sys.executable, "-m", "tests.faults.real", "run", str(file), *places, "--retry-failed", *more]


def check_equal(file: Path, name: str) -> None:
    """Check that every cell is there once and is what the unbroken run has, but for its provenance."""
    unbroken, broken = (Store(file.parent / each / file.stem) for each in ("unbroken", name))
    assert len(broken.records()) == len(unbroken.records()) == len(load_sweep(file).trials())
    assert broken.failures() == []
    for one, other in zip(unbroken.records(), broken.records(), strict=True):
        for key in one.keys() - {"provenance"}:
            assert one[key] == other[key]
        pd.testing.assert_frame_equal(unbroken.samples(one["id"]), broken.samples(one["id"]))
    for store in (unbroken, broken):
        names = {path.name for path in store.folder.rglob("*") if "wandb" not in path.parts}
        assert not [name for name in names if name.startswith(".")]


def test_a_sweep_on_a_ray_of_its_own(tmp_path: Path, draw: random.Random) -> None:
    """The driver, a worker and the raylet that `vtbench run` has started."""
    file = sweep(tmp_path, LONGER)
    Running(command(file, "unbroken"), draw).finish()
    run = Running(command(file, "broken"), draw)
    at_work = partial(run.own, "ray::Worker")
    code, said = run.meanwhile([partial(run.one_of, "raylet", lambda: run.own("raylet") if at_work() else [])], 8.0)
    assert code == 2 and "\nvtbench: no worker can start" in said, said
    run.driver(3.0)
    assert run.kills["driver"] == 1
    code, said = run.meanwhile([partial(run.one_of, "worker", at_work)] * 2, 2.0)
    assert code in (0, 1) and "\nreal: 9 trials, " in said, said  # 1 where both kills met the same trial
    run.finish()
    check_equal(file, "broken")
    check_gone(run.started)
    print(f"killed {dict(run.kills)} of a real sweep", flush=True)
    assert run.kills["raylet"] == 1 and run.kills["worker"] >= 1


def test_fifty_kills(tmp_path: Path, draw: random.Random) -> None:
    """Two nodes with a worker each: drivers, workers and raylets in turns until there were enough."""
    before = of_this_process()
    file, cluster = sweep(tmp_path, LARGER), nodes(2, cpus=1)
    join = ("--address", cluster.address)
    Running(command(file, "unbroken", *join), draw).finish()
    total: Counter[str] = Counter()
    rounds = 0
    while total.total() < 50 or total["driver"] < 10 or total["raylet"] < 6:
        rounds += 1
        assert rounds < 12, total
        run = Running(command(file, f"round{rounds}", *join), draw)
        strikes = [partial(run.one_of, "worker", partial(workers, cluster))] * 10
        strikes += [partial(lose_a_node, cluster, run, cpus=1)] * 2
        draw.shuffle(strikes)
        for _ in range(3):
            run.driver(12.0)
        records = partial((tmp_path / f"round{rounds}" / "real").glob, "*/record.json")
        code, said = run.meanwhile(strikes, SLOWLY, lambda records=records: len([*records()]))
        assert code in (0, 1) and "\nreal: 82 trials, " in said, said
        run.finish()
        check_equal(file, f"round{rounds}")
        total += run.kills
        print(f"round {rounds}: {dict(run.kills)}", flush=True)
    started = of_this_process() - before
    cluster.shutdown()
    check_gone(started)
    print(
        f"killed {dict(total)}, {total.total()} in all, in {rounds} sweeps of 82 trials of the pocket model", flush=True
    )
