"""FlashAttention's contract, kept by a stand-in on SDPA: a mask of padding or none, no position ids that jump."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.errors import VtbenchError
from harness.model import attention
from harness.model.attach import attach
from methods import method
from tests.model.tiny import CHOSEN, IMAGES, ROWS, TOKENIZER, batch, build, configured, run

PROPORTIONAL = {"tome", "tome+"}


def stand_in(module, query, key, value, attention_mask, *, scaling, position_ids=None, is_causal=None, **kwargs):
    if position_ids is not None and len(query) == 1:  # where they jump another sequence would begin
        assert torch.equal(position_ids.diff(), torch.ones_like(position_ids[:, 1:]))
    is_causal = module.is_causal if is_causal is None else is_causal
    Q, T = query.shape[2], key.shape[2]
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    seen = torch.ones(len(query), 1, Q, T, dtype=torch.bool)
    if is_causal:
        seen = seen.tril(T - Q)  # the last query is the last key's
    if attention_mask is not None:
        assert attention_mask.shape == (len(query), T) and attention_mask.dtype == torch.bool
        seen = seen & attention_mask[:, None, None]
    out = scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling).transpose(1, 2)
    if attention_mask is not None:
        out = out.where(attention_mask[:, -Q:, None, None], 0)  # padding has no query either
    return out, None


@pytest.fixture
def flash(monkeypatch):
    """A model whose towers run the stand-in."""
    return flashed(monkeypatch)


def flashed(monkeypatch, **settings):
    """Return a model whose towers run the stand-in."""
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, attention.FLASH, stand_in)
    model = build(**settings)
    for tower in (model.model.vision_tower, model.model.language_model):
        tower.config._attn_implementation = attention.FLASH
    return model


@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("name", [name for name in CHOSEN if name not in PROPORTIONAL])
def test_flash_keeps_the_same_tokens_and_says_the_same_as_sdpa(name, positions, flash, encoder):
    chosen = configured(name, 9, positions=positions)
    for inputs in (batch(), batch(ROWS[:1], IMAGES[:1])):
        logits, _, ledger = run(flash, inputs, chosen, encoder)
        expected, _, known = run(build(), inputs, chosen, encoder)
        assert [kept.tolist() for kept in ledger.kept] == [kept.tolist() for kept in known.kept]
        assert ledger.tokens == known.tokens
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_flash_keeping_all_is_the_unpatched_model(flash):
    assert torch.equal(run(flash, batch(), method("full"))[0], run(flash, batch())[0])


@pytest.mark.parametrize(
    "axes", [{"pseudo_cls": "as_token"}, {"aggregation": "mean"}, {"scope": "layer-wise"}], ids=str
)
def test_flash_with_ivtps_axes(axes, flash, encoder):
    chosen = configured("ivtp", 9, **axes)
    (logits, _, ledger), (expected, _, known) = (run(model, batch(), chosen, encoder) for model in (flash, build()))
    assert [kept.tolist() for kept in ledger.kept] == [kept.tolist() for kept in known.kept]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", sorted(PROPORTIONAL))
def test_what_flash_cannot_is_refused(name, flash):
    message = "attention: flash_attention_2 is not possible with .*adds log.size.*allowed are sdpa, eager"
    with pytest.raises(VtbenchError, match=message), attach(flash, configured(name, 16)):
        pass


def test_an_implementation_that_is_not_here_is_refused(monkeypatch):
    model = build()
    model.model.language_model.config._attn_implementation = attention.FLASH
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: False)
    with (
        pytest.raises(VtbenchError, match="flash_attention_2 is not installed here; allowed are sdpa, eager"),
        attach(model, method("full")),
    ):
        pass
    model.model.language_model.config._attn_implementation = "flex_attention"
    with (
        pytest.raises(VtbenchError, match="flex_attention is not possible under attach; allowed are sdpa, eager"),
        attach(model, method("full"), tokenizer=TOKENIZER),
    ):
        pass
