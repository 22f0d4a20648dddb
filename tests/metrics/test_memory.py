import ctypes
from contextlib import suppress

import pytest
import torch
from shapes import LLAVA_7B, prompt, small

from harness.metrics.memory import kv_bytes, memory, peak
from harness.model.attach import attach
from methods import method


@pytest.mark.parametrize("key_value_heads", [2, 4])
@torch.no_grad()
def test_kv_bytes_are_those_of_the_cache(key_value_heads):
    model = small(key_value_heads).to(torch.bfloat16)
    inputs = prompt(text=5)
    cache = model(**inputs | {"pixel_values": inputs["pixel_values"].bfloat16()}, use_cache=True).past_key_values
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert kv_bytes([21, 21, 21], model.config) == held
    assert kv_bytes([21, 21, 21], model.config.text_config, torch.float32) == 2 * held


def nbytes(*tensors):
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("chosen", [method("topk+", tokens=4), method("pyramiddrop", tokens=4, budget="kept")])
@torch.no_grad()
def test_kv_bytes_of_a_pruned_run_are_those_of_its_cache_layer_by_layer(chosen):
    model = small(llm_layers=4).to(torch.bfloat16)
    inputs = prompt(text=7)
    with attach(model, chosen) as attached:
        pixels = inputs["pixel_values"].bfloat16()
        cache = model(**inputs | {"pixel_values": pixels}, use_cache=True).past_key_values
    ledger = attached.ledger
    (visual,) = ledger.tokens.llm
    assert len({*visual}) > 2
    found = memory(visual, 7, model.config)
    assert found.kv_bytes == nbytes(*(part for layer in cache.layers for part in (layer.keys, layer.values)))
    frames = zip(ledger.frames, cache.layers, strict=True)
    slots = [(layer, frame.slots()[0]) for frame, layer in frames]
    assert found.kv_visual_bytes == nbytes(
        *(part[:, :, at] for layer, at in slots for part in (layer.keys, layer.values))
    )


def test_kv_bytes_of_7b():
    # 2 tensors × 4096 wide × 2 bytes × 32 layers = 512 KiB a token
    assert kv_bytes([576] * 32, LLAVA_7B) == 576 * 512 * 1024


def test_mean_lengths_give_the_mean_bytes():
    config = small().config
    one, other = [16, 8, 8], [16, 5, 4]
    mean = [(a + b) / 2 for a, b in zip(one, other, strict=True)]
    assert 2 * kv_bytes(mean, config) == kv_bytes(one, config) + kv_bytes(other, config)


def test_record():
    config = small().config
    per_token = 2 * 2 * 16 * 2
    assert memory([16, 8, 4], 5, config).record() == {
        "kv_visual_bytes": 28 * per_token,
        "kv_bytes": (28 + 15) * per_token,
        "peak_bytes": None,
        "peak_kind": None,
        "reserved_bytes": None,
    }


def test_another_number_of_layers_is_an_error():
    with pytest.raises(ValueError, match="2 layers given; the LLM has 3"):
        kv_bytes([16, 16], small().config)


def test_peak_sees_memory_that_was_freed_again():
    size = 64 * 2**20
    with suppress(OSError, AttributeError):  # what earlier tests freed, and glibc keeps, would serve
        ctypes.CDLL(None).malloc_trim(0)
    with peak(torch.device("cpu")) as idle:
        pass
    with peak(torch.device("cpu")) as busy:
        torch.ones(size, dtype=torch.uint8)
    assert busy.kind == "process RSS" and busy.reserved_bytes is None
    assert busy.bytes - idle.bytes > 0.9 * size


@pytest.mark.gpu
def test_peak_on_a_gpu():
    device = torch.device("cuda")
    before = torch.cuda.memory_allocated(device)
    with peak(device) as found:
        torch.empty(2**20, dtype=torch.uint8, device=device)
    assert (found.bytes - before, found.kind) == (2**20, "CUDA allocated")
    assert found.reserved_bytes is not None and found.reserved_bytes >= found.bytes
