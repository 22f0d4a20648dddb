import pytest

from harness.costs import costs, summed, text_side
from harness.errors import VtbenchError
from harness.metrics.conventions import CONVENTIONS
from harness.metrics.flops import count
from harness.metrics.others import count_other
from harness.model.load import config_of
from harness.model.shapes import OTHERS, clip_large
from harness.model.text import default_text_encoder, load_text_encoder
from harness.pocket import WEIGHTS
from methods import METHODS, method
from methods.interface import Shape
from methods.schedule import tokens_per_layer
from tests.metrics.shapes import FULL_7B, FULL_13B

LLAVA_7B = Shape(patches=576, vit_layers=23, llm_layers=32)
BUDGET = {"full": None, "pooling": 64, "downsample": 64, "pyramiddrop": 192, "lvpruning": None}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_counted_at_its_schedule(name):
    tokens = BUDGET.get(name, 128)
    found = costs("llava-1.5-7b", method=name, tokens=tokens, text_tokens=40)
    assert not found.adaptive and found.tokens == {"full": 576, "lvpruning": 576}.get(name, tokens)
    expected = tokens_per_layer(found.method.stages(LLAVA_7B), LLAVA_7B)
    assert found.entering == expected and found.shape == LLAVA_7B
    parts = found.flops.parts("flops")
    bare = count(config_of("llava-1.5-7b"), expected, 40, method=found.method, text_encoder=clip_large().text_config)
    before = {part: bare.parts("flops")[part] for part in parts if part != "extra"}
    assert {part: parts[part] for part in before} == before
    assert sum(found.extra.values()) == parts["extra"]


@pytest.mark.parametrize(("model", "full"), [("llava-1.5-7b", FULL_7B), ("llava-1.5-13b", FULL_13B)])
def test_the_full_model_is_the_reference(model, full):
    found = costs(model, text_tokens=512)
    expected = count(config_of(model), full, 512)
    assert found.flops.parts("flops") == found.full.parts("flops") == expected.parts("flops")
    assert found.record()["tflops"]["total"] == expected.total("flops") / 1e12


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_sums_are_of_their_parts(convention):
    found = costs("pocket", method="ivtp", tokens=36, convention=convention)
    parts = summed(found.flops, convention)
    assert parts["llm"] == parts["decoder_linear"] + parts["decoder_attention"] + parts["lm_head"]
    assert parts["total"] == parts["vision"] + parts["projector"] + parts["llm"] + parts["extra"]
    assert parts["extra"] == sum(found.extra.values())
    names = [name for name, _, _ in found.rows()]
    assert names[:7] == [*list(parts)[:7]] and names[-1] == "total"
    assert names[7:-1] == [f"extra: {name}" for name in found.extra]


def test_a_token_for_the_pseudo_cls_is_in_the_sequence():
    rider, token = (
        costs("llava-1.5-7b", method="ivtp", tokens=64, text_tokens=40, given=[f"pseudo_cls={kind}"])
        for kind in ("llm", "as_token")
    )
    assert (rider.flops.text_tokens, token.flops.text_tokens) == (40, 41)
    assert rider.text_tokens == token.text_tokens == 40


def test_an_adaptive_method_is_an_upper_bound():
    found = costs("llava-1.5-7b", method="prumerge")
    assert found.adaptive and found.tokens is None and set(found.entering.llm) == {145}


def test_the_text_side_is_the_encoder_that_ivtp_reads():
    def read(model: str) -> dict[str, object]:
        config = load_text_encoder(default_text_encoder(model)).model.config.text_config
        return config.to_dict() | {"dtype": None}

    for model in ("pocket", str(WEIGHTS), "random:llava-1.5-7b"):
        assert text_side(model).to_dict() | {"dtype": None} == read(model)
    for model in ("llava-1.5-7b", "llava-1.5-13b"):
        assert text_side(model).to_dict() == text_side("random:llava-1.5-7b").to_dict()
    clip = text_side("llava-1.5-7b")
    assert (clip.hidden_size, clip.num_hidden_layers, clip.num_attention_heads) == (768, 12, 12)
    assert (clip.intermediate_size, clip.max_position_embeddings, clip.projection_dim) == (3072, 77, 768)


def test_a_clip_that_cannot_be_read_is_one_line(tmp_path):
    config_of("pocket").save_pretrained(tmp_path)
    (tmp_path / "clip").mkdir()
    with pytest.raises(VtbenchError, match="clip: has no config that can be read: "):
        costs(str(tmp_path), method="ivtp", tokens=64)
    config_of("pocket").text_config.save_pretrained(tmp_path / "clip")
    with pytest.raises(VtbenchError, match="clip: is a llama; allowed is clip"):
        costs(str(tmp_path), method="ivtp", tokens=64)


@pytest.mark.parametrize("model", OTHERS)
def test_models_beside_llava_are_counted_unpruned(model):
    found = costs(model, text_tokens=30, convention="lvpruning")
    other = count_other(OTHERS[model](), 30)
    assert found.record()["tflops"]["total"] == other.flops.total("lvpruning") / 1e12
    assert found.flops is found.full and found.method == method("full")
    assert found.record()["visual_tokens"] == {"vision": list(other.entering.vit), "llm": list(other.entering.llm)}
