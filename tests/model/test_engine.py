"""The engine's invariants, for every method in the table: a new method is tested by being listed."""

import pytest
import torch
from transformers import StaticCache

from harness.errors import VtbenchError
from harness.model.anatomy import anatomy
from harness.model.attach import attach
from methods import TRAINING_FREE, method
from methods.schedule import tokens_per_layer
from tests.model.tiny import (
    ADAPTIVE,
    CHOSEN,
    IMAGES,
    PATCHES,
    PER_ROW,
    ROWS,
    TOKENIZER,
    assert_equals_masking,
    batch,
    build,
    configured,
    images_of,
    run,
)


@pytest.mark.parametrize("name", TRAINING_FREE)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_keeping_all_is_the_unpatched_model_bit_for_bit(name, attention, encoder):
    model = build(attention=attention)
    plain, _, _ = run(model, batch())
    kept, _, ledger = run(model, batch(), configured(name, PATCHES), encoder)
    assert ledger.tokens.llm == [[PATCHES] * 6] * 4
    assert torch.equal(kept, plain)


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize(("attention", "tokens"), [("sdpa", 9), ("eager", 16)])
def test_removal_equals_masking_and_cached_decoding_equals_teacher_forcing(name, positions, attention, tokens, encoder):
    model = build(seed=tokens, attention=attention)
    chosen = configured(name, tokens, positions=positions)
    assert_equals_masking(model, chosen, encoder)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_batch_equals_one_by_one_with_padding_on_either_side(name, encoder):
    model = build(seed=3)
    chosen = configured(name, 9)
    left, _, both = run(model, batch(), chosen, encoder)
    right, _, _ = run(model, batch(side="right"), chosen, encoder)
    torch.testing.assert_close(left, right, atol=1e-4, rtol=0)
    image = 0
    for row, ids in enumerate(ROWS):
        alone, _, ledger = run(model, batch([ids], images_of(row)), chosen, encoder)
        torch.testing.assert_close(alone[:, 0], left[:, row], atol=1e-4, rtol=0)
        for mine, kept in enumerate(ledger.kept, start=image):
            assert both.kept[mine].tolist() == kept.tolist()
        image += PER_ROW[row]


@pytest.mark.parametrize("name", TRAINING_FREE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_realised_tokens_are_the_schedule(name, dtype, encoder):
    model = build().to(dtype)
    chosen = configured(name, 9)
    inputs = batch()
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    _, _, ledger = run(model, inputs, chosen, encoder)
    shape = anatomy(model).shape
    scheduled = tokens_per_layer(chosen.stages(shape), shape)
    assert [ledger.tokens.image(index) for index in range(4)] == [scheduled] * 4
    text = [len(row) - PATCHES * count for row, count in zip(ROWS, PER_ROW, strict=True)]
    expected = [[t + count * n for n in scheduled.llm] for t, count in zip(text, PER_ROW, strict=True)]
    assert ledger.lengths.tolist() == expected
    assert ledger.text.tolist() == text


@pytest.mark.parametrize("name", CHOSEN)
def test_sdpa_and_eager_keep_the_same_tokens(name, encoder):
    chosen = configured(name, 9)
    ledgers = [run(build(attention=attention), batch(), chosen, encoder)[2] for attention in ("sdpa", "eager")]
    assert [kept.tolist() for kept in ledgers[0].kept] == [kept.tolist() for kept in ledgers[1].kept]


def state(model) -> dict[str, object]:
    hooks = {name: (len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in model.named_modules()}
    own = {name: sorted(vars(module)) for name, module in model.named_modules()}
    implementations = [
        tower.config._attn_implementation for tower in (model.model.vision_tower, model.model.language_model)
    ]
    return {"hooks": hooks, "attributes": own, "attention": implementations}


@pytest.mark.parametrize("name", CHOSEN)
def test_the_model_is_bit_identical_after_the_context_also_when_generate_raised(name, encoder):
    model = build()
    model.model.language_model.set_attn_implementation("eager")
    plain, _, _ = run(model, batch())
    before = state(model)
    run(model, batch(), configured(name, 9), encoder)
    assert state(model) == before
    with pytest.raises(VtbenchError), attach(model, configured(name, 9), text_encoder=encoder, tokenizer=TOKENIZER):
        model.generate(**batch(), max_new_tokens=2, num_beams=2, do_sample=False)
    assert state(model) == before
    assert torch.equal(run(model, batch())[0], plain)


def test_methods_attached_one_after_another_do_not_leak(encoder):
    model = build()
    alone = {name: run(build(), batch(), configured(name, 9), encoder)[0] for name in CHOSEN}
    for name in [*CHOSEN, *reversed(CHOSEN)]:
        assert torch.equal(run(model, batch(), configured(name, 9), encoder)[0], alone[name])


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_adaptive_schedule_is_an_upper_bound(name, encoder):
    model = build()
    chosen, shape = configured(name, 9), anatomy(model).shape
    _, _, ledger = run(model, batch(), chosen, encoder)
    highest = tokens_per_layer(chosen.stages(shape), shape)
    for index in range(4):
        realised = ledger.tokens.image(index)
        assert realised.vit == highest.vit
        assert 1 < realised.llm[0] <= highest.llm[0] and len({*realised.llm}) == 1


AXES = [
    *({"group": group, "start": start} for group in (1, 2, 3) for start in (0, 1)),
    {"group": "all"},
    {"identity": True},
    {"aggregation": "mean"},
    {"aggregation": "max", "group": 2},
    {"aggregation": "multiply"},
    {"scope": "group-wise"},
    {"scope": "layer-wise"},
    {"guidance": "none"},
    {"guidance": "OTT"},
    {"pseudo_cls": "clip"},
    {"pseudo_cls": "hybrid"},
    {"pseudo_cls": "as_token"},
    {"pseudo_cls": "as_token", "positions": "contiguous", "aggregation": "mean"},
    {"pseudo_cls": "as_token", "guidance": "none", "identity": True},
    {"llm_layers": 3, "tokens_into_llm": 30},
]


@pytest.mark.parametrize("axes", AXES, ids=str)
def test_ivtp_equals_a_true_insertion_on_every_axis(axes, encoder):
    model = build(seed=5)
    chosen = configured("ivtp", 9, **axes)
    assert_equals_masking(model, chosen, encoder, clip=encoder if chosen.pseudo_cls == "clip" else None)


def test_a_pseudo_cls_that_is_a_token_counts_as_text_one_an_image(encoder):
    model = build()
    beside, inside = (
        run(model, batch(), configured("ivtp", 9, pseudo_cls=kind), encoder)[2] for kind in ("llm", "as_token")
    )
    assert (inside.text - beside.text).tolist() == PER_ROW
    assert inside.tokens == beside.tokens


def test_the_seed_changes_what_random_keeps_and_the_batch_does_not():
    model = build()
    kept = []
    for seed in (0, 0, 1):
        with attach(model, method("random", tokens=9), seed=seed) as attached, torch.inference_mode():
            model(**batch())
            kept.append([tokens.tolist() for tokens in attached.ledger.kept])
    assert kept[0] == kept[1] != kept[2]


def test_a_whole_forward_gives_the_logits_of_what_is_left():
    model = build()
    with attach(model, method("topk", tokens=9)) as attached, torch.inference_mode():
        whole = model(**batch())
        last = model(**batch(), logits_to_keep=1)
    assert whole.logits.shape[1] == int(attached.ledger.lengths[:, -1].max())
    assert torch.equal(whole.logits[:, -1:], last.logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inputs, model: inputs | {"labels": inputs["input_ids"]}, "labels: training is not possible"),
        (
            lambda inputs, model: (
                inputs | {"past_key_values": StaticCache(config=model.config.text_config, max_cache_len=64)}
            ),
            "a static cache is not possible",
        ),
        (lambda inputs, model: inputs | {"pixel_values": IMAGES[:3]}, "3 images for 4 places"),
        (
            lambda inputs, model: {"inputs_embeds": torch.zeros(1, 4, 48)},
            "input_ids are needed under attach",
        ),
        (
            lambda inputs, model: batch([ROWS[0][:-20][:30]], IMAGES[:1]),
            "allowed is 36 side by side for every image",
        ),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    model = build()
    with attach(model, method("topk", tokens=9)), torch.inference_mode(), pytest.raises(VtbenchError, match=message):
        model(**change(batch(), model))


def test_a_cache_that_another_prefill_filled_is_refused():
    model = build()
    with torch.inference_mode():
        cache = model(**batch(ROWS[:1], IMAGES[:1]), use_cache=True).past_key_values
        with attach(model, method("topk", tokens=9)), pytest.raises(VtbenchError, match="filled by another prefill"):
            model(input_ids=torch.tensor([[7]]), past_key_values=cache)


def test_decoding_goes_on_from_a_prefill_that_made_its_own_cache():
    model = build()
    inputs = batch(ROWS[:1], IMAGES[:1])
    generated, answers, _ = run(model, inputs, method("fastv", tokens=9, budget="kept"), new=2)
    with attach(model, method("fastv", tokens=9, budget="kept")), torch.inference_mode():
        first = model(**inputs, use_cache=True)
        second = model(input_ids=answers[:, :1], past_key_values=first.past_key_values)
    torch.testing.assert_close(second.logits[:, -1], generated[1], atol=1e-5, rtol=0)


def test_two_methods_at_once_are_refused():
    model = build()
    with (
        attach(model, method("full")),
        pytest.raises(VtbenchError, match="attached to this model already"),
        attach(model, method("topk", tokens=9)),
    ):
        pass


def test_an_unreachable_budget_and_an_unknown_architecture_are_refused():
    with (
        pytest.raises(VtbenchError, match="pooling: tokens: 10 is not possible"),
        attach(build(), method("pooling", tokens=10)),
    ):
        pass
    with (
        pytest.raises(VtbenchError, match="LlamaModel is not a known architecture"),
        attach(build().model.language_model, method("full")),
    ):
        pass
