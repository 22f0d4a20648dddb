import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import ActorUnavailableError

from harness import lock as locks
from harness import sweep as engine
from harness.errors import VtbenchError
from harness.spec import Resources, Sweep, Trial, load_sweep
from harness.store import Result, Store
from harness.sweep import run
from tests.rays import node


def sweep(tmp_path: Path, text: str) -> Sweep:
    path = tmp_path / "x.yaml"
    path.write_text("tasks: t\nmethods: [full, random, topk, pooling, tome]\n" + text)
    return load_sweep(path)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Yield the address of a Ray on this machine with two CPUs."""
    head = Cluster(initialize_head=True, head_node_args=node(cpus=2))
    yield head.address
    head.shutdown()


def test_a_trial_beyond_its_time_limit_fails_alone(tmp_path, cluster):
    trials = sweep(tmp_path, "model: a\ntokens: 16\n").trials()

    def prepare(device: str):
        def execute(trial: Trial):
            if trial.method == "random":
                time.sleep(1000)
            return Result({"id": trial.id, "pid": os.getpid()}, None)

        return execute

    store = Store(tmp_path / "results")
    began = time.monotonic()
    outcome = run(trials, store, Resources(cpus=2), address=cluster, time_limit=3.0, prepare=prepare)
    assert outcome.done == 4 and time.monotonic() - began < 60
    ((failed, why),) = outcome.failures
    assert (failed.method, why) == ("random", "stopped after 3 s, its time limit")
    assert store.failure(failed.id) == why
    assert len({record["pid"] for record in store.records()}) == 2  # before it, and a fresh worker after it


def test_a_dead_worker_s_trial_goes_to_one_that_has_nothing_to_do(tmp_path, cluster):
    trials = [each for each in sweep(tmp_path, "model: a\ntokens: 16\n").trials() if each.method in ("full", "tome")]
    died = tmp_path / "died"

    def prepare(device: str):
        def execute(trial: Trial):
            while trial.method == "full" and not died.exists():  # till both workers have had a trial
                time.sleep(0.05)
            if trial.method == "tome" and not died.exists():
                died.touch()
                time.sleep(2)
                os._exit(1)
            return Result({"id": trial.id, "pid": os.getpid()}, None)

        return execute

    store = Store(tmp_path / "results")
    assert run(trials, store, Resources(cpus=1), address=cluster, prepare=prepare).done == 2
    assert len({record["pid"] for record in store.records()}) == 1


def test_workers_that_are_lost_as_they_start_are_replaced(tmp_path, cluster):
    log = tmp_path / "log"

    def lost(device: str):
        with log.open("a") as file:
            file.write("started\n")
        if log.read_text().count("started") <= 3:
            os._exit(1)
        return lambda trial: Result({"id": trial.id}, None)

    trials = sweep(tmp_path, "model: a\ntokens: 16\n").trials()[:1]
    assert run(trials, Store(tmp_path / "results"), Resources(cpus=2), address=cluster, prepare=lost).done == 1


def test_when_the_places_of_all_workers_are_gone_it_gives_up(tmp_path, cluster, monkeypatch):
    calls = []

    def places(resources: Resources) -> int:
        calls.append(resources)
        if len(calls) > 1:
            raise VtbenchError("resources.cpus: 50 is not possible; Ray has 2 here")
        return 1

    monkeypatch.setattr(engine, "places", places)
    monkeypatch.setattr(engine, "PATIENCE", 1.0)
    with pytest.raises(
        VtbenchError, match=r"^no worker can start any more: resources.cpus: 50 is not possible; Ray has"
    ):
        run(sweep(tmp_path, "model: a\ntokens: 16\n").trials(), Store(tmp_path), Resources(cpus=50), address=cluster)
    assert len(calls) > 2


def test_who_waits_for_a_trial_that_hangs_has_its_time_again(tmp_path, cluster):
    trials = sweep(tmp_path, "model: a\ntokens: 16\n").trials()[:2]
    taken = tmp_path / "taken"

    def prepare(device: str):
        def execute(trial: Trial):
            while trial.method != "full" and not taken.exists():
                time.sleep(0.05)
            with (tmp_path / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                taken.touch()
                time.sleep(1000 if trial.method == "full" else 3)
            return Result({"id": trial.id}, None)

        return execute

    outcome = run(trials, Store(tmp_path), Resources(cpus=1), address=cluster, time_limit=5.0, prepare=prepare)
    assert outcome.done == 1
    assert [(trial.method, why) for trial, why in outcome.failures] == [("full", "stopped after 5 s, its time limit")]


def test_all_that_hang_are_stopped_within_twice_their_time(tmp_path, cluster):
    trials = sweep(tmp_path, "model: a\ntokens: 16\n").trials()[:2]

    def prepare(device: str):
        return lambda trial: time.sleep(1000)

    began = time.monotonic()
    outcome = run(trials, Store(tmp_path), Resources(cpus=1), address=cluster, time_limit=2.0, prepare=prepare)
    assert len(outcome.failures) == 2 and time.monotonic() - began < 60


def test_storing_and_what_follows_wait_for_others_that_time_but_not_for_ever(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(locks, "tempfile", SimpleNamespace(gettempdir=lambda: str(tmp_path)))
    monkeypatch.setattr(engine, "TURN", 0.5)
    trials, store, timing, enough = sweep(tmp_path, "model: a\ntokens: 16\n").trials(), Store(tmp_path), [], []

    def hangs() -> None:
        with locks.device_to_itself("cpu"):
            timing.append(time.monotonic())
            while not enough and time.monotonic() - timing[0] < 40:
                time.sleep(0.05)

    def taken(result: Result) -> None:
        with (tmp_path / "vtbench-cpu.lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def prepare(device: str):
        return lambda trial: Result({"id": trial.id}, None)

    thread = threading.Thread(target=hangs)
    thread.start()
    while not timing:
        time.sleep(0.01)
    assert run(trials[:1], store, Resources(), address=cluster, prepare=prepare).done == 1
    assert thread.is_alive() and store.done(trials[0].id)
    enough.append(True)
    thread.join()
    assert run(trials, store, Resources(), address=cluster, prepare=prepare, after=taken).done == 4


def test_a_trial_whose_worker_died_does_not_pay_for_an_idle_one_that_died_too(tmp_path, cluster):
    trials = [each for each in sweep(tmp_path, "model: a\ntokens: 16\n").trials() if each.method in ("full", "tome")]
    began, idle = tmp_path / "began", tmp_path / "idle"

    def prepare(device: str):
        def execute(trial: Trial):
            if trial.method == "full":
                while not began.exists():
                    time.sleep(0.05)
                idle.write_text(str(os.getpid()))
            elif not began.exists():
                began.touch()
                while not idle.exists():
                    time.sleep(0.05)
                time.sleep(2)  # till the other has nothing to do
                os.kill(int(idle.read_text()), signal.SIGKILL)
                time.sleep(1)
                os._exit(1)
            return Result({"id": trial.id}, None)

        return execute

    outcome = run(trials, Store(tmp_path / "results"), Resources(cpus=1), address=cluster, prepare=prepare)
    assert (outcome.done, outcome.failures) == (2, [])


def test_a_worker_out_of_reach_is_ended_so_that_another_has_its_place(tmp_path, cluster, monkeypatch):
    first, lost, wait, get = tmp_path / "first", [], ray.wait, ray.get

    def prepare(device: str):
        def execute(trial: Trial):
            if not first.exists():
                first.write_text(str(os.getpid()))
                time.sleep(1000)
            return Result({"id": trial.id}, None)

        return execute

    def waits(refs, **options):
        if first.exists() and not lost:
            lost.extend(refs)
            return refs, []
        return wait(refs, **options)

    def gets(ref, **options):
        if ref in lost:
            raise ActorUnavailableError("the network is down", None)
        return get(ref, **options)

    def check() -> None:
        assert time.monotonic() - began < 60

    began = time.monotonic()
    monkeypatch.setattr(ray, "wait", waits)
    monkeypatch.setattr(ray, "get", gets)
    (trial, *_), everything = sweep(tmp_path, "model: a\ntokens: 16\n").trials(), Resources(cpus=2)
    outcome = run([trial], Store(tmp_path / "x"), everything, address=cluster, prepare=prepare, check=check)
    assert (outcome.done, outcome.failures, len(lost)) == (1, [], 1)
    assert not psutil.pid_exists(int(first.read_text()))


def test_a_node_on_which_no_worker_starts_costs_those_of_others_nothing(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(engine, "STILLBORN", 3)
    good, works, broken = tmp_path / "good", tmp_path / "works", tmp_path / "broken"

    def prepare(device: str):
        try:
            good.touch(exist_ok=False)
        except FileExistsError:
            while not works.exists():
                time.sleep(0.05)
            with broken.open("a") as file:
                file.write("x")
            raise ImportError("no libcuda") from None

        def execute(trial: Trial):
            works.touch()
            while not (broken.exists() and len(broken.read_text()) == 3):
                time.sleep(0.05)
            time.sleep(1)  # till the driver knows
            return Result({"id": trial.id, "pid": os.getpid()}, None)

        return execute

    store, trials = Store(tmp_path / "results"), sweep(tmp_path, "model: a\ntokens: 16\n").trials()
    outcome = run(trials, store, Resources(cpus=1), address=cluster, prepare=prepare)
    assert (outcome.done, outcome.failures) == (5, []) and len({each["pid"] for each in store.records()}) == 1
    assert broken.read_text() == "xxx"  # then there were no more


def test_a_trial_that_exits_fails_and_one_whose_worker_is_asked_to_end_is_tried_again(tmp_path, cluster):
    asked = tmp_path / "asked"

    def prepare(device: str):
        def execute(trial: Trial):
            if trial.method == "full":
                sys.exit("video path: clip.mp4 does not exist")
            if not asked.exists():
                asked.touch()
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1000)
            return Result({"id": trial.id}, None)

        return execute

    trials = sweep(tmp_path, "model: a\ntokens: 16\n").trials()[:2]
    outcome = run(trials, Store(tmp_path / "results"), Resources(cpus=2), address=cluster, prepare=prepare)
    assert outcome.done == 1
    assert [why for _, why in outcome.failures] == ["exited: video path: clip.mp4 does not exist"]
