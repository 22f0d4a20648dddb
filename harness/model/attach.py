"""Attaches a method to an unchanged Hugging Face model: `with attach(model, method("ivtp", tokens=64)): …`.

Inside the context `model.generate(**inputs)` and `model(**inputs)` run with visual tokens removed; after it the model
is what it was, bit for bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet, ref

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase, StaticCache

from harness.errors import VtbenchError
from harness.model.anatomy import Anatomy, anatomy
from harness.model.guide import words
from harness.model.ledger import Ledger
from harness.model.llm import Language
from harness.model.plan import plan
from harness.model.rider import Rider
from harness.model.splice import placeholders, splice
from harness.model.text import TextEncoder, default_text_encoder, default_tokenizer, load_text_encoder
from harness.model.vit import Vision
from methods.interface import Method, Stage

_attached: WeakSet[PreTrainedModel] = WeakSet()


class Attached:
    """A method at work on a model; `ledger` tells what the latest prefill did."""

    ledger: Ledger

    def __init__(
        self,
        parts: Anatomy,
        method: Method,
        stages: tuple[Stage, ...],
        encoder: TextEncoder | None,
        tokenizer: PreTrainedTokenizerBase | None,
        seed: int,
    ) -> None:
        self.parts, self.method, self.encoder, self.tokenizer = parts, method, encoder, tokenizer
        self.contiguous = method.positions == "contiguous"
        vit, at_input, self.llm = (plan(stages, seam, parts.shape) for seam in ("vit", "input", "llm"))
        self.at_input = [planned for at_layer in at_input.before.values() for planned in at_layer]
        self.vision = Vision(parts, vit, seed)
        self.language = Language(parts, self.llm, self.vision.uniform, contiguous=self.contiguous)

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the pixels that the vision tower is given."""
        self.vision.see(kwargs["pixel_values"] if "pixel_values" in kwargs else args[0])

    def enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]]:
        """Arrange a prefill or a decoding step before it runs."""
        if args:
            raise VtbenchError("model: pass inputs by keyword under attach")
        cache = kwargs.get("past_key_values")
        if isinstance(cache, StaticCache):
            raise VtbenchError(
                "cache: a static cache is not possible under attach; allowed is the default DynamicCache"
            )
        past = cache.get_seq_length() if cache is not None else 0
        return (), self._decode(kwargs, cache, past) if past else self._prefill(kwargs, cache)

    def _prefill(self, kwargs: dict[str, Any], cache: Cache | None) -> dict[str, Any]:
        parts, core = self.parts, self.parts.core
        input_ids = kwargs.pop("input_ids", None)
        if input_ids is None:
            raise VtbenchError("prompt: input_ids are needed under attach, to find the images' places")
        encoded = kwargs.pop("mm_encoder_outputs", None) or {}
        pixels = kwargs.pop("pixel_values", None)
        slots, rows = placeholders(parts, input_ids)
        images = encoded.get("image")
        if images is None and pixels is not None:
            images = core.get_image_features(pixel_values=pixels, return_dict=True)
        features = [] if images is None else list(images.pooler_output)
        if len(features) != len(rows) or (features and len(features) != len(self.vision.patch)):
            raise VtbenchError(
                f"prompt: {len(features)} images for {len(rows)} places; allowed is one for each, so no beam search "
                "and no several sequences for one prompt"
            )
        mask = kwargs.pop("attention_mask", None)
        mask = torch.ones_like(input_ids) if mask is None else mask
        embeddings = core.get_input_embeddings()(input_ids)
        vision = self.vision
        if features:
            visual, patch, size = torch.stack(features).to(embeddings), vision.patch, vision.size
        else:
            visual, patch, size = embeddings.new_zeros(0, 0, embeddings.shape[-1]), slots[:, :0], slots[:, :0].float()
        uses_cache = kwargs.get("use_cache")
        uses_cache = parts.llm.config.use_cache if uses_cache is None else uses_cache
        if cache is None and not uses_cache and self.llm.before:
            raise VtbenchError(
                "cache: use_cache=False is not possible with cuts inside the LLM, since every new token would cut anew"
            )
        if cache is None and uses_cache:
            cache = kwargs["past_key_values"] = DynamicCache(config=parts.llm.config)
        frame, embedded = splice(
            parts,
            embeddings,
            mask,
            slots,
            rows,
            visual,
            patch,
            size,
            self.at_input,
            vision.uniform,
            contiguous=self.contiguous,
        )
        self.ledger = Ledger(
            prompt_end=mask.bool().sum(dim=1),
            vit_counts=list(vision.counts) if features else [rows] * parts.shape.vit_layers,
            frames=[frame],
            cache=ref(cache) if cache is not None else None,
        )
        self.language.begin(self.ledger, prefill=True, past=0)
        self.language.rider = None
        if self.llm.rider and features:
            self.language.rider = Rider(self._pseudo_cls(input_ids, mask, embeddings, rows))
            behind = (mask.bool().int().cumsum(dim=1) - 1)[rows, slots[:, -1]] + 1
            self.language.rider_position = behind
        return kwargs | {
            "inputs_embeds": embedded,
            "attention_mask": frame.valid.long(),
            "position_ids": frame.position,
        }

    def _pseudo_cls(self, input_ids: Tensor, mask: Tensor, embeddings: Tensor, rows: Tensor) -> Tensor:
        assert self.encoder is not None and self.tokenizer is not None
        projected = self.parts.projector(self.vision.feature_cls[:, None])[:, 0].to(embeddings)
        text = mask.bool() & (input_ids != self.parts.image_token)
        states = []
        for image, row in enumerate(rows.tolist()):
            ids, embedded = input_ids[row][text[row]], embeddings[row][text[row]]
            seen = words(self.tokenizer, self.encoder, ids, embedded, self.vision.last_cls[image], projected[image])
            states.append(self.method.pseudo_cls(seen))
        return torch.stack(states)

    def _decode(self, kwargs: dict[str, Any], cache: Any, past: int) -> dict[str, Any]:
        known = getattr(self, "ledger", None)
        if known is None or known.cache is None or known.cache() is not cache:
            raise VtbenchError("cache: this one was filled by another prefill; start from an empty cache under attach")
        frame = known.frames[0]
        new = past - frame.valid.shape[1]
        self.language.begin(known, prefill=False, past=new)
        tokens = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        if tokens.shape[1] > 1:
            raise VtbenchError(
                f"cache: {tokens.shape[1]} tokens follow at once; allowed is one, so no chunked prefill, no assisted "
                "decoding, and no prompt that goes on from a cache"
            )
        grown = frame.valid.new_ones(len(frame.valid), new + tokens.shape[1])
        return kwargs | {
            "attention_mask": torch.cat([frame.valid, grown], dim=1).long(),
            "position_ids": self.language.positions(tokens.shape[1]) - frame.shift[:, None],
        }


@contextmanager
def attach(
    model: PreTrainedModel,
    method: Method,
    *,
    text_encoder: TextEncoder | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
) -> Iterator[Attached]:
    """Run the model with this method's tokens removed while the context lasts.

    text_encoder and tokenizer are for methods that read the question (IVTP); by default they are the model's own, by
    its name. seed is for methods that draw. Errors: VtbenchError for a model, method or use that cannot work.
    """
    parts = anatomy(model)
    if model in _attached:
        raise VtbenchError("attach: a method is attached to this model already; leave its context first")
    for tower in (parts.vision, parts.llm):
        if tower.config._attn_implementation not in ("sdpa", "eager"):
            raise VtbenchError(
                f"attention: {tower.config._attn_implementation} is not possible under attach; allowed are sdpa, eager"
            )
    try:
        stages = method.stages(parts.shape)
    except ValueError as error:
        raise VtbenchError(f"{method.name}: {error}") from None
    if any("rider_rollout" in stage.needs for stage in stages):
        name = str(model.config.name_or_path)
        if text_encoder is None:
            text_encoder = load_text_encoder(default_text_encoder(name), str(model.device))
        tokenizer = default_tokenizer(name) if tokenizer is None else tokenizer
        width, its = parts.vision.config.hidden_size, text_encoder.model.config.vision_config.hidden_size
        if width != its:
            raise VtbenchError(f"text_encoder: its CLIP has a vision width of {its}, the model's tower {width}")
    attached = Attached(parts, method, stages, text_encoder, tokenizer, seed)
    bound: dict[nn.Module, Any] = {}
    hooks = [
        model.register_forward_pre_hook(_refuse_labels, with_kwargs=True),
        parts.core.register_forward_pre_hook(attached.enter, with_kwargs=True),
        parts.vision.register_forward_pre_hook(attached.see, with_kwargs=True),
    ]
    try:
        _attached.add(model)
        for index, layer in enumerate(parts.vit_layers):
            _bind(layer, partial(attached.vision.forward, index, layer), bound)
        for index, layer in enumerate(parts.llm_layers):
            _bind(layer, partial(attached.language.forward, index, layer, layer.forward), bound)
        yield attached
    finally:
        for layer, forward in bound.items():
            del layer.forward
            if forward is not None:
                layer.forward = forward
        for hook in hooks:
            hook.remove()
        _attached.discard(model)


def _bind(layer: nn.Module, forward: Callable[..., Tensor], bound: dict[nn.Module, Any]) -> None:
    bound[layer] = vars(layer).get("forward")  # accelerate binds one of its own
    layer.forward = forward


def _refuse_labels(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if kwargs.get("labels") is not None:
        raise VtbenchError("labels: training is not possible under attach")
