"""SIGKILL of the driver, of workers, of nodes at random points of a sweep, which then goes on to its end."""

import random
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from harness.store import Store
from tests.faults import driver
from tests.faults.killing import (
    Running,
    check_cells,
    check_failures,
    check_gone,
    lose_a_node,
    nodes,
    of_this_process,
    python,
    workers,
)

QUICK = "model: [a, b]\ntasks: t\ntokens: {tokens}\nmethods: [full, random, topk]\n"


def sweep(folder: Path, tokens: int) -> Path:
    path = folder / "quick.yaml"
    path.write_text(QUICK.replace("{tokens}", str([*range(1, tokens + 1)])))
    return path


def running(file: Path, out: Path, address: str, draw: random.Random) -> Running:
    return Running(python(Path(driver.__file__), file, out, address), draw)


def check_end(run: Running, file: Path, out: Path, ended: tuple[int, str]) -> int:
    """Check what a run left that was not killed itself, and that it said so; return how many of its trials failed."""
    code, said = ended
    failed = len(Store(out).failures())
    assert said.endswith(f"\nover: {failed} failed\n") and code == min(1, failed), said
    check_cells(file, out)
    check_failures(Store(out), file.with_suffix(".log"), run.struck)
    assert run.finish().endswith("\nover: 0 failed\n")
    return failed


def test_a_sweep_that_is_killed_goes_on(tmp_path, draw):
    """Short: one node, two kills of the driver and three of workers."""
    file, out = sweep(tmp_path, 10), tmp_path / "out"
    before = of_this_process()  # other tests'
    cluster = nodes(0)
    run = running(file, out, cluster.address, draw)
    run.driver(2.0)
    run.driver(2.0)
    ended = run.meanwhile([partial(run.one_of, "worker", partial(workers, cluster))] * 3, 1.0)
    started = of_this_process() - before
    check_end(run, file, out, ended)
    cluster.shutdown()
    assert run.kills["driver"] == 2 and run.kills["worker"] >= 1
    check_gone(started)


@pytest.mark.faults
def test_fifty_kills(tmp_path, draw):
    """Long: two nodes, drivers, workers and raylets in turns until there were enough."""
    before = of_this_process()
    cluster = nodes(2)
    total: Counter[str] = Counter()
    rounds, failed = 0, 0
    while total.total() < 52 or total["driver"] < 12 or total["raylet"] < 8:
        rounds += 1
        assert rounds < 20, total
        out = tmp_path / f"round{rounds}"
        out.mkdir()
        file = sweep(out, 100)
        run = running(file, out / "out", cluster.address, draw)
        strikes = [partial(run.one_of, "worker", partial(workers, cluster))] * 12
        strikes += [partial(lose_a_node, cluster, run)] * 2
        draw.shuffle(strikes)
        for _ in range(3):
            run.driver(5.0)
        failed += check_end(run, file, out / "out", run.meanwhile(strikes, 0.7))
        total += run.kills
        print(f"round {rounds}: {dict(run.kills)}", flush=True)
    started = of_this_process() - before
    cluster.shutdown()
    check_gone(started)
    print(f"killed {dict(total)}, {total.total()} in all, in {rounds} sweeps of 402 trials each, {failed} failed")
