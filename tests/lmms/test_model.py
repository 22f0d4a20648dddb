import io

import numpy as np
import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from PIL import Image

from harness.errors import VtbenchError
from harness.lmms.images import ImageCache
from harness.lmms.model import VtBench
from harness.lmms.pictures import pictures
from harness.lmms.tasks import manager_for
from harness.model.load import load

RED, BLUE = Image.new("RGB", (120, 120), (200, 20, 20)), Image.new("RGB", (60, 90), (20, 20, 200))
DOCS = [
    {"question": "what color is the small object?", "images": [RED]},
    {"question": "is there a red circle in the picture?", "images": [BLUE]},
    {"question": "where is the ring?", "images": [RED, BLUE]},
    {"question": "how many red circles are there?", "images": []},
]


@pytest.fixture(scope="module")
def loaded():
    return load("random:pocket")


def requests(lm: VtBench, **settings) -> list[Instance]:
    lm.task_dict = {"t": {"test": DOCS}}
    return [
        Instance(
            request_type="generate_until",
            arguments=(doc["question"], {"max_new_tokens": 4, **settings}, lambda d: d["images"], i, "t", "test"),
            idx=0,
            metadata={"task": "t", "doc_id": i, "repeats": 1},
        )
        for i, doc in enumerate(DOCS)
    ]


def answers(lm: VtBench, **settings) -> list[str]:
    return [result.text for result in lm.generate_until(requests(lm, **settings))]


@pytest.mark.parametrize("method", ["full", "topk", "ivtp"])
def test_batched_answers_equal_those_one_by_one_and_those_of_a_second_run(loaded, method):
    parameters = {} if method == "full" else {"tokens": 64}
    batched = VtBench(loaded, method, batch_size=4, **parameters)
    first = answers(batched)
    assert all(first)
    assert first == answers(VtBench(loaded, method, batch_size=1, **parameters)) == answers(batched)


def test_observations_tell_the_tokens_of_every_layer(loaded):
    lm = VtBench(loaded, "fastv", tokens=64, budget="kept", batch_size=4)
    answers(lm)
    (red,), red_and_blue = lm.observations["t", 0]["pictures"], lm.observations["t", 2]["pictures"]
    assert red_and_blue == [red, *lm.observations["t", 1]["pictures"]] and len(set(red_and_blue)) == 2
    assert lm.observations["t", 0] == {
        "question": DOCS[0]["question"],
        "images": 1,
        "pictures": [red],
        "kept": lm.observations["t", 0]["kept"],
        "merged": False,
        "words": None,
        "vit": [[576] * 8],
        "llm": [576, 576, 64, 64, 64, 64],
        "visual_tokens": 576,
        "text_tokens": len(loaded.processor.tokenizer(lm.prompt(DOCS[0]["question"], 0))["input_ids"]),
    }
    assert lm.observations["t", 2]["llm"] == [1152, 1152, 128, 128, 128, 128]
    assert lm.observations["t", 3]["visual_tokens"] == 0 and lm.observations["t", 3]["vit"] == []


def test_observations_tell_which_patches_were_kept(loaded):
    lm = VtBench(loaded, "fastv", tokens=64, budget="kept", batch_size=4)
    answers(lm)
    for document, images in enumerate((1, 1, 2)):
        kept = lm.observations["t", document]["kept"]
        assert [len(set(patches)) for patches in kept] == [64] * images
        assert all(patches == sorted(patches) and patches[0] >= 0 and patches[-1] < 576 for patches in kept)
    assert lm.observations["t", 3]["kept"] is None
    full = VtBench(loaded, "full", batch_size=4)
    answers(full)
    assert {each["kept"] is None and not each["merged"] for each in full.observations.values()} == {True}


def test_observations_tell_what_merged_and_which_words_guided(loaded):
    tome, ivtp = VtBench(loaded, "tome", tokens=64), VtBench(loaded, "ivtp", tokens=64)
    answers(tome), answers(ivtp)
    assert [tome.observations["t", document]["merged"] for document in range(4)] == [True, True, True, False]
    assert tome.observations["t", 0]["words"] is None
    for document in range(3):
        words = ivtp.observations["t", document]["words"]
        assert all(word in DOCS[document]["question"] for word in words)
    assert any(ivtp.observations["t", document]["words"] for document in range(3))


def test_pictures_are_what_the_model_saw(loaded):
    lm = VtBench(loaded, "full", batch_size=4)
    answers(lm)
    seen = {name for each in lm.observations.values() for name in each["pictures"]}
    assert lm.pictures.keys() == seen
    (red,) = lm.observations["t", 0]["pictures"]
    picture = np.asarray(Image.open(io.BytesIO(lm.pictures[red])).convert("RGB")).astype(int)
    assert picture.shape == (120, 120, 3)
    assert np.abs(picture - np.asarray(RED)).max() < 8


def test_the_prompt_is_llavas_own(loaded):
    prompt = VtBench(loaded).prompt("what?", 2)
    assert prompt == "USER: <image>\n<image>\nwhat? ASSISTANT:"


def test_the_answer_stops_where_the_task_says(loaded):
    lm = VtBench(loaded)
    plain = answers(lm)
    word = plain[0].split()[0]
    assert answers(lm, until=[word])[0] == ""


def test_an_error_in_generation_is_raised_and_never_an_empty_answer(loaded, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(loaded.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        answers(VtBench(loaded))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"do_sample": True, "temperature": 1.0}, "allowed is greedy"), ({"num_beams": 3}, "allowed is greedy")],
)
def test_more_than_greedy_decoding_is_refused(loaded, settings, message):
    with pytest.raises(VtbenchError, match=message):
        answers(VtBench(loaded), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "poket"}, "'poket' is not a model; did you mean pocket"),
        ({"method": "ivpt", "tokens": 64}, "method: 'ivpt' is unknown"),
        ({"method": "topk"}, "topk: tokens is missing"),
        ({"method": "topk", "tokens": "many"}, "topk: tokens: 'many' is not possible; it should be a valid integer"),
        ({"method": "ivtp", "tokens": 64, "threshold": "low"}, "ivtp: threshold: 'low' is .* should be a valid number"),
        ({"method": "ivtp", "tokens": 64, "group": "x"}, "ivtp: group: 'x' is .* be a valid integer or 'all'"),
        ({"method": "ivtp", "tokens": 64, "guidance": "OTT+TE"}, "guidance: 'OTT\\+TE' is not possible; did you mean"),
        ({"method": "topk", "tokens": 577}, "topk: tokens: 577 is not possible; allowed are 1 to 576"),
        ({"dtype": "int8"}, "dtype: 'int8' is unknown; allowed are float32"),
        ({"device": "cdua"}, "device: 'cdua' is unknown"),
        ({"batch_size": "auto"}, "batch_size: 'auto' is not possible; allowed are whole numbers from 1"),
        ({"batch_size": 0}, "batch_size: 0 is not possible"),
        ({"seed": "-1"}, "seed: '-1' is not possible; allowed are whole numbers from 0"),
    ],
)
def test_a_wrong_name_is_told(settings, message):
    with pytest.raises(VtbenchError, match=message):
        VtBench(**settings)


def test_images_are_preprocessed_once_and_the_least_used_go_first(loaded, monkeypatch):
    monkeypatch.setattr("harness.lmms.images.IMAGE_CACHE_BYTES", 400_000)
    cache, processor = ImageCache(), loaded.processor.image_processor
    first = cache.pixels(processor, RED)
    assert cache.pixels(processor, RED.copy()) is first
    expected = processor(images=RED, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(first, expected)
    cache.pixels(processor, BLUE)
    cache.pixels(processor, RED)
    cache.pixels(processor, Image.new("RGB", (60, 60)))
    assert cache.pixels(processor, RED) is first  # blue went
    assert len(cache.kept) == 2 and cache.bytes == 2 * first.nbytes


def test_lmms_eval_knows_the_model_by_its_entry_point():
    assert get_model("vtbench") is VtBench


def test_lmms_evals_own_index_has_our_tasks_and_its_own():
    from lmms_eval.tasks import TaskManager

    found = TaskManager("ERROR").all_tasks
    assert {"pocketvqa", "pocketvqa_count", "pocket_tiny", "pope"} <= set(found)
    assert TaskManager("ERROR", include_defaults=False).all_tasks == []


def test_arguments_of_lmms_evals_command_line(loaded):
    lm = VtBench.create_from_arg_string("model=random:pocket,method=ivtp,tokens=64,threshold=0.1", {"batch_size": "2"})
    assert lm.method.tokens == 64 and lm.method.threshold == 0.1 and lm.batch_size_per_gpu == 2


def test_our_own_tasks_are_found_without_lmms_evals():
    assert {"pocketvqa", "pocket_tiny", "pocketvqa_count"} <= set(manager_for("pocketvqa").all_tasks)
    assert "gqa" not in manager_for("pocketvqa").all_tasks


def test_the_pictures_are_read_once_whatever_lmms_eval_loads_anew():
    from lmms_eval.tasks import get_task_dict

    pictures.cache_clear()
    for names in (["pocket_tiny_count"], ["pocket_tiny_where", "pocket_tiny_count"]):
        for task in get_task_dict(names, manager_for("pocket_tiny")).values():
            assert task.doc_to_visual(task.test_docs()[0])[0].size == (120, 120)
    assert pictures.cache_info().misses == 1
