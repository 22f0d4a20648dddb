"""Questions about the same pictures are asked together, and what precedes them is run once."""

from typing import Any
from weakref import ref

import pytest
from lmms_eval.api.instance import Instance
from PIL import Image

from harness.errors import VtbenchError
from harness.lmms.batches import batches_of
from harness.lmms.images import ImageCache
from harness.lmms.model import VtBench
from harness.model.attach import Attached
from harness.model.load import load
from methods import method

RED, BLUE, GREEN = (Image.new("RGB", (90, 60), colour) for colour in ("red", "blue", "green"))
DOCS = [
    ("what color is the small object?", [RED]),
    ("is there a red circle in the picture?", [BLUE]),
    ("where is the ring?", [RED, BLUE]),
    ("how many red circles are there?", []),
    ("where?", [RED.copy()]),
    ("what is it?", [GREEN]),
    ("is it the other way round than in the second picture?", [RED, BLUE]),
    ("how many?", [BLUE]),
    ("what is the ring?", [RED]),
]
SHARED = {
    "full": {},
    "topk": {"tokens": 64},
    "tome": {"tokens": 64},
    "random": {"tokens": 16},
    "prumerge": {"tokens": None},
    "ivtp": {"tokens": 64, "guidance": "none"},
}


@pytest.fixture(scope="module")
def loaded():
    return load("random:pocket")


def request(index: int, question: str = "?", **settings: Any) -> Instance:
    return Instance(
        request_type="generate_until",
        arguments=(question, {"max_new_tokens": 4} | settings, lambda doc: doc[1], index, "t", "test"),
        idx=0,
        metadata={"task": "t", "doc_id": index, "repeats": 1},
    )


def answers(lm: VtBench) -> list[str]:
    lm.task_dict = {"t": {"test": DOCS}}
    return [result.text for result in lm.generate_until([request(i, doc[0]) for i, doc in enumerate(DOCS)])]


def apart(lm: VtBench) -> VtBench:
    lm.shares = False
    return lm


def test_groups_of_several_come_first_and_those_alone_by_length():
    requests = [request(i, "?" * length) for i, length in enumerate([3, 9, 4, 5, 1, 2, 7])]
    begin = ["a", "b", "a", None, "c", "a", "c"]
    assert batches_of(requests, 2, begin) == [[[0, 2, 5], [4, 6]], [[1], [3]]]
    assert batches_of(requests, 8, [None] * 7) == [[[1], [6], [3], [2], [0], [5], [4]]]
    assert batches_of(requests, 1, begin) == [[[0, 2, 5]], [[4, 6]], [[1]], [[3]]]


def test_questions_of_other_settings_are_neither_of_one_group_nor_of_one_batch():
    requests = [request(0), request(1, max_new_tokens=9), request(2), request(3, max_new_tokens=9), request(4)]
    assert batches_of(requests, 8, ["a", "a", "a", "b", None]) == [[[0, 2]], [[1], [3]], [[4]]]


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_what_is_asked_together_is_answered_and_observed_as_alone(loaded, name, batch_size):
    together = VtBench(loaded, method(name, **SHARED[name]), batch_size=batch_size)
    alone = apart(VtBench(loaded, method(name, **SHARED[name]), batch_size=1))
    assert answers(together) == answers(alone)
    assert together.observations == alone.observations and together.pictures == alone.pictures


def test_a_picture_is_encoded_once_for_all_its_questions(loaded):
    seen: list[int] = []
    tower = loaded.model.model.vision_tower
    hook = tower.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    try:
        answers(VtBench(loaded, "topk", tokens=64))
        assert sum(seen) == 1 + 1 + 2 + 1  # red, blue, red and blue, green
        seen.clear()
        answers(VtBench(loaded, "fastv", tokens=64, budget="kept"))
        assert sum(seen) == 10
    finally:
        hook.remove()


def test_the_lengths_that_lmms_eval_is_told_are_those_of_the_whole_prompt(loaded):
    def lengths(lm: VtBench) -> list[int | None]:
        lm.task_dict = {"t": {"test": DOCS}}
        found = lm.generate_until([request(i, doc[0]) for i, doc in enumerate(DOCS)])
        return [each.token_counts.input_tokens for each in found if each.token_counts]

    tokenizer = loaded.processor.tokenizer
    lm = VtBench(loaded, "topk", tokens=64)
    inserting = method("ivtp", tokens=64, guidance="none", pseudo_cls="as_token")
    expected = [
        len(tokenizer(lm.prompt(question, len(pictures)))["input_ids"]) + 575 * len(pictures)
        for question, pictures in DOCS
    ]
    assert lengths(lm) == lengths(apart(VtBench(loaded, "topk", tokens=64))) == lengths(VtBench(loaded, inserting))
    assert lengths(lm) == expected


def test_a_data_set_is_read_once_for_all_trials_of_a_worker(loaded):
    class Docs(list[Any]):
        __hash__ = object.__hash__

    images, read, docs = ImageCache(), [], Docs(DOCS)

    def seen(doc: Any) -> list[Image.Image]:
        read.append(doc)
        return doc[1]

    def ask() -> None:
        lm = VtBench(loaded, "topk", tokens=16, images=images)
        lm.task_dict = {"t": {"test": docs}}
        asked = [request(i, doc[0]) for i, doc in enumerate(docs)]
        for each in asked:
            each.arguments = (*each.args[:2], seen, *each.args[3:])
        lm.generate_until(asked)

    ask()
    assert len(read) == 9 + 5  # to know which belong together, then a group's once
    ask()
    assert len(read) == 9 + 5 + 5
    docs = Docs([*DOCS[1:], DOCS[0]])
    ask()
    assert len(read) == 9 + 5 + 5 + 9 + 5


def test_a_cache_goes_with_its_answers(loaded, monkeypatch):
    begun, left = Attached.begun, []

    def spied(self: Attached, ledger: Any, cache: Any, rows: Any) -> Any:
        assert not [each for each in left if each() is not None]
        left.append(ref(taken := begun(self, ledger, cache, rows)))
        return taken

    monkeypatch.setattr(Attached, "begun", spied)
    answers(VtBench(loaded, "topk", tokens=16, batch_size=2))
    assert len(left) == 4  # five questions about red and blue two at a time, then two about both


def test_logits_that_are_no_numbers_are_told_with_the_document_of_a_group(loaded):
    calls = []

    def spoil(module: Any, inputs: Any, output: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:  # behind the beginnings, which nobody answers
            output[1, -1, 5] = float("nan")
        return output

    hook = loaded.model.get_output_embeddings().register_forward_hook(spoil)
    try:
        # of red's three and blue's two, the longest questions first: documents 1, 0, 8, 7, 4
        with pytest.raises(VtbenchError, match=r"^logits are NaN or infinite at token 1 of .* to t, document 0$"):
            answers(VtBench(loaded, "full", batch_size=2))
    finally:
        hook.remove()


@pytest.mark.parametrize("setting", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}, {"min_length": 3}])
def test_nothing_is_shared_where_generation_looks_back_at_the_prompt(loaded, monkeypatch, setting):
    assert VtBench(loaded, "topk", tokens=16).shares and not VtBench(loaded, "fastv", tokens=193).shares
    for name, value in setting.items():
        monkeypatch.setattr(loaded.model.generation_config, name, value)
    assert not VtBench(loaded, "topk", tokens=16).shares
