"""Runs a sweep's missing trials on Ray: warm actors, and one short loop here that hands them trials.

Ray places the actors and reports their deaths; the queue, attempts, deadlines and what is done are ours (the store's).
A trial that raises is recorded and its actor goes on; one whose actor dies is tried again on a fresh actor. A trial may
be several jobs: shards of its questions, which several actors answer, and then what is left (`harness.shards`).
"""

import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from harness.amounts import duration
from harness.cluster import connected, options, places
from harness.errors import VtbenchError
from harness.interrupt import Interrupts
from harness.lock import device_to_itself
from harness.progress import Board, board
from harness.shards import Answers, Gathered, Job, jobs
from harness.spec import Resources, Trial
from harness.store import Result, Store
from harness.workers import Failed, Prepare, Queue, Worker, prepare

ATTEMPTS = 2  # of a job whose worker dies
STILLBORN = 10  # workers in a row that die as they start: there will be no more
TICK = 0.5  # seconds between two looks around
PATIENCE = 300.0  # seconds without a node that has a place for a worker; one of a cluster may come back
TURN = 5.0  # seconds that storing waits for others' timed sections


@dataclass
class Outcome:
    """What a run of a sweep did."""

    done: int = 0
    skipped: int = 0  # done before
    failures: list[tuple[Trial, str]] = field(default_factory=list)
    failed_before: list[tuple[Trial, str]] = field(default_factory=list)  # and not tried again
    stopped: int | None = None  # the signal that stopped it
    dropped: int = 0  # trials that ran then


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
                queue=Queue(job for trial in missing for job in jobs(trial, shards)),
                store=store,
                resources=resources,
                time_limit=time_limit,
                patience=0.0 if address == "local" else PATIENCE,
                prepare=prepare,
                after=after,
                outcome=outcome,
                shown=shown,
            )
            loop.run(check, interrupts)
    return outcome


class _Running(NamedTuple):
    """What a worker does: a job, or None while it comes up."""

    worker: ActorHandle[Any]
    job: Job | None
    began: float
    spared: bool = False  # whether it has had its time again


@dataclass(kw_only=True)
class _Loop:
    """The driver's state: who runs what."""

    queue: Queue
    store: Store
    resources: Resources
    time_limit: float | None
    patience: float
    prepare: Prepare
    after: Callable[[Result], None]
    outcome: Outcome
    shown: Board
    gathered: Gathered = field(default_factory=Gathered)
    failed: set[str] = field(default_factory=set)  # trials of which other jobs may still run
    attempts: dict[object, int] = field(default_factory=lambda: defaultdict(int))
    came_up: set[ActorHandle[Any]] = field(default_factory=set)  # workers that were ready once
    stillborn: int = 0  # workers that died before they were, since any did something
    placeless: float | None = None  # since when no node has a place for a worker
    models: dict[ActorHandle[Any], object] = field(default_factory=dict)  # every worker, and the model it has
    idle: list[ActorHandle[Any]] = field(default_factory=list)
    running: dict[ray.ObjectRef[Any], _Running] = field(default_factory=dict)

    def run(self, check: Callable[[], None], interrupts: Interrupts) -> None:
        """Hand out jobs until none is left, or until asked to stop."""
        try:
            for _ in range(min(places(self.resources), len(self.queue))):
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
        self.greet(worker)

    def greet(self, worker: ActorHandle[Any]) -> None:
        """Have a worker report in."""
        self.running[worker.ready.remote()] = _Running(worker, None, time.monotonic())

    def ended(self, ref: "ray.ObjectRef[Any]", *, more: bool) -> None:
        """Store what a worker gave, and give it more to do."""
        worker, job, *_ = self.running.pop(ref)
        try:
            result = ray.get(ref)
        except RayTaskError as error:  # the result could not be sent, say
            result = Failed(str(error).splitlines()[-1], str(error))
        except RayError as error:
            self.died(worker, job, error)
            return
        self.came_up.add(worker)
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
            # our own work here would disturb what another worker times, which may never end
            with device_to_itself("cpu", alone=False, patience=TURN):
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
        ray.kill(worker)  # it may live, out of reach
        del self.models[worker]
        if worker not in self.came_up:
            self.never_came_up(error)
            return
        if job is None or job.trial.id in self.failed:
            pass
        elif self.attempts[job.key] < ATTEMPTS:
            self.queue.back(job)
            if job.part is None:  # else others may have begun the trial
                self.shown.again(job.trial)
        else:
            reason = f"its worker died {ATTEMPTS} times, for want of memory perhaps"
            self.fail(job.trial, Failed(reason, str(error)))
        self.replace()

    def never_came_up(self, error: RayError) -> None:
        """Replace a worker, unless too many have died as they started. Errors: VtbenchError when nobody is left."""
        self.stillborn += 1
        raised = "creation task" in str(error)  # rather than lost with its node, or killed
        limit = ATTEMPTS if raised and not self.came_up else max(STILLBORN, 2 * len(self.models))
        if self.stillborn >= limit and not self.models:
            raise VtbenchError(f"no worker can start: {str(error).splitlines()[-1]}")
        self.replace(hire=self.stillborn < limit)

    def replace(self, *, hire: bool = True) -> None:
        """Have somebody instead of a worker that has gone: an idle one, if it has not gone too, or a new one."""
        if self.queue and self.idle:
            self.greet(self.idle.pop())
        elif self.queue and hire:
            self.hire()

    def look_around(self) -> None:
        """Stop a job beyond its time limit; give up when the places of all workers are gone for good."""
        now = time.monotonic()
        if self.time_limit is not None:
            self.stop_late(self.time_limit, now)
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

    def stop_late(self, limit: float, now: float) -> None:
        """Stop the job that began first, if late. The others, which may have waited for its lock, begin anew, once."""
        working = {ref: each for ref, each in self.running.items() if each.job}
        ref = min(working, key=lambda ref: working[ref].began, default=None)
        if ref is None or now - working[ref].began <= limit:
            return
        worker, job, *_ = self.running.pop(ref)
        assert job is not None
        ray.kill(worker)
        del self.models[worker]
        if job.trial.id not in self.failed:
            self.fail(job.trial, Failed(f"stopped after {duration(limit)}, its time limit", ""))
        for other, each in working.items():
            if other != ref and not each.spared:
                self.running[other] = each._replace(began=now, spared=True)
        self.replace()
