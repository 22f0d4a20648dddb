"""Loads a model by name: `pocket`, `random:…` (a known shape with random weights), a hub id or a local folder."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from harness.errors import VtbenchError
from harness.model.anatomy import shape_of_config
from harness.pocket import WEIGHTS
from methods.interface import Shape


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in eval mode with its processor, which a random shape without a tokenizer has not."""

    name: str
    model: Any  # LlavaForConditionalGeneration
    processor: Any  # LlavaProcessor or None
    shape: Shape


def _llava_1_5(width: int, mlp: int, layers: int, heads: int) -> LlavaConfig:
    return LlavaConfig(  # type: ignore[call-arg]  # mypy misses the attribute map
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ),
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


RANDOM = {
    "random:pocket": lambda: AutoConfig.from_pretrained(WEIGHTS),
    "random:llava-1.5-7b": lambda: _llava_1_5(4096, 11008, 32, 32),
    "random:llava-1.5-13b": lambda: _llava_1_5(5120, 13824, 40, 40),
}


HUB_ID = r"[\w.-]+/[\w.-]+"


def config_of(name: str, *, trust_remote_code: bool = False) -> LlavaConfig:
    """Return a model's config, without its weights.

    Errors: VtbenchError that names what is allowed when there is no such model, or it is no LLaVA.
    """
    if name in RANDOM:
        return RANDOM[name]()
    if name != "pocket" and not Path(name).is_dir() and not re.fullmatch(HUB_ID, name):
        raise _no_model(name, "no folder has that name, and a hub id is owner/name")
    huggingface_hub.utils.logging.set_verbosity_error()  # the one line below says it all
    try:
        config = AutoConfig.from_pretrained(WEIGHTS if name == "pocket" else name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = "the folder has no config that can be read" if Path(name).is_dir() else "the hub does not give it"
        raise _no_model(name, f"{reason}: {str(error).splitlines()[0]}") from None
    if not isinstance(config, LlavaConfig):
        raise VtbenchError(f"{name!r} is a {config.model_type}; allowed are models of type llava")
    return config


def _no_model(name: str, reason: str) -> VtbenchError:
    known = ["pocket", *RANDOM]
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return VtbenchError(
        f"{name!r} is not a model; {hint}allowed are {', '.join(known)}, a local folder or a hub id ({reason})"
    )


def shape_of(name: str, *, trust_remote_code: bool = False) -> Shape:
    """Return a model's shape, without its weights. Errors: as `config_of`."""
    return shape_of_config(config_of(name, trust_remote_code=trust_remote_code))


def load(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> Loaded:
    """Return a model, in eval mode on the device. Errors: VtbenchError as `config_of`, or for missing weights."""
    config = config_of(name, trust_remote_code=trust_remote_code)
    transformers.utils.logging.disable_progress_bar()
    folder = str(WEIGHTS) if name in ("pocket", "random:pocket") else name
    model: Any
    try:
        if name in RANDOM:
            model = _random(config, dtype, attention, device)
        else:
            model = LlavaForConditionalGeneration.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
            )
            model = model.to(device)
        has_processor = name not in RANDOM or name == "random:pocket"
        processor = (
            AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code) if has_processor else None
        )
    except (OSError, ValueError, ImportError) as error:
        raise VtbenchError(f"{name!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    model.config.name_or_path = folder
    return Loaded(name=name, model=model.eval(), processor=processor, shape=shape_of_config(config))


def _random(config: LlavaConfig, dtype: torch.dtype, attention: str, device: str) -> LlavaForConditionalGeneration:
    """Return the shape with random weights, made on the device by the model's own initialisation, from seed 0."""
    devices = [device] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices), torch.device(device):
        torch.manual_seed(0)
        return LlavaForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation=attention)
