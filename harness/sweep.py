"""Runs a sweep's missing trials on Ray: warm actors, and one short loop here that hands them trials.

Ray places the actors and reports their deaths; the queue, attempts, deadlines and what is done are ours (the store's).
A trial that raises is recorded and its actor goes on; one whose actor dies is tried again on a fresh actor. A trial may
be several jobs: shards of its questions, which several actors answer, and then what is left (`harness.shards`).
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
from harness.shards import Answers, Gathered, Job, Shard, jobs
from harness.spec import Resources, Trial
from harness.store import Result, Store

ATTEMPTS = 2  # of a job whose worker dies
STILLBORN = 10  # workers in a row that die as they start, with none that works: nothing will come of it
TICK = 0.5  # seconds between two looks around
PATIENCE = 300.0  # seconds without a node that has a place for a worker; one of a cluster may come back

Execute = Callable[..., Result | Answers]  # of a trial, or of a trial and a part of its work
Prepare = Callable[[str], Execute]  # in a worker, from its device to what does its jobs


def prepare(device: str) -> Execute:
    """Return what does jobs with a warm model."""
    import torch

    from harness.trial import Warm, work

    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))

    return partial(work, Warm(device))


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

    def run(self, trial: Trial, part: Shard | Answers | None) -> Result | Answers | Failed:
        """Return what the job gave, or Failed: an exception costs neither process nor model."""
        try:
            return self.execute(trial) if part is None else self.execute(trial, part)
        except Exception as error:
            return Failed(describe(error, trial), traceback.format_exc())


class Queue:
    """Jobs by the model they need, so that a worker goes on with the model it has."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.lanes: dict[object, deque[Job]] = defaultdict(deque)
        for job in jobs:
            self.lanes[job.warm_key].append(job)

    def __bool__(self) -> bool:
        return any(self.lanes.values())

    def take(self, mine: object, claimed: set[object]) -> Job:
        """Return the next job of my model, else of the longest lane that no other worker has, else of any."""
        lanes = {key: lane for key, lane in self.lanes.items() if lane}
        if mine in lanes:
            return lanes[mine].popleft()
        free = {key: lane for key, lane in lanes.items() if key not in claimed} or lanes
        return max(free.values(), key=len).popleft()

    def back(self, job: Job) -> None:
        """Put a job in front."""
        self.lanes[job.warm_key].appendleft(job)

    def drop(self, trial: Trial) -> None:
        """Take a trial's jobs out."""
        lane = self.lanes[trial.warm_key]
        self.lanes[trial.warm_key] = deque(job for job in lane if job.trial is not trial)


def run(
    trials: list[Trial],
    store: Store,
    resources: Resources,
    *,
    address: str = "local",
    time_limit: float | None = None,
    shards: int = 1,
    retry_failed: bool = False,
    prepare: Prepare = prepare,
    after: Callable[[Result], None] = lambda result: None,
    check: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run the trials that the store has not, and store each as it ends.

    time_limit: seconds of a trial, or of each of its jobs, beyond which it fails; shards: how many share the questions
    of a trial; retry_failed: also trials that failed before; prepare: what does a job; after: called with every stored
    result; check: called often, raises when the store is no longer ours to write (`Claim.check`). The first Ctrl-C or
    SIGTERM ends it in order, the second at once.
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
            loop = _Loop(
                [job for trial in missing for job in jobs(trial, shards)],
                store,
                resources,
                time_limit,
                0.0 if address == "local" else PATIENCE,
                prepare,
                after,
                outcome,
                shown,
            )
            loop.run(check, interrupts)
    return outcome


class _Running(NamedTuple):
    """What a worker does: a job, or None while it comes up."""

    worker: ActorHandle[Any]
    job: Job | None
    began: float


class _Loop:
    """The driver's state: who runs what."""

    def __init__(
        self,
        jobs: list[Job],
        store: Store,
        resources: Resources,
        time_limit: float | None,
        patience: float,
        prepare: Prepare,
        after: Callable[[Result], None],
        outcome: Outcome,
        shown: Board,
    ) -> None:
        self.queue, self.store, self.resources, self.time_limit = Queue(jobs), store, resources, time_limit
        self.prepare, self.after, self.outcome, self.shown = prepare, after, outcome, shown
        self.gathered = Gathered()
        self.failed: set[str] = set()  # trials of which other jobs may still run
        self.attempts: dict[object, int] = defaultdict(int)
        self.stillborn = 0  # workers that died before their first job, since one was ready
        self.patience = patience
        self.placeless: float | None = None  # since when no node has a place for a worker
        self.models: dict[ActorHandle[Any], object] = {}  # every worker, and the model it has
        self.idle: list[ActorHandle[Any]] = []
        self.running: dict[ray.ObjectRef[Any], _Running] = {}

    def run(self, check: Callable[[], None], interrupts: Interrupts) -> None:
        """Hand out jobs until none is left, or until asked to stop."""
        try:
            for _ in range(min(places(self.resources), sum(map(len, self.queue.lanes.values())))):
                self.hire()
            while self.queue or self.at_work():
                ended, _ = ray.wait(list(self.running), num_returns=1, timeout=TICK)
                check()
                for ref in ended:
                    self.ended(ref, more=interrupts.signal is None)
                if interrupts.signal is not None:
                    self.outcome.stopped, self.outcome.dropped = interrupts.signal, len(self.shown.running)
                    return
                self.look_around()
        finally:
            for worker in self.models:
                ray.kill(worker)

    def at_work(self) -> list[_Running]:
        """Return the workers that have a job."""
        return [each for each in self.running.values() if each.job is not None]

    def hire(self) -> None:
        """Start a worker. Its job comes when it reports in, for it may have to wait for its place."""
        remote: Any = ray.remote(Worker).options(**options(self.resources), max_restarts=0, max_task_retries=0)
        worker = remote.remote(self.prepare)
        self.models[worker] = None
        self.running[worker.ready.remote()] = _Running(worker, None, time.monotonic())

    def ended(self, ref: "ray.ObjectRef[Any]", *, more: bool) -> None:
        """Store what a worker gave, and give it more to do."""
        worker, job, _ = self.running.pop(ref)
        try:
            result = ray.get(ref)
        except RayTaskError as error:  # the result could not be sent, say
            result = Failed(str(error).splitlines()[-1], str(error))
        except RayError as error:
            self.died(worker, job, error)
            return
        self.stillborn = 0
        if job is not None and job.trial.id in self.failed:
            job = None  # as another of its shards has
        if job is not None and isinstance(result, Answers) and (last := self.gathered.add(job, result)):
            self.queue.back(last)
        if job is not None and isinstance(result, Failed):
            self.fail(job.trial, result)  # before the worker goes on, perhaps with that trial
        if more and self.queue:
            self.next(worker)  # before storing: it need not wait for that
        else:
            self.idle.append(worker)
        if job is not None and isinstance(result, Result):
            self.keep(job.trial, result)

    def next(self, worker: ActorHandle[Any]) -> None:
        """Give a free worker its next job."""
        mine = self.models.pop(worker)
        job = self.queue.take(mine, set(self.models.values()))
        self.models[worker] = job.warm_key
        self.attempts[job.key] += 1
        self.running[worker.run.remote(*job)] = _Running(worker, job, time.monotonic())
        if job.trial.id not in self.shown.running:
            self.shown.starts(job.trial)

    def keep(self, trial: Trial, result: Result) -> None:
        """Store what a trial gave."""
        seconds = time.monotonic() - self.shown.running[trial.id][1]
        try:
            # our own work here would disturb what another worker times
            with device_to_itself("cpu", alone=False):
                self.store.write(trial, result)
                self.after(result)
        except ValueError as error:
            self.fail(trial, Failed(f"cannot be stored: {error}", traceback.format_exc()))
            return
        self.outcome.done += 1
        self.shown.ends(trial, seconds)

    def fail(self, trial: Trial, why: Failed) -> None:
        """Record that a trial failed, and drop its other jobs; those that run end for nothing."""
        seconds = time.monotonic() - self.shown.running[trial.id][1]
        self.failed.add(trial.id)
        self.queue.drop(trial)
        self.gathered.drop(trial)
        self.store.fail(trial, *why)
        self.outcome.failures.append((trial, why.error))
        self.shown.ends(trial, seconds, why.error)

    def died(self, worker: ActorHandle[Any], job: Job | None, error: RayError) -> None:
        """Try a dead worker's job again, or record it, and replace the worker."""
        del self.models[worker]
        if job is None:
            self.stillborn += 1
            raised = "creation task" in str(error)  # rather than lost with its node, or killed
            if self.stillborn >= (ATTEMPTS if raised else max(STILLBORN, 2 * len(self.models))):
                raise VtbenchError(f"no worker can start: {str(error).splitlines()[-1]}")
        elif job.trial.id in self.failed:
            pass
        elif self.attempts[job.key] < ATTEMPTS:
            self.queue.back(job)
            if job.part is None:  # else others may have begun the trial
                self.shown.again(job.trial)
        else:
            reason = f"its worker died {ATTEMPTS} times, for want of memory perhaps"
            self.fail(job.trial, Failed(reason, str(error)))
        self.replace()

    def replace(self) -> None:
        """Have somebody instead of a worker that has gone."""
        if self.queue and self.idle:
            self.next(self.idle.pop())
        elif self.queue:
            self.hire()

    def look_around(self) -> None:
        """Stop jobs beyond their time limit; give up when the places of all workers are gone for good."""
        now = time.monotonic()
        if self.time_limit is not None:
            late = [ref for ref, each in self.running.items() if each.job and now - each.began > self.time_limit]
            for ref in late:
                worker, job, _ = self.running.pop(ref)
                assert job is not None
                ray.kill(worker)
                del self.models[worker]
                if job.trial.id not in self.failed:
                    self.fail(job.trial, Failed(f"stopped after {duration(self.time_limit)}, its time limit", ""))
                self.replace()
        if not self.queue or self.at_work():
            self.placeless = None
            return
        try:
            places(self.resources)
            self.placeless = None
        except VtbenchError as error:
            self.placeless = self.placeless or now
            if now - self.placeless > self.patience:
                raise VtbenchError(f"no worker can start any more: {error}") from None
