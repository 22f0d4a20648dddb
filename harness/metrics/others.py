"""FLOPs of the models that LVPruning's Table 3 puts beside LLaVA, counted like LLaVA's; unpruned, as none can run here.

Published and ours in TFLOPs under convention `lvpruning`, with the text of Table 1, 30 tokens:

| model | published | ours | |
|---|---|---|---|
| BLIP2-14B | 2.14 | 2.113 | −1.3 %. OPT-6.7B or FlanT5-XXL are far too small: the LLM must be Vicuna-13B |
| InstructBLIP-8B | 1.36 | 1.343 | −1.2 % |
| InstructBLIP-14B | 2.14 | 2.118 | −1.0 % |
| IDEFICS-9B | 0.87 | 0.840 | −3.4 %; its text may be a few tokens longer for the image's place, which no paper says |
| Qwen-VL | 1.75 | 7.940 | cannot be: its ViT at 448 pixels alone costs 3.788, its LLM with 256 visual tokens 4.060 |

With the attention products, which the convention leaves out, the first four are 2.130, 1.360, 2.136 and 0.852.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Blip2ForConditionalGeneration,
    CLIPVisionModel,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2ForCausalLM,
)

from harness.metrics.flops import Flops
from harness.metrics.tracing import Layer, Past, alike, cost, patch_macs
from harness.model.shapes import OtherConfig, QwenVLConfig
from methods.interface import Shape
from methods.schedule import TokensPerLayer


class Other(NamedTuple):
    """A model's cost; its shape, whose patches are the tokens that leave the resampler; tokens into every layer."""

    flops: Flops
    shape: Shape
    entering: TokensPerLayer


class Vision(NamedTuple):
    """What an image costs until its resampler has pooled its patches."""

    patches: int
    embedding: int
    norm: int  # outside the layers
    layers: tuple[Layer, ...]
    resampler: Layer


def count_other(config: OtherConfig, text_tokens: int) -> Other:
    """Count a prompt with one image and so many other tokens. Errors: VtbenchError for an operation nothing counts."""
    if isinstance(config, IdeficsConfig):
        return _idefics(config, text_tokens)
    return _qwen_vl(config, text_tokens) if isinstance(config, QwenVLConfig) else _blip(config, text_tokens)


def longest_text(config: Any) -> int:
    """Return for how many text tokens one of OtherConfig has positions beside an image."""
    if isinstance(config, IdeficsConfig):
        return config.max_position_embeddings
    positions = int(config.text_config.max_position_embeddings)
    if isinstance(config, QwenVLConfig):
        return positions - config.queries
    reads = isinstance(config, InstructBlipConfig)
    most = positions - int(config.num_query_tokens)
    return min(most, int(config.qformer_config.max_position_embeddings)) if reads else most


def _blip(config: Any, text: int) -> Other:
    """BLIP-2 and InstructBLIP: queries go into the LLM in front of the text, which InstructBLIP's Q-Former reads."""
    reads = isinstance(config, InstructBlipConfig)
    model = _made(InstructBlipForConditionalGeneration if reads else Blip2ForConditionalGeneration, config)
    patches, queries = _patches(config.vision_config), config.num_query_tokens
    image = _empty(1 + patches, config.vision_config.hidden_size)
    asked = _empty(queries, config.qformer_config.hidden_size)
    words = {"input_ids": torch.zeros(1, text, dtype=torch.long, device="meta")} if reads else {}
    vision = Vision(
        patches=patches,
        embedding=patches * patch_macs(model.vision_model.embeddings.patch_embedding),
        norm=cost(model.vision_model.post_layernorm, _plain, image).norm,
        layers=_layers(model.vision_model.encoder.layers, _plain, image),
        resampler=cost(
            model.qformer,
            lambda qformer, asked, image: qformer(query_embeds=asked, encoder_hidden_states=image, **words)[0],
            asked,
            image,
        ),
    )
    projector = cost(model.language_projection, _plain, asked).linear
    return _with_llama(vision, projector, model.language_model, queries, text)


class Resampler(nn.Module):
    """Qwen-VL's: learned queries attend to the projected image, and a last projection."""

    def __init__(self, width: int, out: int, queries: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.empty(1, queries, out))
        self.kv_proj = nn.Linear(width, out, bias=False)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(out) for _ in range(3))
        self.q, self.k, self.v, self.o = (nn.Linear(out, out) for _ in range(4))
        self.proj = nn.Linear(out, out, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return [B, queries, out] of [B, N, width]."""
        x = self.ln_kv(self.kv_proj(image))
        projected = self.q(self.ln_q(self.query)), self.k(x), self.v(x)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in projected)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.proj(self.ln_post(self.o(attended)))
        return out


def _qwen_vl(config: QwenVLConfig, text: int) -> Other:
    """Qwen-VL: its ViT is CLIP's without a CLS token, and has no norm behind its layers."""
    tower = _made(CLIPVisionModel, config.vision_config)
    patches, width, out = (
        _patches(config.vision_config),
        config.vision_config.hidden_size,
        config.text_config.hidden_size,
    )
    image = _empty(patches, width)
    with torch.device("meta"):
        resampler = Resampler(width, out, config.queries, heads=out // 128).eval()
    vision = Vision(
        patches=patches,
        embedding=patches * patch_macs(tower.embeddings.patch_embedding),
        norm=cost(tower.pre_layrnorm, _plain, image).norm,
        layers=_layers(tower.encoder.layers, _unmasked, image),
        resampler=cost(resampler, _plain, image),
    )
    return _with_llama(vision, 0, _made(Qwen2ForCausalLM, config.text_config), config.queries, text)


def _with_llama(vision: Vision, projector: int, model: Any, visual: int, text: int) -> Other:
    """An LLM of LLaMA's family, whose sequence has the visual tokens."""

    def decoder(queries: int, keys: int) -> tuple[Layer, ...]:
        x, past = _empty(queries, model.config.hidden_size), Past(keys - queries)
        rotary = model.model.rotary_emb(x, torch.arange(queries, device="meta")[None])
        return _layers(
            model.model.layers,
            lambda block, x, cos, sin: block(x, position_embeddings=(cos, sin), past_key_values=past),
            x,
            *rotary,
        )

    return _behind(vision, projector, decoder, model.lm_head, visual, visual, text)


def _idefics(config: Any, text: int) -> Other:
    """IDEFICS: no visual token is in the LLM's sequence; gated blocks before some layers attend to the latents."""
    model = _made(IdeficsForVisionText2Text, config)
    core, patches, width = model.model, _patches(config.vision_config), config.vision_config.embed_dim
    latents = config.perceiver_config.resampler_n_latents
    image, resampled = _empty(1 + patches, width), _empty(latents, width)
    vision = Vision(
        patches=patches,
        embedding=patches * patch_macs(core.vision_model.embeddings.patch_embedding),
        norm=cost(core.vision_model.pre_layrnorm, _plain, image).norm,
        layers=_layers(core.vision_model.encoder.layers, _unmasked, image),
        resampler=cost(core.perceiver_resampler, _plain, image),
    )

    def decoder(queries: int, keys: int) -> tuple[Layer, ...]:
        x, gate, past = _empty(queries, config.hidden_size), torch.ones(1, queries, device="meta"), Past(keys - queries)
        place = torch.arange(queries, device="meta")[None]
        mask = torch.zeros(1, 1, queries, latents, device="meta")  # without one transformers takes it to be causal
        own = _layers(core.layers, lambda block, x: block(x, position_ids=place, past_key_values=past), x)
        crossed = _layers(
            core.gated_cross_attn_layers,
            lambda block, x, image: block(x, None, image, image_attention_mask=mask, cross_attention_gate=gate),
            x,
            resampled,
        )
        every = config.cross_layer_interval
        return tuple(layer + (crossed[i // every] if i % every == 0 else Layer()) for i, layer in enumerate(own))

    return _behind(vision, 0, decoder, model.lm_head, latents, 0, text)


def _behind(
    vision: Vision,
    projector: int,
    decoder: Callable[[int, int], tuple[Layer, ...]],
    head: nn.Linear,
    pooled: int,
    visual: int,
    text: int,
) -> Other:
    """Put the count together. pooled: tokens of the image; visual: those of them in the LLM's sequence."""
    n = visual + text
    decode = decoder(1, n + 1)
    flops = Flops(
        basis="one sample",
        text_tokens=text,
        patch_embedding=vision.embedding,
        pre_norm=vision.norm,
        vision=(*vision.layers, vision.resampler),
        unread=(),
        projector=projector,
        decoder=decoder(n, n),
        visual=decoder(visual, visual) if visual else (Layer(),) * len(decode),
        lm_head=cost(head, _plain, _empty(n, head.in_features)).linear,
        decode=decode,
        decode_head=cost(head, _plain, _empty(1, head.in_features)).linear,
        unpadded=Fraction(1),
    )
    entering = TokensPerLayer(vit=(vision.patches,) * len(vision.layers), llm=(visual,) * len(decode))
    return Other(flops, Shape(patches=pooled, vit_layers=len(vision.layers), llm_layers=len(decode)), entering)


def _made(kind: type[PreTrainedModel], config: PreTrainedConfig) -> Any:
    with torch.device("meta"):
        return kind._from_config(config, attn_implementation="sdpa", dtype=torch.float32).eval()


def _empty(tokens: int, width: int) -> Tensor:
    return torch.empty(1, tokens, width, device="meta")


def _plain(block: nn.Module, x: Tensor) -> Any:
    return block(x)


def _unmasked(block: nn.Module, x: Tensor) -> Any:
    return block(x, attention_mask=None)


def _patches(vision: Any) -> int:
    return int(vision.image_size // vision.patch_size) ** 2


def _layers(layers: nn.ModuleList, call: Callable[..., Any], *inputs: Tensor) -> tuple[Layer, ...]:
    """Return what every layer costs, of those alike one counted."""
    like = alike(layers)
    costs = {index: cost(layers[index], call, *inputs) for index in set(like)}
    return tuple(costs[index] for index in like)
