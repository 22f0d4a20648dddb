import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import ray
from ray.cluster_utils import Cluster

from harness.errors import VtbenchError
from harness.progress import Board
from harness.spec import Resources, Sweep, Trial, load_sweep
from harness.store import Result, Store
from harness.sweep import OBJECT_STORE, Queue, run


def sweep(tmp_path: Path, text: str) -> Sweep:
    path = tmp_path / "x.yaml"
    path.write_text("tasks: t\nmethods: [full, random, topk, pooling, tome]\n" + text)
    return load_sweep(path)


def fake(log: Path, *, kind: bool = False):
    """Return what runs a fake trial, by its method: random raises, topk kills its worker once, tome always."""

    def prepare(device: str):
        def execute(trial: Trial):
            with log.open("a") as file:
                file.write(f"{trial.id} {os.getpid()}\n")
            tries = log.read_text().count(trial.id)
            if not kind and trial.method == "random":
                raise KeyError("no such\nlayer")
            if not kind and (trial.method == "tome" or (trial.method == "topk" and tries == 1)):
                os._exit(1)
            record = {"id": trial.id, "trial": trial.model_dump(mode="json"), "device": device}
            if trial.method == "pooling" and not kind:
                record["latency"] = float("nan")
            return Result(record, pd.DataFrame({"answer": ["a"]}))

        return execute

    return prepare


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Yield the address of a Ray on this machine with two CPUs, shared because starting one takes seconds."""
    head = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": OBJECT_STORE})
    yield head.address
    head.shutdown()


def ran(log: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in log.read_text().splitlines())


def test_failures_and_deaths_stop_no_other_trial_and_a_second_run_does_what_is_missing(tmp_path, cluster, capsys):
    store, log, stored = Store(tmp_path / "results"), tmp_path / "log", []
    trials = sweep(tmp_path, "model: a\ntokens: 16\n").trials()
    one = Resources(cpus=1)
    outcome = run(trials, store, one, address=cluster, prepare=fake(log), after=stored.append)
    by_method = {method: [trial for trial in trials if trial.method == method] for method in ("full", "topk", "tome")}
    failures = {failure["id"]: failure["failure"]["error"] for failure in store.failures()}
    assert outcome.done == len(stored) == 2
    assert Counter(ran(log)[trial.id] for trial in trials) == {1: 3, 2: 2}
    assert all(store.done(trial.id) for trial in by_method["full"] + by_method["topk"])
    assert {trial.method: failures[trial.id] for trial in trials if trial.id in failures} == {
        "random": "KeyError: 'no such\\nlayer'",
        "pooling": "cannot be stored: Out of range float values are not JSON compliant: nan",
        "tome": "its worker died 2 times, for want of memory perhaps",
    }
    assert {trial.id for trial, _ in outcome.failures} == set(failures)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [line.split()[0] for line in lines] == ["[1/5]", "[2/5]", "[3/5]", "[4/5]", "[5/5]"]

    wider = sweep(tmp_path, "model: a\ntokens: [16, 64]\ndescription: other words\n").trials()
    log.unlink()
    again = run(wider, store, one, address=cluster, prepare=fake(log, kind=True))
    assert (again.done, again.skipped, again.failures) == (len(wider) - 2, 2, [])
    assert ran(log) == Counter(trial.id for trial in wider if trial not in by_method["full"] + by_method["topk"])
    assert store.failures() == [] and len(store.records()) == len(wider)

    # what is all done needs no Ray
    nothing = run(wider, store, one, address="192.0.2.1:1", prepare=fake(log))
    assert (nothing.done, nothing.skipped) == (0, len(wider))


def test_what_ray_cannot_give_is_said(tmp_path, cluster):
    trials = sweep(tmp_path, "model: a\ntokens: 16\n").trials()
    with pytest.raises(VtbenchError, match=r"^resources.gpus: 1000 is not possible; Ray has 0 here$"):
        run(trials, Store(tmp_path / "results"), Resources(gpus=1000), address=cluster, prepare=fake(tmp_path / "log"))

    def broken(device: str):
        raise ImportError("no libcuda")

    with pytest.raises(VtbenchError, match=r"^no worker can start: ImportError: no libcuda$"):
        run(trials, Store(tmp_path / "results"), Resources(cpus=2), address=cluster, prepare=broken)
    assert not (tmp_path / "results").exists() and not ray.is_initialized()


INTERRUPTED = """
import pandas as pd, sys, time
from pathlib import Path
from harness.spec import Resources, load_sweep
from harness.store import Result, Store
from harness.sweep import run

def prepare(device):
    def execute(trial):
        if trial.method != "full":
            time.sleep(1000)
        return Result({"id": trial.id}, pd.DataFrame({"a": [1]}))
    return execute

try:
    run(load_sweep(Path(sys.argv[1])).trials(), Store(Path(sys.argv[2])), Resources(cpus=1), prepare=prepare)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_stops_at_once_and_leaves_nothing_half_written(tmp_path):
    sweep(tmp_path, "model: a\ntokens: 16\n")
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "x.yaml"), str(tmp_path / "results")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("[1/5] full on t")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    (record,) = Store(tmp_path / "results").records()
    files = [path.name for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert sorted(files) == ["record.json", "samples.parquet", "trial.yaml"] and list(record) == ["id"]


def test_a_worker_goes_on_with_its_model_then_takes_the_longest_that_nobody_has(tmp_path):
    trials = sweep(tmp_path, "model: [a, b, c]\ntokens: 16\n").trials()
    queue = Queue(trials[:5] + trials[5:8] + trials[10:14])
    keys = {trial.model: trial.warm_key for trial in trials}
    assert queue.take(None, set()).model == "a"
    assert queue.take(None, {keys["a"]}).model == "c"
    assert queue.take(keys["b"], {keys["a"], keys["c"]}).model == "b"
    assert [queue.take(keys["b"], {keys["a"], keys["c"]}).model for _ in range(2)] == ["b", "b"]
    assert queue.take(keys["b"], {keys["a"], keys["c"]}).model == "a"
    first = queue.take(keys["c"], set())
    queue.back(first)
    assert queue.take(keys["c"], set()) is first
    left = [queue.take(keys["c"], set()).model for _ in range(5)]
    assert left == ["c", "c", "a", "a", "a"] and not queue


def test_the_board_counts(capsys):
    board = Board(3, console=None)
    board.starts()
    board.starts()
    board.again()
    assert (board.waiting, board.running) == (2, 1)
    board.ends("full on t", 1.26)
    board.starts()
    board.ends("topk 64 on t", 2.0, "no")
    assert (board.done, board.failed, board.running, board.waiting) == (1, 1, 0, 1)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("[1/3] full on t: 1.3 s · 0:00 left") and second.startswith(
        "[2/3] topk 64 on t: FAILED: no"
    )
