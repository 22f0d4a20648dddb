"""The real modules of a model on the meta device, counted by fvcore once per distinct (layer, length).

A count is in multiply-adds (MACs); LayerNorm is fvcore's 5 operations an element. No weights are made or read.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache, lru_cache
from json import loads
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
)

from harness.errors import VtbenchError
from harness.model.anatomy import anatomy

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # fvcore scripts a loss function when it is imported
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

# fvcore counts what it has a handler for and calls the rest 0. These are not matrix products; any other is an error.
_FREE = {
    f"aten::{name}"
    for names in (
        "add sub rsub mul div neg pow rsqrt sqrt exp mean sum sigmoid silu gelu relu tanh softmax cos sin",
        "embedding clone repeat unflatten amax eq masked_fill",
    )
    for name in names.split()
}


class Layer(NamedTuple):
    """Cost of one layer."""

    linear: int = 0  # MACs
    attention: int = 0  # MACs of the two attention products, all N²
    norm: int = 0  # fvcore's operations
    gate: int = 0  # MACs of an LLM's gate_proj, which linear has too

    def __add__(self, other: "Layer") -> "Layer":  # type: ignore[override]
        return Layer(*(a + b for a, b in zip(self, other, strict=True)))

    def __sub__(self, other: "Layer") -> "Layer":
        return Layer(*(a - b for a, b in zip(self, other, strict=True)))


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
        self._norm = _total(parts.vision.pre_layrnorm, self._hidden(1)).norm

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
        counts = _count(_Call(module, lambda block, x: block(x, attention_mask=None)), self._hidden(tokens))
        mlp = _as_layer(counts["block.mlp"] + counts["block.layer_norm2"])
        return _as_layer(counts[""]) - mlp, mlp

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
        return _total(module, torch.empty(1, tokens, width, device="meta")).linear


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
    head = _total(model.text_projection, torch.empty(1, tokens, hidden, device="meta"))
    return layers * (layer.linear + layer.attention) + head.linear


def module_macs(module: nn.Module, *inputs: Tensor) -> int:
    """Return the MACs of a module's linear layers, convolutions and attention products on these inputs."""
    counts = _total(module, *inputs)
    return counts.linear + counts.attention


def patch_macs(embedding: nn.Conv2d) -> int:
    """Return the MACs of embedding one patch."""
    # meta convolutions fail under jit trace; one patch is small enough to run
    one = torch.zeros(1, embedding.in_channels, *embedding.kernel_size)
    return _total(embedding.to_empty(device="cpu"), one).linear


def cost(block: nn.Module, call: Callable[..., Any], *inputs: Tensor) -> Layer:
    """Return what `call(block, *inputs)` costs. Errors: ValueError for an operation that nothing counts."""
    counts = _count(_Call(block, call), *inputs)
    gate = _as_layer(counts.get("block.mlp.gate_proj", Counter())).linear
    return _as_layer(counts[""])._replace(gate=gate)


class _Call(nn.Module):
    """A module with its keyword arguments: a trace passes positional tensors only."""

    def __init__(self, block: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.block = block
        self.call = call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(self.block, *inputs)


class Past:
    """A cache that already holds n tokens and stores nothing."""

    def __init__(self, n: int) -> None:
        self.n = n

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values behind those that it holds."""

        def longer(x: Tensor) -> Tensor:
            return torch.cat([x.new_empty(*x.shape[:2], self.n, x.shape[-1]), x], dim=2)

        return longer(keys), longer(values)

    def get_seq_length(self) -> int:
        """Return how many it holds."""
        return self.n


def alike(layers: nn.ModuleList) -> list[int]:
    """Return for every layer the first one with the same modules and sizes."""
    first: dict[str, int] = {}
    return [first.setdefault(repr(layer), index) for index, layer in enumerate(layers)]


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """MACs of `scaled_dot_product_attention`: batch · heads · Lq · Lk · (dq + dv); fvcore itself counts 0."""
    query, key, value = (get_shape(v) for v in inputs[:3])
    return Counter({"attention": prod(query[:-1]) * key[-2] * (query[-1] + value[-1])})


def _count(module: nn.Module, *inputs: Tensor) -> dict[str, Counter[str]]:
    """Return fvcore's counts by module and operator. Errors: ValueError for an operation it would call 0."""
    analysis = FlopCountAnalysis(module, inputs)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counts = analysis.by_module_and_operator()
    unknown = sorted(set(analysis.unsupported_ops()) - _FREE)
    if unknown:
        raise ValueError(f"FLOPs: cannot count {', '.join(unknown)} in {type(module).__name__}")
    return counts


def _as_layer(operators: Counter[str]) -> Layer:
    """Sort fvcore's operators into ours. Eager attention's matmuls are attention, as no linear layer is a matmul."""
    kinds = {"linear": 0, "conv": 0, "layer_norm": 2, "attention": 1, "matmul": 1, "bmm": 1, "einsum": 1}
    sums = [0, 0, 0]
    for operator, macs in operators.items():
        sums[kinds[operator]] += int(macs)
    return Layer(*sums)


def _total(module: nn.Module, *inputs: Tensor) -> Layer:
    return _as_layer(_count(module, *inputs)[""])
