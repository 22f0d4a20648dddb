"""Runs a sweep's missing trials on Ray: warm actors, and one short loop here that hands them trials.

Ray places the actors and reports their deaths; the queue, attempts, deadlines and what is done are ours (the store's).
A trial that raises is recorded and its actor goes on; one whose actor dies is tried again on a fresh actor.
"""

import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from harness.amounts import duration
from harness.cluster import connected, options, places
from harness.errors import VtbenchError
from harness.faults import describe
from harness.interrupt import Interrupts
from harness.lock import device_to_itself
from harness.progress import Board, board
from harness.spec import Resources, Trial
from harness.store import Result, Store

ATTEMPTS = 2  # of a trial whose worker dies
TICK = 0.5  # seconds between two looks around
PATIENCE = 300.0  # seconds without a node that has a place for a worker, which may come back

Prepare = Callable[[str], Callable[[Trial], Result]]  # in a worker, from its device to what runs a trial


def prepare(device: str) -> Callable[[Trial], Result]:
    """Return what runs trials with a warm model."""
    import torch

    from harness.trial import Warm, run

    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))

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
    failed_before: list[tuple[Trial, str]] = field(default_factory=list)  # and not tried again
    stopped: int | None = None  # the signal that stopped it
    dropped: int = 0  # trials that ran then


class Worker:
    """A process that keeps a model warm."""

    def __init__(self, prepare: Prepare) -> None:
        self.execute = prepare("cuda" if ray.get_gpu_ids() else "cpu")

    def ready(self) -> None:
        """Return when the process is there."""

    def run(self, trial: Trial) -> Result | Failed:
        """Return what running the trial gave, or Failed: an exception costs neither process nor model."""
        try:
            return self.execute(trial)
        except Exception as error:
            return Failed(describe(error, trial), traceback.format_exc())


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
    time_limit: float | None = None,
    retry_failed: bool = False,
    prepare: Prepare = prepare,
    after: Callable[[Result], None] = lambda result: None,
    check: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run the trials that the store has not, and store each as it ends.

    time_limit: seconds of a trial, beyond which it fails; retry_failed: also trials that failed before; prepare: what
    runs a trial; after: called with every stored result; check: called often, raises when the store is no longer ours
    to write (`Claim.check`). The first Ctrl-C or SIGTERM ends it in order, the second at once.
    Errors: VtbenchError when no worker can be had; OSError when a result could not be stored, after which none is.
    """
    missing = [trial for trial in trials if not store.done(trial.id)]
    outcome = Outcome(skipped=len(trials) - len(missing))
    if not retry_failed:
        outcome.failed_before = [(trial, why) for trial in missing if (why := store.failure(trial.id)) is not None]
        failed = {trial.id for trial, _ in outcome.failed_before}
        missing = [trial for trial in missing if trial.id not in failed]
    if missing:
        with Interrupts() as interrupts, board(missing) as shown, connected(address):
            interrupts.listen()  # Ray has taken SIGTERM
            loop = _Loop(missing, store, resources, time_limit, prepare, after, outcome, shown)
            loop.run(check, interrupts)
    return outcome


class _Running(NamedTuple):
    """What a worker does: a trial, or None while it comes up."""

    worker: ActorHandle[Any]
    trial: Trial | None
    began: float


class _Loop:
    """The driver's state: who runs what."""

    def __init__(
        self,
        trials: list[Trial],
        store: Store,
        resources: Resources,
        time_limit: float | None,
        prepare: Prepare,
        after: Callable[[Result], None],
        outcome: Outcome,
        shown: Board,
    ) -> None:
        self.queue, self.store, self.resources, self.time_limit = Queue(trials), store, resources, time_limit
        self.prepare, self.after, self.outcome, self.shown = prepare, after, outcome, shown
        self.attempts: dict[str, int] = defaultdict(int)
        self.stillborn = 0  # workers that died before their first trial
        self.placeless: float | None = None  # since when no node has a place for a worker
        self.models: dict[ActorHandle[Any], object] = {}  # every worker, and the model it has
        self.idle: list[ActorHandle[Any]] = []
        self.running: dict[ray.ObjectRef[Any], _Running] = {}

    def run(self, check: Callable[[], None], interrupts: Interrupts) -> None:
        """Hand out trials until none is left, or until asked to stop."""
        try:
            for _ in range(min(places(self.resources), sum(map(len, self.queue.lanes.values())))):
                self.hire()
            while self.queue or self.at_work():
                ended, _ = ray.wait(list(self.running), num_returns=1, timeout=TICK)
                check()
                for ref in ended:
                    self.ended(ref, more=interrupts.signal is None)
                if interrupts.signal is not None:
                    self.outcome.stopped, self.outcome.dropped = interrupts.signal, len(self.at_work())
                    return
                self.look_around()
        finally:
            for worker in self.models:
                ray.kill(worker)

    def at_work(self) -> list[_Running]:
        """Return the workers that run a trial."""
        return [each for each in self.running.values() if each.trial is not None]

    def hire(self) -> None:
        """Start a worker. Its trial comes when it reports in, for it may have to wait for its place."""
        remote: Any = ray.remote(Worker).options(**options(self.resources), max_restarts=0, max_task_retries=0)
        worker = remote.remote(self.prepare)
        self.models[worker] = None
        self.running[worker.ready.remote()] = _Running(worker, None, time.monotonic())

    def ended(self, ref: "ray.ObjectRef[Any]", *, more: bool) -> None:
        """Store what a worker gave, and give it more to do."""
        worker, trial, began = self.running.pop(ref)
        seconds = time.monotonic() - began
        try:
            result = ray.get(ref)
        except RayTaskError as error:  # the result could not be sent, say
            result = Failed(str(error).splitlines()[-1], str(error))
        except RayError as error:
            self.died(worker, trial, error, seconds)
            return
        if more and self.queue:
            self.next(worker)  # before storing: it need not wait for that
        else:
            self.idle.append(worker)
        if trial is not None:
            self.keep(trial, result, seconds)

    def next(self, worker: ActorHandle[Any]) -> None:
        """Give a free worker its next trial."""
        mine = self.models.pop(worker)
        trial = self.queue.take(mine, set(self.models.values()))
        self.models[worker] = trial.warm_key
        self.attempts[trial.id] += 1
        self.running[worker.run.remote(trial)] = _Running(worker, trial, time.monotonic())
        self.shown.starts(trial)

    def keep(self, trial: Trial, result: Result | Failed, seconds: float) -> None:
        """Store what a trial gave."""
        if not isinstance(result, Failed):
            try:
                # our own work here would disturb what another worker times
                with device_to_itself("cpu", alone=False):
                    self.store.write(trial, result)
                    self.after(result)
            except ValueError as error:
                result = Failed(f"cannot be stored: {error}", traceback.format_exc())
        if isinstance(result, Failed):
            self.store.fail(trial, *result)
            self.outcome.failures.append((trial, result.error))
            self.shown.ends(trial, seconds, result.error)
        else:
            self.outcome.done += 1
            self.shown.ends(trial, seconds)

    def died(self, worker: ActorHandle[Any], trial: Trial | None, error: RayError, seconds: float) -> None:
        """Try a dead worker's trial again, or record it, and replace the worker."""
        del self.models[worker]
        if trial is not None and self.attempts[trial.id] < ATTEMPTS:
            self.queue.back(trial)
            self.shown.again(trial)
        elif trial is not None:
            reason = f"its worker died {ATTEMPTS} times, for want of memory perhaps"
            self.keep(trial, Failed(reason, str(error)), seconds)
        else:
            self.stillborn += 1
            if self.stillborn == ATTEMPTS:
                raise VtbenchError(f"no worker can start: {str(error).splitlines()[-1]}")
        self.replace()

    def replace(self) -> None:
        """Have somebody instead of a worker that has gone."""
        if self.queue and self.idle:
            self.next(self.idle.pop())
        elif self.queue:
            self.hire()

    def look_around(self) -> None:
        """Stop trials beyond their time limit; give up when the places of all workers are gone for good."""
        now = time.monotonic()
        if self.time_limit is not None:
            late = [ref for ref, each in self.running.items() if each.trial and now - each.began > self.time_limit]
            for ref in late:
                worker, trial, began = self.running.pop(ref)
                assert trial is not None
                ray.kill(worker)
                del self.models[worker]
                self.keep(trial, Failed(f"stopped after {duration(self.time_limit)}, its time limit", ""), now - began)
                self.replace()
        if not self.queue or self.at_work():
            self.placeless = None
            return
        try:
            places(self.resources)
            self.placeless = None
        except VtbenchError as error:
            self.placeless = self.placeless or now
            if now - self.placeless > PATIENCE:
                raise VtbenchError(f"no worker can start any more: {error}") from None
