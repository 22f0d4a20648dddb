import csv
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
)

from harness.metrics.conventions import CONVENTIONS
from harness.metrics.others import count_other, longest_text
from harness.model.shapes import OTHERS, qwen_vl

TEXT = 5


def small_blip(kind: type) -> Blip2Config | InstructBlipConfig:
    """A random ViT of 4 patches, a Q-Former of 3 layers with 6 queries, a LLaMA with grouped keys."""
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    qformer = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
    return kind(
        vision_config=tower | {"image_size": 28, "patch_size": 14},
        qformer_config=qformer | {"vocab_size": 20, "max_position_embeddings": 16, "encoder_hidden_size": 32},
        text_config=LlamaConfig(
            vocab_size=50,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        ),
        num_query_tokens=6,
        image_token_index=49,
    )


def small_idefics() -> IdeficsConfig:
    """A random ViT of 4 patches, 6 latents, which layers 1 and 3 of 4 look at."""
    return IdeficsConfig(
        vocab_size=50,
        additional_vocab_size=2,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        cross_layer_interval=2,
        qk_layer_norms=True,
        use_resampler=True,
        max_position_embeddings=64,
        vision_config={
            "embed_dim": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
        },
        perceiver_config={
            "use_resampler": True,
            "resampler_n_latents": 6,
            "resampler_depth": 2,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
        },
    )


PIXELS = torch.linspace(-1, 1, 3 * 28 * 28).reshape(1, 3, 28, 28)


@torch.no_grad()
@pytest.mark.parametrize(
    ("model", "config"),
    [
        (Blip2ForConditionalGeneration, small_blip(Blip2Config)),
        (InstructBlipForConditionalGeneration, small_blip(InstructBlipConfig)),
    ],
    ids=["blip2", "instructblip"],
)
def test_a_forward_pass_of_blip_runs_what_flops_says(model, config):
    ids = torch.tensor([[49] * 6 + list(range(1, TEXT + 1))])
    inputs = {"pixel_values": PIXELS, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model is InstructBlipForConditionalGeneration:
        inputs["qformer_input_ids"] = torch.arange(1, TEXT + 1)[None]
    runs = model._from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        runs(**inputs)
    other = count_other(config, TEXT)
    assert counter.get_total_flops() == other.flops.total("flops")
    assert (other.entering.vit, other.entering.llm) == ((4,) * 2, (6,) * 3)
    assert sum(other.flops.parts("flops").values()) == other.flops.total("flops")


@torch.no_grad()
def test_a_forward_pass_of_idefics_runs_what_flops_says():
    config = small_idefics()
    runs = IdeficsForVisionText2Text._from_config(config, attn_implementation="eager").eval()
    ids = torch.arange(1, TEXT + 1)[None]
    inputs = {"attention_mask": torch.ones_like(ids), "image_attention_mask": torch.ones(1, TEXT, 1, dtype=torch.long)}
    with FlopCounterMode(display=False) as counter:
        runs(input_ids=ids, pixel_values=PIXELS[None], **inputs)
    other = count_other(config, TEXT)
    assert counter.get_total_flops() == other.flops.total("flops")
    assert other.shape.patches == 6 and other.entering.llm == (0,) * 4
    assert other.flops.total("sparsevlm") == 0


def test_qwen_vl_is_its_closed_form():
    config, text = qwen_vl(), 30
    parts = count_other(config, text).flops.parts("flops")
    w, m, patches, d, mlp, queries = 1664, 8192, 1024, 4096, 11008, 256
    vit = patches * w * 3 * 14**2 + 48 * (patches * (4 * w * w + 2 * w * m) + 2 * patches**2 * w)
    resampler = patches * w * d + 2 * (patches + queries) * d * d + 2 * queries * patches * d + queries * d * d
    n = queries + text
    assert parts == {
        "vision": 2 * (vit + resampler),
        "projector": 0,
        "decoder_linear": 2 * 32 * n * (4 * d * d + 3 * d * mlp),
        "decoder_attention": 2 * 32 * 2 * n * n * d,
        "lm_head": 2 * n * d * 151936,
        "extra": 0,
    }


PUBLISHED = {
    "blip2": "BLIP2-14B",
    "instructblip-7b": "InstructBLIP-8B",
    "instructblip-13b": "InstructBLIP-14B",
    "idefics-9b": "IDEFICS-9B",
    "qwen-vl": "Qwen-VL",
}


@pytest.mark.parametrize(
    ("name", "lvpruning", "flops", "difference"),
    [
        ("blip2", 2.113, 2.130, -1.3),
        ("instructblip-7b", 1.343, 1.360, -1.2),
        ("instructblip-13b", 2.118, 2.136, -1.0),
        ("idefics-9b", 0.840, 0.852, -3.4),
        ("qwen-vl", 7.940, 8.322, 353.7),
    ],
)
def test_lvprunings_table_3(name, lvpruning, flops, difference):
    with (Path(__file__).parents[2] / "results/published/papers.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == PUBLISHED[name] and row["metric"] == "tflops"]
    (published,) = {float(row["value"]) for row in rows if (row["paper"], row["table"]) == ("lvpruning", "3")}
    counted = count_other(OTHERS[name](), 30).flops
    ours = counted.total("lvpruning") / 1e12
    assert (round(ours, 3), round(counted.total("flops") / 1e12, 3)) == (lvpruning, flops)
    assert round(100 * (ours / published - 1), 1) == difference


def test_a_count_has_every_part_of_a_record():
    record = count_other(small_blip(InstructBlipConfig), TEXT).flops.record()
    assert set(record["total"]) == set(CONVENTIONS) and record["extra"] == {}
    assert record["per_decoded_token"]["flops"] < record["total"]["flops"]


def test_how_long_a_text_may_be():
    longest = {name: longest_text(make()) for name, make in OTHERS.items()}
    assert longest == {
        "blip2": 2016,
        "instructblip-7b": 512,
        "instructblip-13b": 512,
        "idefics-9b": 2048,
        "qwen-vl": 1792,
    }
