"""Pictures that are unlike others, broken ones, and logits that are no numbers."""

import io

import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.evaluator import simple_evaluate
from PIL import Image

from harness.errors import VtbenchError
from harness.lmms.logits import finite_logits
from harness.lmms.model import VtBench
from harness.metrics.accuracy import evaluate
from harness.model.load import load
from tests.pictures import BLUE, BROKEN, QUESTION, RED, UNUSUAL, png, pope


@pytest.fixture(scope="module")
def loaded():
    return load("random:pocket")


def request(file: bytes, index: int = 7) -> Instance:
    return Instance(
        request_type="generate_until",
        arguments=(QUESTION, {"max_new_tokens": 2}, lambda d: [Image.open(io.BytesIO(d))], index, "t", "test"),
        idx=0,
        metadata={"task": "t", "doc_id": index, "repeats": 1},
    )


def answer(loaded, file: bytes) -> VtBench:
    lm = VtBench(loaded, "topk", tokens=16)
    lm.task_dict = {"t": {"test": {7: file}}}
    lm.generate_until([request(file)])
    return lm


@pytest.mark.parametrize("kind", BROKEN)
def test_a_picture_that_cannot_be_read_is_told_with_its_document(loaded, kind):
    with pytest.raises(VtbenchError, match=r"^t, document 7: its image cannot be read: \w+Error: "):
        answer(loaded, BROKEN[kind])


@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_unusual_picture_is_shown(loaded, kind):
    lm = answer(loaded, UNUSUAL[kind])
    (seen,) = lm.pictures.values()
    assert Image.open(io.BytesIO(seen)).size == (120, 120) and lm.observations["t", 7]["llm"] == [16] * 6


def test_of_an_animated_picture_the_first_frame_is_shown(loaded):
    shown, first = answer(loaded, UNUSUAL["animated"]), answer(loaded, png(RED.quantize(4)))
    assert list(shown.pictures.values()) == list(first.pictures.values())


def test_a_picture_without_pixels_is_told(loaded):
    lm = VtBench(loaded, "full")
    empty = Image.new("RGB", (0, 5))
    lm.task_dict = {"t": {"test": {7: empty}}}
    asked = request(b"")
    asked.arguments = (*asked.args[:2], lambda image: [image], *asked.args[3:])
    with pytest.raises(VtbenchError, match=r"^t, document 7: its image cannot be read: ValueError: it has no pixels$"):
        lm.generate_until([asked])


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Evaluate lmms-eval's POPE on these files as its pictures."""

    def run(files: list[bytes], *, vanishes: bool = False):
        path = tmp_path / "rows.parquet"
        stand_in = pope(path, files)
        if vanishes:
            path.unlink()
        monkeypatch.setattr(
            "harness.metrics.accuracy.simple_evaluate",
            lambda **settings: simple_evaluate(**settings | {"tasks": [stand_in]}),
        )
        return evaluate(VtBench(load("random:pocket"), "full"), "pope")

    return run


def test_in_a_data_set_the_unusual_are_asked(task):
    result = task([*UNUSUAL.values()])
    assert list(result.samples["doc_id"]) == list(range(len(UNUSUAL)))


def test_in_a_data_set_the_broken_fail_the_task_with_the_document(task):
    with pytest.raises(VtbenchError, match=r"^pope, document 2: its image cannot be read: UnidentifiedImageError"):
        task([png(RED), png(BLUE), b"not an image"])


def test_a_data_set_that_has_vanished_is_told(task):
    with pytest.raises(VtbenchError, match=r"^pope: its data set cannot be read: FileNotFoundError: .*/rows\.parquet"):
        task([png(RED)], vanishes=True)


def test_logits_that_are_no_numbers_are_never_an_answer(loaded, monkeypatch):
    calls = []

    def spoil(module, inputs, output):
        calls.append(1)
        if len(calls) == 2:
            output[1, -1, 5] = float("nan")
        return output

    lm = VtBench(loaded, "full", batch_size=2)
    lm.task_dict = {"t": {"test": {3: png(RED), 4: png(BLUE)}}}
    hook = loaded.model.get_output_embeddings().register_forward_hook(spoil)
    try:
        with pytest.raises(
            VtbenchError, match=r"^logits are NaN or infinite at token 2 of the answer to t, document 4$"
        ):
            lm.generate_until([request(b"", 3), request(b"", 4)])
    finally:
        hook.remove()
    assert lm.generate_until([request(b"", 3)])  # the look is over with the error


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_infinite_logits_are_told_too(value):
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Identity()

        def get_output_embeddings(self):
            return self.head

    model = Model()
    with pytest.raises(VtbenchError, match="at token 1 of the answer to b"), finite_logits(model, ["a", "b"]):
        model.head(torch.tensor([[[0.0, 1.0]], [[value, 1.0]]]))
    with finite_logits(model, ["a"]):
        model.head(torch.tensor([[[value, 1.0], [0.0, 1.0]]]))  # what is padded may be anything
    assert not model.head._forward_hooks
