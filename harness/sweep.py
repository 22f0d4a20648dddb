"""Runs a sweep's missing trials on Ray: warm actors, and one short loop here that hands them trials.

Ray places the actors and reports their deaths; the queue, attempts and what is done are ours (the store's). A trial
that raises is recorded and its actor goes on; one whose actor dies is tried again on a fresh actor.
"""

import logging
import os
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from harness.errors import VtbenchError
from harness.metrics.latency import device_to_itself
from harness.progress import Board, board
from harness.spec import Resources, Trial
from harness.store import Result, Store

ATTEMPTS = 2  # of a trial whose worker dies
OBJECT_STORE = 200 * 2**20  # bytes; records are small

Prepare = Callable[[str], Callable[[Trial], Result]]  # in a worker, from its device to what runs a trial


def prepare(device: str) -> Callable[[Trial], Result]:
    """Return what runs trials with a warm model."""
    from harness.trial import Warm, run

    return partial(run, warm=Warm(device))


class Failed(NamedTuple):
    """A trial that raised, as a worker tells it."""

    error: str
    traceback: str


@dataclass
class Outcome:
    """What a run of a sweep did."""

    done: int = 0
    skipped: int = 0  # done before
    failures: list[tuple[Trial, str]] = field(default_factory=list)


class Worker:
    """A process that keeps a model warm."""

    def __init__(self, prepare: Prepare, threads: int) -> None:
        torch.set_num_threads(threads)
        self.execute = prepare("cuda" if ray.get_gpu_ids() else "cpu")

    def ready(self) -> None:
        """Return when the process is there."""

    def run(self, trial: Trial) -> Result | Failed:
        """Return what running the trial gave, or Failed: an exception costs neither process nor model."""
        try:
            return self.execute(trial)
        except Exception as error:
            name = "" if isinstance(error, VtbenchError) else f"{type(error).__name__}: "
            return Failed(" ".join(f"{name}{error}".split()), traceback.format_exc())


class Queue:
    """Trials by the model they need, so that a worker goes on with the model it has."""

    def __init__(self, trials: Iterable[Trial]) -> None:
        self.lanes: dict[object, deque[Trial]] = defaultdict(deque)
        for trial in trials:
            self.lanes[trial.warm_key].append(trial)

    def __bool__(self) -> bool:
        return any(self.lanes.values())

    def take(self, mine: object, claimed: set[object]) -> Trial:
        """Return the next trial of my model, else of the longest lane that no other worker has, else of any."""
        lanes = {key: lane for key, lane in self.lanes.items() if lane}
        if mine in lanes:
            return lanes[mine].popleft()
        free = {key: lane for key, lane in lanes.items() if key not in claimed} or lanes
        return max(free.values(), key=len).popleft()

    def back(self, trial: Trial) -> None:
        """Put a trial back in front."""
        self.lanes[trial.warm_key].appendleft(trial)


def run(
    trials: list[Trial],
    store: Store,
    resources: Resources,
    *,
    address: str = "local",
    prepare: Prepare = prepare,
    after: Callable[[Result], None] = lambda result: None,
) -> Outcome:
    """Run the trials that the store has not, and store each as it ends.

    prepare: what runs a trial; after: called with every stored result.
    Errors: VtbenchError when no worker can be had; KeyboardInterrupt goes through, after the workers have been stopped.
    """
    missing = [trial for trial in trials if not store.done(trial.id)]
    outcome = Outcome(skipped=len(trials) - len(missing))
    if missing:
        with board(len(missing)) as shown, connected(address):
            _Loop(missing, store, resources, prepare, after, outcome, shown).run()
    return outcome


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Join the Ray cluster at this address, or be one while the context lasts."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        ray.init(
            address=address, logging_level=logging.ERROR, log_to_driver=False, **local if address == "local" else {}
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise VtbenchError(f"--address: no Ray at {address} can be joined: {str(error).splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()


class _Loop:
    """The driver's state: who runs what."""

    def __init__(
        self,
        trials: list[Trial],
        store: Store,
        resources: Resources,
        prepare: Prepare,
        after: Callable[[Result], None],
        outcome: Outcome,
        shown: Board,
    ) -> None:
        self.queue, self.store, self.resources = Queue(trials), store, resources
        self.prepare, self.after, self.outcome, self.shown = prepare, after, outcome, shown
        self.attempts: dict[str, int] = defaultdict(int)
        self.stillborn = 0  # workers that died before their first trial
        self.models: dict[ActorHandle[Any], object] = {}  # every worker, and the model it has
        self.running: dict[ray.ObjectRef[Any], tuple[ActorHandle[Any], Trial | None, float]] = {}

    def run(self) -> None:
        """Hand out trials until none is left."""
        try:
            for _ in range(min(capacity(self.resources), sum(map(len, self.queue.lanes.values())))):
                self.hire()
            while self.running:
                (ref,), _ = ray.wait(list(self.running), num_returns=1)
                worker, trial, began = self.running.pop(ref)
                seconds = time.monotonic() - began
                try:
                    result = ray.get(ref)
                except RayTaskError as error:  # the result could not be sent, say
                    result = Failed(str(error).splitlines()[-1], str(error))
                except RayError as error:
                    self.died(worker, trial, error, seconds)
                    continue
                self.next(worker)  # before storing: it need not wait for that
                if trial is not None:
                    self.keep(trial, result, seconds)
        finally:
            for worker in self.models:
                ray.kill(worker)

    def hire(self) -> None:
        """Start a worker. Its trial comes when it reports in, for it may have to wait for its place."""
        cpus, gpus = self.resources.cpus, self.resources.gpus
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        remote: Any = ray.remote(Worker).options(**options)
        worker = remote.remote(self.prepare, max(1, int(cpus)))
        self.models[worker] = None
        self.running[worker.ready.remote()] = worker, None, time.monotonic()

    def next(self, worker: ActorHandle[Any]) -> None:
        """Give a free worker its next trial, if there is one."""
        if not self.queue:
            return
        mine = self.models.pop(worker)
        trial = self.queue.take(mine, set(self.models.values()))
        self.models[worker] = trial.warm_key
        self.attempts[trial.id] += 1
        self.running[worker.run.remote(trial)] = worker, trial, time.monotonic()
        self.shown.starts()

    def keep(self, trial: Trial, result: Result | Failed, seconds: float) -> None:
        """Store what a trial gave."""
        if not isinstance(result, Failed):
            try:
                # our own work here would disturb what another worker times
                with device_to_itself(torch.device("cpu"), alone=False):
                    self.store.write(trial, result)
                    self.after(result)
            except ValueError as error:
                result = Failed(f"cannot be stored: {error}", traceback.format_exc())
        if isinstance(result, Failed):
            self.store.fail(trial, *result)
            self.outcome.failures.append((trial, result.error))
            self.shown.ends(trial.label, seconds, result.error)
        else:
            self.outcome.done += 1
            self.shown.ends(trial.label, seconds)

    def died(self, worker: ActorHandle[Any], trial: Trial | None, error: RayError, seconds: float) -> None:
        """Try a dead worker's trial again, or record it, and replace the worker."""
        del self.models[worker]
        if trial is not None and self.attempts[trial.id] < ATTEMPTS:
            self.queue.back(trial)
            self.shown.again()
        elif trial is not None:
            reason = f"its worker died {ATTEMPTS} times, for want of memory perhaps"
            self.keep(trial, Failed(reason, str(error)), seconds)
        else:
            self.stillborn += 1
            if self.stillborn == ATTEMPTS:
                raise VtbenchError(f"no worker can start: {str(error).splitlines()[-1]}")
        if self.queue:
            self.hire()


def capacity(resources: Resources) -> int:
    """Return how many workers the cluster holds. Errors: VtbenchError when not even one."""
    there = ray.cluster_resources()
    wanted = {"CPU": ("cpus", resources.cpus), "GPU": ("gpus", resources.gpus)}
    for name, (key, amount) in wanted.items():
        if amount > there.get(name, 0):
            raise VtbenchError(f"resources.{key}: {amount:g} is not possible; Ray has {there.get(name, 0):g} here")
    return min(int(there[name] / amount) for name, (_, amount) in wanted.items() if amount)
