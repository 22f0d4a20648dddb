"""The shapes of pocket LLaVA and its CLIP, as Hugging Face configs."""

from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig

from harness.pocket.scenes import PATCH, SIZE

WIDTH = 64
HEADS = 4


def vision_config() -> CLIPVisionConfig:
    """Return the ViT: 9 layers, of which LLaVA reads the 8th."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=9,
        num_attention_heads=HEADS,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )


def clip_config(vocabulary: int, start: int, end: int) -> CLIPConfig:
    """Return CLIP with that ViT and a text tower of 3 layers; start and end are the text's special tokens."""
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        projection_dim=WIDTH,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision_config().to_dict(), projection_dim=WIDTH)


def llava_config(vocabulary: int, image: int, start: int, end: int, pad: int) -> LlavaConfig:
    """Return LLaVA with that ViT and a Llama of 6 layers, width 128; the ids are those of its special tokens."""
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=6,
        num_attention_heads=HEADS,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=pad,
        tie_word_embeddings=False,
    )
    return LlavaConfig(  # type: ignore[call-arg]  # mypy misses the attribute map
        vision_config=vision_config(),
        text_config=text,
        image_token_id=image,
        image_seq_length=(SIZE // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
