import pytest
import torch
from torch import nn

from harness.errors import VtbenchError
from harness.metrics.flops import count
from harness.model.attach import attach
from methods import method
from methods.interface import Shape
from methods.lvpruning import CrossAttention, DecisionModule
from methods.schedule import tokens_per_layer
from tests.metrics.shapes import LLAVA_7B, small

LLAVA = Shape(patches=576, vit_layers=23, llm_layers=32)


@pytest.mark.parametrize(("ratio", "kept"), [(0.6, (345, 230, 115)), (0.5, (288, 172, 57)), (0.45, (259, 144, 28))])
def test_tokens_are_the_papers(ratio, kept):
    first, second, third = kept
    expected = (576, *[first] * 7, *[second] * 8, *[third] * 16)
    assert tokens_per_layer(method("lvpruning", ratio=ratio).stages(LLAVA), LLAVA).llm == expected


def test_a_block_is_the_papers_equation():
    torch.manual_seed(0)
    block, visual, text = CrossAttention(16), torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    q, k, v = block.q(visual), block.k(text), block.v(text)
    heads = []
    for head in range(8):
        two = slice(2 * head, 2 * head + 2)
        heads.append((q[..., two] @ k[..., two].mT / 2**0.5).softmax(-1) @ v[..., two])
    assert torch.allclose(block(visual, text), block.ffn(block.o(torch.cat(heads, -1)) + q), atol=1e-6)


def test_a_module_scores_every_visual_token():
    module = DecisionModule(16)
    nn.init.zeros_(module.scores.weight)
    module.scores.bias.data = torch.tensor([3.0, 1.0])
    assert module(torch.randn(2, 5, 16), torch.randn(2, 3, 16)).tolist() == [[2.0] * 5] * 2


def test_the_modules_cost_is_the_closed_form():
    chosen = method("lvpruning", ratio=0.6)
    tokens = tokens_per_layer(chosen.stages(LLAVA), LLAVA)
    C, T = 4096, 30
    expected = 0
    for n in (576, 345, 230):
        block = 2 * n * C * C + 2 * T * C * C + 4 * n * C * C + 2 * n * T * C
        expected += 2 * block + 2 * n * C
    assert count(LLAVA_7B, tokens, T, method=chosen).extra == {"decision module": expected}


def test_what_is_not_trained_does_not_run():
    with pytest.raises(VtbenchError, match="lvpruning: needs trained modules"), attach(small(), method("lvpruning")):
        pass


@pytest.mark.parametrize("ratio", [0.4, 1.1])
def test_a_ratio_that_leaves_nothing_is_refused(ratio):
    with pytest.raises(ValueError, match=f"ratio: {ratio} is not possible; allowed are above 0.4 to 1"):
        method("lvpruning", ratio=ratio)


def test_a_shallow_model_is_refused():
    with pytest.raises(ValueError, match="prunes after 16 LLM layers; this model has 6"):
        method("lvpruning").stages(Shape(patches=576, vit_layers=8, llm_layers=6))
