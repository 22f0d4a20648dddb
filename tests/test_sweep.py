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

from harness.claim import LostClaimError
from harness.errors import VtbenchError
from harness.spec import Resources, Sweep, Trial, load_sweep
from harness.store import Result, Store
from harness.sweep import run
from tests.rays import node


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
    head = Cluster(initialize_head=True, head_node_args=node(cpus=2))
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
    new = run(wider, store, one, address=cluster, prepare=fake(log, kind=True))
    assert (new.done, new.skipped, new.failures) == (len(wider) - 5, 2, []) and {
        (trial.id, why) for trial, why in new.failed_before
    } == set(failures.items())
    assert not set(ran(log)) & {trial.id for trial in trials}

    log.unlink()
    again = run(wider, store, one, address=cluster, retry_failed=True, prepare=fake(log, kind=True))
    assert (again.done, again.skipped, again.failures) == (3, len(wider) - 3, [])
    assert ran(log) == Counter(failures.keys()) and again.failed_before == []
    assert store.failures() == [] and len(store.records()) == len(wider)

    # words and resources change no trial; what is all done needs no Ray
    wider = sweep(tmp_path, "name: y\nmodel: a\ntokens: [16, 64]\nresources: {cpus: 2, gpus: 0.5}\n").trials()
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


def test_a_run_that_has_lost_its_folder_stores_no_more(tmp_path, cluster):
    store, log = Store(tmp_path / "results"), tmp_path / "log"

    def check() -> None:
        if log.exists():  # a trial runs
            raise LostClaimError("taken over")

    with pytest.raises(LostClaimError):
        run(
            sweep(tmp_path, "model: a\ntokens: 16\n").trials(),
            store,
            Resources(cpus=2),
            address=cluster,
            prepare=fake(log, kind=True),
            check=check,
        )
    assert not store.folder.exists()


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

def after(result):
    if len(sys.argv) > 4:  # storing hangs
        print("hangs", flush=True)
        time.sleep(1000)

trials, store = load_sweep(Path(sys.argv[1])).trials(), Store(Path(sys.argv[2]))
outcome = run(trials, store, Resources(cpus=1), address=sys.argv[3], prepare=prepare, after=after)
print(outcome.done, outcome.dropped, flush=True)
sys.exit(128 + outcome.stopped)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_once_it_stops_in_order_and_leaves_nothing_half_written(tmp_path, cluster, number, code):
    sweep(tmp_path, "model: a\ntokens: 16\n")
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "x.yaml"), str(tmp_path / "results"), cluster]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("[1/5] full on t")
        process.send_signal(number)
        assert process.wait(30) == code
        assert process.stdout.read() in ("1 1\n", "1 2\n")  # the second worker may not be there yet
        assert "vtbench: stopping; running trials are dropped, finished ones are stored (once more: at once)" in (
            process.stderr.read()
        )
    (record,) = Store(tmp_path / "results").records()
    files = [path.name for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert sorted(files) == ["record.json", "samples.parquet", "trial.yaml"] and list(record) == ["id"]


def test_asked_twice_it_stops_at_once_even_where_storing_hangs(tmp_path, cluster):
    sweep(tmp_path, "model: a\ntokens: 16\n")
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "x.yaml"), str(tmp_path / "results"), cluster, "hang"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None and process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
    files = [path.name for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert sorted(files) == ["record.json", "samples.parquet", "trial.yaml"]
