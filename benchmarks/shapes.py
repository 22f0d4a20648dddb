"""Random LLaVAs of the shapes that are timed, a prompt for them, and the CLIP text encoder that IVTP reads with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import typer
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, LlavaConfig, LlavaForConditionalGeneration

from harness.model.shapes import CLIP_TEXT, LLAVA, llava_1_5
from harness.model.text import TextEncoder, default_tokenizer
from harness.pocket import WEIGHTS

BEFORE_IMAGE = 1  # text tokens in front of the image: LLaVA-1.5's begin-of-sequence


def _llama_1b() -> LlavaConfig:
    config = llava_1_5(2048, 5632, 22, 32)
    config.text_config.num_key_value_heads = 4  # TinyLlama's
    return config


def _tiny() -> LlavaConfig:
    config = llava_1_5(64, 96, 6, 4)
    vision = config.vision_config
    vision.hidden_size, vision.intermediate_size, vision.num_attention_heads = 32, 48, 2
    vision.num_hidden_layers = 8
    return config


SHAPES: dict[str, Callable[[], LlavaConfig]] = {**LLAVA, "clip-l+llama-1.1b": _llama_1b, "tiny": _tiny}


def device_of(name: str) -> torch.device:
    """Return a device that is timed here. Errors: typer.BadParameter."""
    allowed = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if name not in allowed:
        raise typer.BadParameter(f"device: {name!r} is not possible; allowed here: {', '.join(allowed)}")
    return torch.device(name)


def build(name: str, device: torch.device, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """Return the shape with random weights, made on the device, from seed 0."""
    with _seeded(device):
        model = LlavaForConditionalGeneration._from_config(SHAPES[name](), dtype=dtype, attn_implementation=attention)
    return model.eval()


def prompt(model: Any, text_tokens: int) -> dict[str, Tensor]:
    """Return a prompt of so many text tokens and one image, as the model takes it."""
    config, device = model.config, model.device
    words = tokenizer()("what color is the small object?", add_special_tokens=False)["input_ids"]
    text = (words * text_tokens)[:text_tokens]
    image = [config.image_token_id] * config.image_seq_length
    ids = torch.tensor([[*text[:BEFORE_IMAGE], *image, *text[BEFORE_IMAGE:]]], device=device)
    side = config.vision_config.image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(device, model.dtype),
    }


def tokenizer() -> Any:
    """Return the tokenizer that the prompt was made with."""
    return default_tokenizer("random:")


def text_encoder(model: Any) -> TextEncoder:
    """Return a random CLIP text encoder for the model's vision tower, as small as that is; float32, as by default."""
    vision = model.config.vision_config
    text = dict(CLIP_TEXT)
    if vision.hidden_size < text["hidden_size"]:
        text |= {"hidden_size": vision.hidden_size, "intermediate_size": 48, "num_attention_heads": 2}
    config = CLIPConfig(text_config=text, vision_config=vision.to_dict() | {"num_hidden_layers": 0}, projection_dim=768)
    with _seeded(model.device):
        clip = CLIPModel(config)
    return TextEncoder(clip.float().eval(), AutoTokenizer.from_pretrained(WEIGHTS / "clip"))


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Make modules on the device, from seed 0."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        yield
