"""What lmms-eval evaluates when several workers share a trial: one that answers a shard, one that has all answers."""

from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance

from harness.errors import VtbenchError
from harness.lmms.batches import batches_of
from harness.lmms.model import VtBench
from harness.shards import Answers, Question, Shard


class Enough(Exception):  # noqa: N818
    """The shard is answered: lmms-eval need not go on to the scores."""


class Asking(VtBench):
    """Answers a shard of the questions, into `texts`, and then raises Enough.

    whole: the size of the batches that make the shard, which are asked in smaller ones where batch_size is smaller.
    """

    def __init__(self, *args: Any, shard: Shard, whole: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.shard, self.whole, self.texts = shard, whole, dict[Question, str]()

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer the shard of these requests."""
        size = self.batch_size_per_gpu
        mine = batches_of(requests, self.whole, self.beginnings(requests))[self.shard.index :: self.shard.count]
        smaller = [batch[start : start + size] for batch in mine for start in range(0, len(batch), size)]
        answers = self.answer(requests, smaller)
        self.texts |= {_question(requests[index]): answer.text for index, answer in answers.items()}
        raise Enough


class Answered(VtBench):
    """Has the answers already, and what was seen while they were given."""

    def __init__(self, *args: Any, answers: Answers, **options: Any) -> None:
        super().__init__(*args, **options)
        self.texts, self.observations, self.pictures = answers.texts, answers.observations, answers.pictures

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Give the answers. Errors: VtbenchError when there are others than these requests'."""
        self.first = self.first or requests[0]
        questions = [_question(request) for request in requests]
        if odd := set(questions) ^ set(self.texts):
            task, document = min(odd)
            raise VtbenchError(f"{task}, document {document}: the workers of the shards read other documents than here")
        return [GenerationResult(self.texts[question]) for question in questions]


def _question(request: Instance) -> Question:
    return request.args[4], request.args[3]
