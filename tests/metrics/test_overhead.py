"""Inside `attach`, torch counts what `count` says: model and method, prefill and decoded token."""

import pytest
import torch
from shapes import LLAVA_7B, prompt, small, tokens
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, DynamicCache

from harness.metrics.counted import clip_text
from harness.metrics.flops import count
from harness.metrics.latency import measure
from harness.model.anatomy import shape_of_config
from harness.model.attach import attach
from methods import method


class Encoder:
    """Stands for a CLIP whose joint space is 8 wide, without matrix products."""

    def encode(self, text):
        return torch.eye(len(text), 8), [(index, index + 1) for index in range(len(text))]

    def project_cls(self, cls):
        return cls[..., :8]


class Tokenizer:
    def decode(self, ids, skip_special_tokens):
        return "x" * len(ids)


def attached(model, method):
    return attach(model, method, text_encoder=Encoder(), tokenizer=Tokenizer())


METHODS = [
    method("full"),
    method("random", tokens=4),
    method("pooling", tokens=4),
    method("topk", tokens=4),
    method("tome", tokens=4),
    method("fastv", tokens=8),
    method("ivtp", tokens=4, group=2),
    method("ivtp", tokens=4, group=1),
]


@pytest.mark.parametrize("before_image", [0, 2])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@torch.no_grad()
def test_count_is_what_runs(method, before_image):
    model, inputs = small(vit_layers=8, llm_layers=6), prompt()
    inputs["input_ids"] = inputs["input_ids"].roll(before_image, dims=1)
    cache = DynamicCache(config=model.config.text_config)
    model.set_attn_implementation("eager")  # FlopCounterMode counts the CPU's fused attention as 0
    with attached(model, method) as at_work:
        stages = method.stages(at_work.parts.shape)
        with FlopCounterMode(display=False) as counter:
            model(**inputs, past_key_values=cache)
        counted = count(model, at_work.ledger.tokens.image(0), 5, stages=stages, before_image=before_image)
        assert counter.get_total_flops() == counted.total("flops")
        with FlopCounterMode(display=False) as counter:
            model(input_ids=torch.tensor([[1]]), past_key_values=cache)
        assert counter.get_total_flops() == counted.per_decoded_token("flops")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_latency_steps_are_those_of_generate_under_attach(method):
    model, inputs, logits = small(vit_layers=8, llm_layers=6), prompt(), []
    with attached(model, method):
        hook = model.register_forward_hook(lambda _, args, output: logits.append(output.logits[:, -1]))
        measure(model, inputs, warmup=0, repeats=1, decoded=3)
        timed, logits[:] = logits[:], []
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        hook.remove()
    assert len(timed) == len(logits) == 4
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(timed, logits, strict=True))


def test_a_method_without_own_products_has_no_extra():
    assert count(small(), tokens([16] * 3, [16] * 3), 5, stages=()).extra == {}


def test_clip_text_encoder_of_llava():
    encoder = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12, projection_dim=768
    )
    per_layer = 77 * (4 * 768 * 768 + 2 * 768 * 3072) + 2 * 77 * 77 * 768
    macs = clip_text(768, 3072, 12, 12, 768, 77)
    assert macs == 12 * per_layer + 77 * 768 * 768
    ivtp = method("ivtp", tokens=64)
    lengths = tokens([576] * 23, [128] * 32)
    stages = ivtp.stages(shape_of_config(LLAVA_7B))
    assert count(LLAVA_7B, lengths, 512, stages=stages, text_encoder=encoder).extra["text encoder"] == macs
