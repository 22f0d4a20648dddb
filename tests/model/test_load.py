import json

import pytest
import torch

from harness.errors import VtbenchError
from harness.model import look
from harness.model.draw import digest, uniform
from harness.model.load import RANDOM, config_of, load, shape_of
from harness.model.shapes import LLAVA
from harness.pocket import WEIGHTS
from methods.interface import Shape


def test_names_that_need_no_torch_are_those_of_the_shapes():
    assert tuple(LLAVA) == look.SHAPES and tuple(RANDOM) == look.RANDOM
    for name in ("pocket", *RANDOM, *LLAVA):
        config = config_of(name)
        patches = shape_of(name).patches
        assert look.limits(name) == (patches, config.text_config.max_position_embeddings - patches)


def test_the_random_shapes_are_llavas():
    assert shape_of("random:llava-1.5-7b") == Shape(patches=576, vit_layers=23, llm_layers=32)
    assert shape_of("random:llava-1.5-13b") == Shape(patches=576, vit_layers=23, llm_layers=40)
    for name in ("llava-1.5-7b", "llava-1.5-13b"):
        assert config_of(name).to_dict() == config_of(f"random:{name}").to_dict()
    assert {config_of(name).vision_config.image_size for name in RANDOM if "llava" in name} == {336}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_random_model_is_the_same_every_time_and_leaves_the_generator_alone(attention):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (load("random:pocket", attention=attention).model for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not first.training
    for tower in (first.model.vision_tower, first.model.language_model):
        assert tower.config._attn_implementation == attention


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pockt", "did you mean pocket"),
        ("random:llava-1.5-70b", "did you mean random:llava-1.5-7b"),
        (
            "nothing",
            "allowed are pocket, random:pocket, random:llava-1.5-7b, random:llava-1.5-13b, llava-1.5-7b, "
            "llava-1.5-13b, a local folder",
        ),
        ("llava-1.5-7b", "has no weights and serves for costs that are counted; allowed are random:llava-1.5-7b, or"),
    ],
)
def test_a_model_that_is_not_there_is_refused(name, message):
    with pytest.raises(VtbenchError, match=message):
        load(name)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(VtbenchError, match=r"the folder has no config\.json"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("tower", "change", "message"),
    [
        (
            "text_config",
            {"hidden_size": "abc"},
            "config.json: text_config.hidden_size: 'abc' is not possible; allowed are 1 to 200,000",
        ),
        ("text_config", {"num_attention_heads": 5}, "config: ValueError: The hidden size .128. is not a multiple of"),
        ("text_config", {"num_hidden_layers": 0}, "text_config.num_hidden_layers: 0 is not possible; allowed are 1 to"),
        ("vision_config", {"patch_size": 0}, "vision_config.patch_size: 0 is not possible; allowed are 1 to 10,000"),
        (None, {"vision_feature_layer": 10}, "vision_feature_layer: 10 is not possible; allowed are 1 to 9 and -9 to"),
        (None, {"vision_feature_layer": -10}, "vision_feature_layer: -10 is not possible; allowed are 1 to 9 and -9"),
    ],
)
def test_a_config_that_cannot_be_is_refused(tmp_path, tower, change, message):
    config = json.loads((WEIGHTS / "config.json").read_text())
    (config[tower] if tower else config).update(change)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(VtbenchError, match=message) as caught:
        config_of(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_draws_depend_on_image_seed_and_place_alone():
    pixels = torch.randn(3, 3, 8, 8)
    digests = digest(pixels)
    numbers = uniform(digests, 0, "4", 40)
    assert torch.equal(numbers[1:2], uniform(digest(pixels[1:2]), 0, "4", 40))
    assert torch.equal(numbers[:, :9], uniform(digests, 0, "4", 9))  # padding does not change an image's numbers
    others = [uniform(digests, 1, "4", 40), uniform(digests, 0, "5", 40), uniform(digests, 0, "llm 4", 40)]
    assert not any(torch.equal(numbers, other) for other in others)
    assert len({tuple(row.tolist()) for row in numbers}) == 3
    assert numbers.min() >= 0 and numbers.max() < 1
