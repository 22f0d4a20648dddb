"""Inside `attach`, torch counts what `count` says: model and method, prefill and decoded token."""

from dataclasses import fields

import pytest
import torch
from shapes import LLAVA_7B, prompt, small, tokens
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, DynamicCache

from harness.metrics.counted import clip_text
from harness.metrics.flops import count, count_samples
from harness.metrics.latency import measure
from harness.model.attach import attach
from methods import TRAINING_FREE, method


class Encoder:
    """Stands for a CLIP whose joint space is 8 wide, without matrix products."""

    def encode(self, text):
        return torch.eye(len(text), 8), [(index, index + 1) for index in range(len(text))]

    def project_cls(self, cls):
        return cls[..., :8]

    def unproject(self, joint):
        return joint.repeat(4)


class Tokenizer:
    def decode(self, ids, skip_special_tokens):
        return "x" * len(ids)


def attached(model, method):
    return attach(model, method, text_encoder=Encoder(), tokenizer=Tokenizer())


def ivtp(**parameters):
    return method("ivtp", **{"tokens": 4, "group": 2, "threshold": -1.0} | parameters)


BUDGETS = {"full": {}, "pyramiddrop": {"tokens": 8}, "sparsevlm": {"tokens": 8}, "fastv": {"tokens": 8}}
VARIANTS = [
    *(method(name, **BUDGETS.get(name, {"tokens": 4})) for name in TRAINING_FREE),
    method("downsample", tokens=16),
    method("prumerge"),
    method("prumerge+"),
    method("visionzip", tokens=8, contextual=0),
    method("ivtp-v", tokens=4, aggregation="mean"),
    ivtp(),
    ivtp(group=1),
    ivtp(group="all"),
    ivtp(identity=True),
    ivtp(aggregation="mean"),
    ivtp(aggregation="multiply", group="all"),
    ivtp(scope="group-wise"),
    ivtp(scope="layer-wise"),
    ivtp(guidance="OTT"),
    ivtp(guidance="OTT+RT"),
    ivtp(guidance="none"),
    ivtp(pseudo_cls="clip"),
    ivtp(pseudo_cls="hybrid"),
    ivtp(pseudo_cls="as_token"),
    ivtp(pseudo_cls="as_token", scope="group-wise"),
    ivtp(pseudo_cls="as_token", guidance="none", group=1),
]


def title(method):
    """The method and its parameters that are not defaults."""
    values = [str(getattr(method, f.name)) for f in fields(method) if getattr(method, f.name) != f.default]
    return " ".join([method.name, *values])


def raters_not_chosen(at_work, text, before_image):
    """MACs of the rows that the bound has and the engine has not."""
    chosen = at_work.language.raters.number.shape[1]
    rows = sum(at_work.ledger.lengths[0, above].item() for above in {layer - 1 for layer in at_work.llm.before})
    return (text - before_image - chosen) * rows * 64


@pytest.mark.parametrize("before_image", [0, 2])
@pytest.mark.parametrize("method", VARIANTS, ids=title)
@torch.no_grad()
def test_count_is_what_runs(method, before_image):
    model, inputs = small(vit_layers=8, llm_layers=6), prompt()
    inputs["input_ids"] = inputs["input_ids"].roll(before_image, dims=1)
    cache = DynamicCache(config=model.config.text_config)
    model.set_attn_implementation("eager")  # FlopCounterMode counts the CPU's fused attention as 0
    with attached(model, method) as at_work:
        with FlopCounterMode(display=False) as counter:
            model(**inputs, past_key_values=cache)
        ledger = at_work.ledger
        assert int(ledger.text) == 5 + method.inserts_pseudo_cls
        counted = count(model, ledger.tokens.image(0), int(ledger.text), method=method, before_image=before_image)
        unchosen = 2 * raters_not_chosen(at_work, 5, before_image) if at_work.rated else 0
        assert counter.get_total_flops() == counted.total("flops") - unchosen
        with FlopCounterMode(display=False) as counter:
            model(input_ids=torch.tensor([[1]]), past_key_values=cache)
        assert counter.get_total_flops() == counted.per_decoded_token("flops")


@pytest.mark.parametrize(("name", "left"), [("prumerge", [4, 3, 4, 5, 3, 2]), ("prumerge+", [16, 9, 16, 16, 11, 5])])
@torch.no_grad()
def test_count_is_what_runs_however_many_tokens_an_image_keeps(name, left):
    model, inputs = small(vit_layers=8, llm_layers=6), prompt()
    model.set_attn_implementation("eager")
    for weight in model.model.vision_tower.parameters():
        weight.mul_(2.5)  # so that attention has outliers
    found = []
    for seed in range(6):
        inputs["pixel_values"] = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        with attached(model, method(name)) as at_work, FlopCounterMode(display=False) as counter:
            model(**inputs)
        kept = at_work.ledger.tokens.image(0)
        assert counter.get_total_flops() == count(model, kept, 5, method=method(name)).total("flops")
        found.append(kept.llm[0])
    assert found == left


@pytest.mark.parametrize("name", ["downsample", "evit", "prumerge+", "divprune", "fastv", "pyramiddrop"])
@torch.no_grad()
def test_count_is_what_runs_with_two_images(name):
    model, one, chosen = small(vit_layers=8, llm_layers=6), prompt(), method(name, **BUDGETS.get(name, {"tokens": 4}))
    model.set_attn_implementation("eager")
    ids = torch.cat([torch.full((1, 16), 49), one["input_ids"]], dim=1)
    pixels = torch.cat([one["pixel_values"], -one["pixel_values"]])
    with attached(model, chosen) as at_work, FlopCounterMode(display=False) as counter:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
    tokens = at_work.ledger.tokens
    sample = {"vit": tokens.vit, "llm": [sum(images) for images in zip(*tokens.llm, strict=True)], "text_tokens": 5}
    assert counter.get_total_flops() == count_samples(model, [sample], method=chosen).total("flops")


@pytest.mark.parametrize("method", VARIANTS, ids=title)
def test_latency_steps_are_those_of_generate_under_attach(method):
    model, inputs, logits = small(vit_layers=8, llm_layers=6), prompt(), []
    with attached(model, method):
        hook = model.register_forward_hook(lambda _, args, output: logits.append(output.logits[:, -1]))
        measure(model, inputs, warmup=0, repeats=1, decoded=3)
        timed, logits[:] = logits[1:], []  # the first pass notes what a method keeps
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        hook.remove()
    assert len(timed) == len(logits) == 4
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(timed, logits, strict=True))


def test_a_method_without_own_products_has_no_extra():
    assert count(small(), tokens([16] * 3, [16] * 3), 5, method=method("full")).extra == {}


def test_clip_text_encoder_of_llava():
    encoder = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12, projection_dim=768
    )
    per_layer = 77 * (4 * 768 * 768 + 2 * 768 * 3072) + 2 * 77 * 77 * 768
    macs = clip_text(768, 3072, 12, 12, 768, 77)
    assert macs == 12 * per_layer + 77 * 768 * 768
    lengths = tokens([576] * 23, [128] * 32)
    assert (
        count(LLAVA_7B, lengths, 512, method=method("ivtp", tokens=64), text_encoder=encoder).extra["text encoder"]
        == macs
    )
