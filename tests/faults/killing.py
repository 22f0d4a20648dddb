"""Kills processes of a run at random points, and compares what is there in the end with an unbroken run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from harness.spec import load_sweep
from harness.store import Store
from harness.sweep import STILLBORN
from tests.faults.driver import answer
from tests.rays import node

ROOT = Path(__file__).parents[2]
PATIENCE = STILLBORN // 2  # strikes


def seeded() -> random.Random:
    """Return what chooses the points, by FAULTS_SEED or a new seed, which is printed."""
    seed = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(10**6))
    print(f"FAULTS_SEED={seed}")
    return random.Random(seed)


class Running:
    """A run that is killed on its way, time and again, with the kills counted."""

    def __init__(self, command: list[str], draw: random.Random) -> None:
        self.command, self.draw = command, draw
        self.kills: Counter[str] = Counter()
        self.started: set[psutil.Process] = set()  # what the runs started, as far as it was seen
        self.struck: list[dict[int, float]] = []  # by run: the processes of workers that were killed, and when

    def start(self) -> "subprocess.Popen[str]":
        """Start the run, or go on with it."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            self.command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.process = psutil.Process(process.pid)
        self.struck.append({})
        return process

    def own(self, name: str) -> list[psutil.Process]:
        """Return what the run itself has started under this name."""
        self._look()
        return [each for each in self.started if _named(each, name)]

    def _look(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self.started |= {*self.process.children(recursive=True)}

    def kill(self, kind: str, process: psutil.Process) -> None:
        """Kill a process, if it has not gone meanwhile. What a raylet has started goes with it."""
        with suppress(psutil.NoSuchProcess):
            lost = process.children() if kind == "raylet" else [process]
            self.struck[-1] |= {each.pid: time.time() for each in lost}
            process.send_signal(signal.SIGKILL)
            self.kills[kind] += 1

    def driver(self, seconds: float) -> None:
        """Kill the run itself at a random point: as it starts, or when it has the folder and trials run."""
        with self.start() as process:
            assert process.stdout is not None
            if self.draw.random() < 0.75:
                process.stdout.readline()
            time.sleep(self.draw.uniform(0, seconds))
            if process.poll() is None:
                self._look()
                self.kill("driver", self.process)

    def meanwhile(
        self, strikes: list[Callable[[], bool]], seconds: float, done: Callable[[], int] | None = None
    ) -> tuple[int, str]:
        """Strike at random points of one run, each until it has hit something; return its code and what it said.

        done: how many trials are; where none has come of PATIENCE strikes the next waits for one, as a run gives up
        whose workers are all killed while they start.
        """
        with self.start() as process:
            assert process.stdout is not None
            there, vain = -1, 0
            for strike in strikes:
                time.sleep(self.draw.uniform(0, seconds))
                if done and done() != there:
                    there, vain = done(), 0
                while process.poll() is None and ((done and vain >= PATIENCE and done() == there) or not strike()):
                    time.sleep(0.1)
                vain += 1
            said = process.stdout.read()
            return process.wait(240), said

    def one_of(self, kind: str, find: Callable[[], list[psutil.Process]]) -> bool:
        """Kill one of the processes found."""
        found = find()
        if found:
            self.kill(kind, self.draw.choice(found))
        return bool(found)

    def finish(self) -> str:
        """Let the run go to its end and return what it said."""
        done = self.start()
        said, _ = done.communicate(timeout=400)
        assert done.returncode == 0, said
        return said


def workers(cluster: Cluster) -> list[psutil.Process]:
    """Return the processes that run trials on a cluster's nodes."""
    found = []
    for each in cluster.list_all_nodes():
        for raylet in each.all_processes.get("raylet", []):
            with suppress(psutil.NoSuchProcess):
                children = psutil.Process(raylet.process.pid).children()
                found += [child for child in children if _named(child, "ray::Worker")]
    return found


def _named(process: psutil.Process, start: str) -> bool:
    try:
        words = process.cmdline()
        return bool(words) and Path(words[0]).name.startswith(start)
    except psutil.Error:
        return False


def check_cells(file: Path, folder: Path) -> None:
    """Check that every cell is there once, as an unbroken run gives it, or failed, and nothing else is."""
    trials, store = load_sweep(file).trials(), Store(folder)
    expected = {trial.id: answer(trial) for trial in trials}
    assert {path.name for path in folder.iterdir()} == {*expected, "images"}
    failed = {failure["id"] for failure in store.failures()}
    for trial in trials:
        result = expected[trial.id]
        assert result.samples is not None and result.pictures is not None
        files = sorted(path.name for path in (folder / trial.id).iterdir())
        if trial.id in failed:
            assert files == ["failure.json", "trial.yaml"]
            continue
        assert files == ["record.json", "samples.parquet", "trial.yaml"]
        assert json.loads((folder / trial.id / "record.json").read_text()) == result.record
        there = store.samples(trial.id)
        assert there is not None and there.equals(result.samples)
        assert all((folder / "images" / f"{name}.webp").read_bytes() == data for name, data in result.pictures.items())
    assert len(store.records()) == len(trials) - len(failed)


def check_failures(store: Store, log: Path, runs: list[dict[int, float]]) -> None:
    """Check that a trial failed only where two of its workers were killed in one run, as far as the log can tell.

    A worker that has just ended a trial may have been given any other, and one of a lost node may not have told.
    """
    last: dict[int, tuple[float, str]] = {}
    for line in log.read_text().splitlines():
        process, when, trial = line.split(" ")
        last[int(process)] = float(when), trial
    for failure in store.failures():
        assert failure["failure"]["error"] == "its worker died 2 times, for want of memory perhaps"
        deaths = [
            sum(
                trial == failure["id"] or (trial == "-" and when > killed - 1)
                for process, killed in struck.items()
                for when, trial in [last.get(process, (0.0, "-"))]
            )
            for struck in runs
        ]
        assert max(deaths) >= 2, (failure, deaths)


def check_gone(processes: Collection[psutil.Process], seconds: float = 120) -> None:
    """Check that the processes end within the time; Ray's agents take 80 s to find that they are alone."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    left = [each for each in alive if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert not left, [each.cmdline()[:3] for each in left]


def of_this_process() -> set[psutil.Process]:
    """Return all that this process has started, directly or not."""
    return {*psutil.Process().children(recursive=True)}


def nodes(count: int, cpus: int = 2) -> Cluster:
    """Return a cluster whose head runs no trials and so many more nodes with these CPUs; of 0 the head has them."""
    cluster = Cluster(initialize_head=True, head_node_args=node(cpus=0 if count else cpus))
    for _ in range(count):
        cluster.add_node(**_worker_node(cpus))
    return cluster


def _worker_node(cpus: int) -> dict[str, Any]:
    arguments = node(cpus=cpus)
    return {key: value for key, value in arguments.items() if key not in ("include_dashboard", "no_monitor")}


def lose_a_node(cluster: Cluster, running: Running, cpus: int = 2) -> bool:
    """Kill a node's raylet, and have another node instead. Not in a thread: a node dies with the one that starts it."""
    lost = running.draw.choice([each for each in cluster.list_all_nodes() if each is not cluster.head_node])
    running.kill("raylet", psutil.Process(lost.all_processes["raylet"][0].process.pid))
    cluster.add_node(**_worker_node(cpus))
    cluster.remove_node(lost, allow_graceful=False)
    return True


def python(script: Path, *arguments: object) -> list[str]:
    """Return a command line."""
    return [sys.executable, "-m", ".".join(script.relative_to(ROOT).with_suffix("").parts), *map(str, arguments)]
