"""The real modules of a model on the meta device, counted by fvcore once per distinct layer at a few short lengths.

A layer's count at any length follows from these exactly (`tracing.fitted`). A count is in multiply-adds (MACs);
LayerNorm is fvcore's 5 operations an element. No weights are made or read.
"""

from functools import cache, lru_cache, partial
from json import loads
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    LlavaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from harness.errors import VtbenchError
from harness.metrics.tracing import (
    AnyLength,
    Call,
    Layer,
    Past,
    alike,
    as_layer,
    cost,
    count_operators,
    fitted,
    patch_macs,
    total,
)
from harness.model.anatomy import anatomy, check_towers


class Counted:
    """Costs of one model's modules at given lengths; the coefficients, which are fvcore's counts, are cached."""

    cls = 1  # tokens of the ViT that are not visual tokens

    def __init__(self, config: PreTrainedConfig) -> None:
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise VtbenchError(f"FLOPs: {config.model_type!r} is not a model that reads images and text")
        if isinstance(config, LlavaConfig):
            check_towers(config)
        try:
            with torch.device("meta"):
                model = AutoModelForImageTextToText.from_config(
                    config, attn_implementation="sdpa", dtype=torch.float32
                ).eval()
        except (AttributeError, KeyError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise VtbenchError(f"FLOPs: no {config.model_type} can be made from this config: {reason}") from None
        parts: Any = anatomy(model)  # whose modules have attributes that nn.Module does not declare
        self.shape = parts.shape
        self._vit_layers = parts.vit_layers
        self._projector = parts.projector
        self._lm = parts.llm
        self._lm_head = model.lm_head
        self._vision_like = alike(parts.vit_layers)
        self._decoder_like = alike(parts.llm_layers)
        self._vision_fit = cache(self._fit_vision)
        self._decoder_fit = cache(self._fit_decoder)
        self._linear_fit = cache(self._fit_linear)

        conv = parts.vision.embeddings.patch_embedding
        self.patch_values = conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]
        self._patch = patch_macs(conv)
        self._norm = total(parts.vision.pre_layrnorm, self._hidden(1)).norm

    @property
    def all_layers(self) -> int:
        """ViT layers that run; the LLM reads the first `shape.vit_layers` of them."""
        return len(self._vit_layers)

    @property
    def vocabulary(self) -> int:
        """Rows of lm_head."""
        return int(self._lm_head.out_features)

    @property
    def vision_width(self) -> int:
        """Heads × head width of the ViT."""
        return int(self._vit_layers[0].self_attn.q_proj.out_features)

    @property
    def llm_width(self) -> int:
        """Heads × head width of the LLM's queries."""
        return int(self._lm.layers[0].self_attn.q_proj.out_features)

    @property
    def llm_key_width(self) -> int:
        """Heads × head width of the LLM's keys."""
        return int(self._lm.layers[0].self_attn.k_proj.out_features)

    @property
    def vision_head(self) -> int:
        """Width of one head of the ViT."""
        return int(self._vit_layers[0].self_attn.head_dim)

    @property
    def llm_hidden(self) -> int:
        """Width of the LLM's hidden states."""
        return int(self._lm.config.hidden_size)

    @property
    def llm_head(self) -> int:
        """Width of one head of the LLM."""
        return int(self._lm.layers[0].self_attn.head_dim)

    def patch_embedding(self, patches: int) -> int:
        """MACs of the patch convolution."""
        return patches * self._patch

    def pre_norm(self, patches: int) -> int:
        """Operations of the norm before the ViT's layers."""
        return (self.cls + patches) * self._norm

    def vision_layer(self, layer: int, entering: int, into_mlp: int) -> Layer:
        """Cost of a ViT layer in which `entering` tokens attend and `into_mlp` go through the MLP (both with CLS)."""
        attention, mlp = self._vision_fit(self._vision_like[layer])
        return attention.at(entering, entering) + mlp.at(into_mlp, into_mlp)

    def decoder_layer(self, layer: int, queries: int, keys: int) -> Layer:
        """Cost of a decoder layer for `queries` new tokens that attend to `keys`, themselves among them."""
        return self._decoder_fit(self._decoder_like[layer]).at(queries, keys)

    def projector(self, tokens: int) -> int:
        """MACs of the projector."""
        return self._linear_fit("_projector").at(tokens, tokens).linear

    def lm_head(self, tokens: int) -> int:
        """MACs of the LLM's head at every one of these positions."""
        return self._linear_fit("_lm_head").at(tokens, tokens).linear

    def _hidden(self, tokens: int) -> Tensor:
        return torch.empty(1, tokens, self.vision_width, device="meta")

    def _fit_vision(self, layer: int) -> tuple[AnyLength, AnyLength]:
        trace = cache(self._layer)
        return fitted(lambda tokens, _: trace(layer, tokens)[0]), fitted(lambda tokens, _: trace(layer, tokens)[1])

    def _fit_decoder(self, layer: int) -> AnyLength:
        return fitted(partial(self._decoder, layer), (1, 4))

    def _fit_linear(self, name: str) -> AnyLength:
        return fitted(lambda tokens, _: self._linear(name, tokens))

    def _layer(self, layer: int, tokens: int) -> tuple[Layer, Layer]:
        """Cost of a ViT layer's attention half and of its MLP half."""
        module = self._vit_layers[layer]
        counts = count_operators(Call(module, lambda block, x: block(x, attention_mask=None)), self._hidden(tokens))
        mlp = as_layer(counts["block.mlp"] + counts["block.layer_norm2"])
        return as_layer(counts[""]) - mlp, mlp

    def _decoder(self, layer: int, queries: int, keys: int) -> Layer:
        x = torch.empty(1, queries, self.llm_hidden, device="meta")
        rotary = self._lm.rotary_emb(x, torch.arange(queries, device="meta")[None])
        past = Past(keys - queries)
        return cost(
            self._lm.layers[layer],
            lambda block, x, cos, sin: block(x, position_embeddings=(cos, sin), past_key_values=past),
            x,
            *rotary,
        )

    def _linear(self, name: str, tokens: int) -> Layer:
        module = getattr(self, name)
        width = next(module.parameters()).shape[1]
        return total(module, torch.empty(1, tokens, width, device="meta"))


@lru_cache(maxsize=8)
def _counted(config_json: str) -> Counted:
    return Counted(AutoConfig.for_model(**loads(config_json)))


def counted(model: PreTrainedModel | PreTrainedConfig) -> Counted:
    """Return the counter of a model or its config, made once per config. Errors: VtbenchError, unknown architecture."""
    config = model if isinstance(model, PreTrainedConfig) else model.config
    return _counted(config.to_json_string())


@cache
def clip_text(hidden: int, mlp: int, heads: int, layers: int, projection: int, tokens: int) -> int:
    """Return the MACs of a CLIP text encoder of this shape, text projection included."""
    config = CLIPTextConfig(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        projection_dim=projection,
        max_position_embeddings=tokens,
    )
    with torch.device("meta"):
        model = CLIPTextModelWithProjection._from_config(config, attn_implementation="sdpa", dtype=torch.float32).eval()
    layer = cost(
        model.text_model.encoder.layers[0],
        lambda block, x: block(x, attention_mask=None),
        torch.empty(1, tokens, hidden, device="meta"),
    )
    # every token is projected, not the last alone: IVTP reads them all
    head = total(model.text_projection, torch.empty(1, tokens, hidden, device="meta"))
    return layers * (layer.linear + layer.attention) + head.linear
