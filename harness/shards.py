"""A trial's questions over several workers: each answers a shard of the batches, one then scores all answers.

A shard has whole batches, those that one worker would answer, so that the result is that of one worker. Needs no torch:
the driver passes all this on.
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from harness.spec import Trial

Question = tuple[str, int]  # a leaf task and its document


@dataclass(frozen=True)
class Shard:
    """Every count-th batch of a trial's questions, from the index-th on."""

    index: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What asking a shard gave, or all of them."""

    texts: dict[Question, str]
    observations: dict[Question, dict[str, Any]]  # as `VtBench` has them
    pictures: dict[str, bytes]
    batch_size: int  # the smallest: memory may have halved that of some
    started: datetime
    seconds: float  # of all workers
    shards: int = 1


class Job(NamedTuple):
    """What a worker does at once: a trial, a shard of its questions, or what is left when all are answered."""

    trial: "Trial"
    part: Shard | Answers | None = None

    @property
    def key(self) -> object:
        """What tells it from other jobs."""
        return self.trial.id, self.part.index if isinstance(self.part, Shard) else None

    @property
    def warm_key(self) -> object:
        """What a worker's model depends on."""
        return self.trial.warm_key


class Gathered:
    """The answers that are there, of the trials whose other shards are still asked."""

    def __init__(self) -> None:
        self._answers: dict[str, dict[int, Answers]] = defaultdict(dict)

    def add(self, job: Job, answers: Answers) -> Job | None:
        """Take a shard's answers and return the job that ends the trial, if they are the last."""
        assert isinstance(job.part, Shard)
        mine = self._answers[job.trial.id]
        mine[job.part.index] = answers
        if len(mine) < job.part.count:
            return None
        del self._answers[job.trial.id]
        return Job(job.trial, merged([mine[index] for index in sorted(mine)]))

    def drop(self, trial: "Trial") -> None:
        """Forget a trial."""
        self._answers.pop(trial.id, None)


def jobs(trial: "Trial", shards: int) -> list[Job]:
    """Return the jobs that a trial starts with: a job a shard if it asks all its questions, else one."""
    if shards == 1 or trial.task is None or trial.measure == ("latency",):
        return [Job(trial)]
    return [Job(trial, Shard(index, shards)) for index in range(shards)]


def merged(answers: list[Answers]) -> Answers:
    """Return all shards' answers as one."""
    return Answers(
        texts={question: text for each in answers for question, text in each.texts.items()},
        observations={question: seen for each in answers for question, seen in each.observations.items()},
        pictures={name: file for each in answers for name, file in each.pictures.items()},
        batch_size=min(each.batch_size for each in answers),
        started=min(each.started for each in answers),
        seconds=sum(each.seconds for each in answers),
        shards=len(answers),
    )
