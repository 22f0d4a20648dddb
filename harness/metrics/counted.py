"""The real modules of a model on the meta device, counted by fvcore once per distinct (layer, length).

A count is in multiply-adds (MACs); LayerNorm is fvcore's 5 operations an element. No weights are made or read.
"""

from functools import cache, lru_cache
from json import loads
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
)

from harness.errors import VtbenchError
from harness.metrics.tracing import Call, Layer, Past, alike, as_layer, cost, count_operators, patch_macs, total
from harness.model.anatomy import anatomy


class Counted:
    """Costs of one model's modules at given lengths, cached."""

    cls = 1  # tokens of the ViT that are not visual tokens

    def __init__(self, config: PreTrainedConfig) -> None:
        try:
            with torch.device("meta"):
                model = AutoModelForImageTextToText.from_config(
                    config, attn_implementation="sdpa", dtype=torch.float32
                ).eval()
        except ValueError:
            raise VtbenchError(f"FLOPs: {config.model_type!r} is not a model that reads images and text") from None
        parts: Any = anatomy(model)  # whose modules have attributes that nn.Module does not declare
        self.shape = parts.shape
        self._vit_layers = parts.vit_layers
        self._projector = parts.projector
        self._lm = parts.llm
        self._lm_head = model.lm_head
        self._vision_like = alike(parts.vit_layers)
        self._decoder_like = alike(parts.llm_layers)
        self._cached_layer = cache(self._layer)
        self._cached_decoder = cache(self._decoder)
        self._cached_linear = cache(self._linear)

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
        like = self._vision_like[layer]
        return self._cached_layer(like, entering)[0] + self._cached_layer(like, into_mlp)[1]

    def decoder_layer(self, layer: int, queries: int, keys: int) -> Layer:
        """Cost of a decoder layer for `queries` new tokens that attend to `keys`, themselves among them."""
        return self._cached_decoder(self._decoder_like[layer], queries, keys)

    def projector(self, tokens: int) -> int:
        """MACs of the projector."""
        return self._cached_linear("_projector", tokens)

    def lm_head(self, tokens: int) -> int:
        """MACs of the LLM's head at every one of these positions."""
        return self._cached_linear("_lm_head", tokens)

    def _hidden(self, tokens: int) -> Tensor:
        return torch.empty(1, tokens, self.vision_width, device="meta")

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

    def _linear(self, name: str, tokens: int) -> int:
        module = getattr(self, name)
        width = next(module.parameters()).shape[1]
        return total(module, torch.empty(1, tokens, width, device="meta")).linear


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
