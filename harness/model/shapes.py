"""Configs of models whose shape is published, without weights: what costs depend on."""

from collections.abc import Callable

from transformers import CLIPConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig

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
