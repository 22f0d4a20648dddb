"""Configs of models whose shape is published, without weights: what costs depend on."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import (
    Blip2Config,
    CLIPConfig,
    CLIPVisionConfig,
    IdeficsConfig,
    InstructBlipConfig,
    LlamaConfig,
    LlavaConfig,
    Qwen2Config,
)

CLIP_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
CLIP_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
}


def clip_large(vision_layers: int = 24) -> CLIPConfig:
    """Return CLIP-L/14 at 336 pixels, whose ViT is LLaVA-1.5's and whose text side IVTP reads."""
    vision = CLIP_VISION | {"num_hidden_layers": vision_layers}
    return CLIPConfig(text_config=CLIP_TEXT, vision_config=vision, projection_dim=768)


def llava_1_5(width: int, mlp: int, layers: int, heads: int) -> LlavaConfig:
    """Return LLaVA-1.5 with a LLaMA of this shape."""
    return LlavaConfig(  # type: ignore[call-arg]  # mypy misses the attribute map
        vision_config=CLIPVisionConfig(**CLIP_VISION),  # type: ignore[arg-type]
        text_config=LlamaConfig(
            vocab_size=32064,
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            pad_token_id=32001,
        ),
        image_token_id=32000,
        image_seq_length=576,
        vision_feature_layer=-2,
    )


LLAVA: dict[str, Callable[[], LlavaConfig]] = {
    "llava-1.5-7b": lambda: llava_1_5(4096, 11008, 32, 32),
    "llava-1.5-13b": lambda: llava_1_5(5120, 13824, 40, 40),
}


@dataclass(frozen=True, kw_only=True)
class QwenVLConfig:
    """Qwen-VL, which transformers has not: a ViT without CLS, a resampler of so many queries, Qwen."""

    vision_config: CLIPVisionConfig
    text_config: Qwen2Config  # Qwen's layers cost what Qwen2's do
    queries: int


def vicuna(width: int, mlp: int, layers: int, heads: int) -> LlamaConfig:
    """Return the LLM of BLIP-2 and InstructBLIP: LLaMA and a padding token."""
    return LlamaConfig(
        vocab_size=32001,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
    )


def blip_2(text: LlamaConfig) -> Blip2Config:
    """Return BLIP-2 with an LLM: ViT-g/14 without its last layer at 224 pixels, and 32 queries, as by default."""
    return Blip2Config(text_config=text, num_query_tokens=32)


def instructblip(text: LlamaConfig) -> InstructBlipConfig:
    """Return InstructBLIP: BLIP-2 whose Q-Former reads the text too."""
    return InstructBlipConfig(text_config=text, num_query_tokens=32)


def idefics() -> IdeficsConfig:
    """Return IDEFICS-9B: ViT-H/14 at 224 pixels, 64 latents, which every 4th LLaMA layer looks at."""
    return IdeficsConfig(
        vision_config={"embed_dim": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "image_size": 224},
        perceiver_config={"use_resampler": True, "qk_layer_norms_perceiver": True},
        use_resampler=True,
        cross_layer_interval=4,
        qk_layer_norms=True,
        additional_vocab_size=2,
    )


def qwen_vl() -> QwenVLConfig:
    """Return Qwen-VL: ViT-bigG/14 at 448 pixels, 256 queries, Qwen-7B."""
    return QwenVLConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1664,
            intermediate_size=8192,
            num_hidden_layers=48,
            num_attention_heads=16,
            image_size=448,
            patch_size=14,
        ),
        text_config=Qwen2Config(
            vocab_size=151936,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            max_position_embeddings=2048,
        ),
        queries=256,
    )


OtherConfig = Blip2Config | InstructBlipConfig | IdeficsConfig | QwenVLConfig

# The models of LVPruning's Table 3, beside LLaVA: counted, never run. Its 14B are Vicuna-13B with ViT and Q-Former.
OTHERS: dict[str, Callable[[], OtherConfig]] = {
    "blip2": lambda: blip_2(vicuna(5120, 13824, 40, 40)),
    "instructblip-7b": lambda: instructblip(vicuna(4096, 11008, 32, 32)),
    "instructblip-13b": lambda: instructblip(vicuna(5120, 13824, 40, 40)),
    "idefics-9b": idefics,
    "qwen-vl": qwen_vl,
}
