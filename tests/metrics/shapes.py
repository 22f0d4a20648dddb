"""Configs of LLaVA-1.5's shape and of a small LLaVA, without weights."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from harness.model.load import RANDOM
from methods.schedule import TokensPerLayer

LLAVA_7B = RANDOM["random:llava-1.5-7b"]()
LLAVA_13B = RANDOM["random:llava-1.5-13b"]()


def tokens(vit: list[int], llm: list[int]) -> TokensPerLayer:
    return TokensPerLayer(vit=tuple(vit), llm=tuple(llm))


FULL_7B = tokens([576] * 23, [576] * 32)
FULL_13B = tokens([576] * 23, [576] * 40)


def small(key_value_heads: int = 2, vit_layers: int = 4, llm_layers: int = 3) -> LlavaForConditionalGeneration:
    """A random LLaVA: 16 patches, a ViT whose last layer is not read, an LLM with grouped keys."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=vit_layers,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
        ),
        text_config=LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=llm_layers,
            num_attention_heads=4,
            num_key_value_heads=key_value_heads,
            vocab_size=50,
            max_position_embeddings=128,
        ),
        image_token_index=49,
        image_seq_length=16,
        vision_feature_layer=-2,
    )
    return LlavaForConditionalGeneration(config).eval()


def prompt(text: int = 5) -> dict[str, torch.Tensor]:
    """A batch-1 prompt of 16 image placeholders and some text for `small`."""
    ids = torch.cat([torch.full((1, 16), 49), torch.arange(1, text + 1)[None]], dim=1)
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
