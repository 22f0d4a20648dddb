"""Names the modules of each architecture; the only file that knows them."""

from dataclasses import dataclass
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration, PreTrainedModel

from harness.errors import VtbenchError
from methods.interface import Shape


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The parts of a model that the engine touches; modules, typed `Any` since only this file knows their classes."""

    core: Any  # takes input_ids and images, runs the LLM without its head
    vision: Any
    vit_layers: Any
    projector: Any
    llm: Any
    llm_layers: Any
    image_token: int
    shape: Shape


def anatomy(model: PreTrainedModel) -> Anatomy:
    """Return the anatomy of a model. Errors: VtbenchError for an architecture that is not known."""
    if not isinstance(model, LlavaForConditionalGeneration):
        raise VtbenchError(
            f"model: {type(model).__name__} is not a known architecture; allowed is LlavaForConditionalGeneration"
        )
    core, config = model.model, model.config
    check_towers(config)
    if config.vision_feature_select_strategy != "default" or not isinstance(config.vision_feature_layer, int):
        raise VtbenchError(
            "model: allowed is vision_feature_select_strategy default with one vision_feature_layer, "
            f"not {config.vision_feature_select_strategy} with {config.vision_feature_layer}"
        )
    return Anatomy(
        core=core,
        vision=core.vision_tower,
        vit_layers=core.vision_tower.encoder.layers,
        projector=core.multi_modal_projector,
        llm=core.language_model,
        llm_layers=core.language_model.layers,
        image_token=config.image_token_id,
        shape=shape_of_config(config),
    )


def check_towers(config: Any) -> None:
    """Refuse a LLaVA config whose towers are not known, before it is made. Errors: VtbenchError."""
    towers: dict[str, tuple[Any, Any]] = {
        "vision": (config.vision_config, CLIPVisionConfig),
        "language": (config.text_config, LlamaConfig),
    }
    for tower, (own, known) in towers.items():
        if type(own) is not known:
            raise VtbenchError(
                f"model: its {tower} tower is a {own.model_type}, not known; allowed is {known.model_type}"
            )


def shape_of_config(config: Any) -> Shape:
    """Return the shape of a LLaVA config."""
    vision, layer = config.vision_config, config.vision_feature_layer
    return Shape(
        patches=(vision.image_size // vision.patch_size) ** 2,
        vit_layers=layer if layer >= 0 else vision.num_hidden_layers + 1 + layer,
        llm_layers=config.text_config.num_hidden_layers,
    )
