"""Loads a model by name: `pocket`, `random:…` (a known shape with random weights), a hub id or a local folder.

A shape's own name (`llava-1.5-7b`) has a config, for costs that are counted, and no weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoProcessor, LlavaConfig, LlavaForConditionalGeneration, PreTrainedConfig

from harness.errors import VtbenchError
from harness.model.anatomy import shape_of_config
from harness.model.look import (
    SIZES,
    check_code,
    check_sizes,
    look_at_config,
    look_at_name,
    look_at_weights,
    no_model,
)
from harness.model.shapes import LLAVA
from harness.pocket import WEIGHTS
from methods.interface import Shape


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in eval mode with its processor, which a random shape without a tokenizer has not."""

    name: str
    model: Any  # LlavaForConditionalGeneration
    processor: Any  # LlavaProcessor or None
    shape: Shape


RANDOM: dict[str, Callable[[], LlavaConfig]] = {
    "random:pocket": lambda: AutoConfig.from_pretrained(WEIGHTS),
    **{f"random:{name}": shape for name, shape in LLAVA.items()},
}


def config_of(name: str, *, trust_remote_code: bool = False) -> LlavaConfig:
    """Return a model's config, without its weights. Code that it brings runs only where that is trusted.

    Errors: VtbenchError that names what is allowed when there is no such model, or it is no LLaVA.
    """
    known = LLAVA | RANDOM
    if name in known:
        return known[name]()
    look_at_name(name)
    source = str(WEIGHTS) if name == "pocket" else name
    is_folder = Path(source).is_dir()
    if is_folder:
        look_at_config(source, trust_remote_code=trust_remote_code)
    huggingface_hub.utils.logging.set_verbosity_error()  # the one line below says it all
    try:
        if not is_folder:
            check_code(name, PreTrainedConfig.get_config_dict(name)[0], trust_remote_code=trust_remote_code)
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except StrictDataclassError as error:
        raise VtbenchError(f"{name!r} has an impossible config: {str(error).splitlines()[-1].strip()}") from None
    except (OSError, ValueError) as error:
        reason = "the folder has no config that can be read" if is_folder else "the hub does not give it"
        raise no_model(name, f"{reason}: {str(error).splitlines()[0]}") from None
    if not isinstance(config, LlavaConfig):
        raise VtbenchError(f"{name!r} is a {config.model_type}; allowed are models of type llava")
    _check_sizes(name, config)
    return config


def _check_sizes(name: str, config: Any) -> None:
    """Refuse what transformers lets through, and what would be counted wrongly."""
    for tower in SIZES:
        check_sizes(repr(name), tower, getattr(config, tower).to_dict())
    layer, layers = config.vision_feature_layer, config.vision_config.num_hidden_layers
    if isinstance(layer, int) and not (1 <= layer <= layers or -layers <= layer <= -1):
        raise VtbenchError(
            f"{name!r}: vision_feature_layer: {layer} is not possible; allowed are 1 to {layers} and -{layers} to -1"
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
    if name in LLAVA:
        raise VtbenchError(
            f"{name!r} is a shape, it has no weights and serves for costs that are counted; allowed are random:{name}, "
            f"or the folder or hub id of a model (a folder of that name is ./{name})"
        )
    config = config_of(name, trust_remote_code=trust_remote_code)
    if Path(name).is_dir() and name not in RANDOM:
        look_at_weights(Path(name))
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
