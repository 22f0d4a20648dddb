"""The workers of a sweep, Ray actors that keep a model warm, and the queue of jobs that they take from."""

import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import ray

from harness.errors import VtbenchError
from harness.faults import describe
from harness.shards import Answers, Job, Shard
from harness.spec import Trial
from harness.store import Result

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
        except SystemExit as error:  # so lmms-eval's tasks tell of a file that is not there
            if hasattr(error, "ray_terminate_msg"):  # what Ray makes of a SIGTERM
                raise
            said = VtbenchError(f"exited: {error}").with_traceback(error.__traceback__)
            return Failed(describe(said, trial), traceback.format_exc())
        except Exception as error:
            return Failed(describe(error, trial), traceback.format_exc())


class Queue:
    """Jobs by the model they need, so that a worker goes on with the model it has."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.lanes: dict[object, deque[Job]] = defaultdict(deque)
        for job in jobs:
            self.lanes[job.warm_key].append(job)

    def __len__(self) -> int:
        return sum(map(len, self.lanes.values()))

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
