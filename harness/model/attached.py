"""A method at work on a model: what happens before a prefill and before a decoding step."""

from collections.abc import Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedTokenizerBase, StaticCache

from harness.errors import VtbenchError
from harness.model.anatomy import Anatomy
from harness.model.guide import Asked, ask, words
from harness.model.image import shrink
from harness.model.ledger import Frame, Guide, Ledger, uncut
from harness.model.llm import Language
from harness.model.plan import plan, reads_text
from harness.model.raters import Raters
from harness.model.rider import Inserted, Rider
from harness.model.splice import insert, placeholders, splice
from harness.model.text import TextEncoder
from harness.model.vit import Vision
from methods.interface import Method, Stage, Words


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
        vit_depth, llm_depth = len(parts.vit_layers), len(parts.llm_layers)
        self.image = plan(stages, "image", parts.shape, vit_depth)
        vit = plan(stages, "vit", parts.shape, vit_depth)
        at_input = plan(stages, "input", parts.shape, llm_depth)
        self.llm = plan(stages, "llm", parts.shape, llm_depth)
        self.rated = any("rater_row" in stage.needs for stage in stages)
        self.reads_text = reads_text(method, stages)
        self.at_input = [planned for at_layer in at_input.before.values() for planned in at_layer]
        self.vision = Vision(parts, vit, seed)
        self.language = Language(parts, self.llm, self.vision.uniform, contiguous=self.contiguous)

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        """Note the pixels that the vision tower is given, and shrink them where the method says so."""
        pixels = kwargs.pop("pixel_values") if "pixel_values" in kwargs else args[0]
        seen, patch, size = shrink(self.image, pixels, self.parts.vision.config.patch_size)
        self.vision.see(pixels, patch, size)
        if seen is not pixels:
            kwargs["interpolate_pos_encoding"] = True
        return (), kwargs | {"pixel_values": seen}

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
        mask = kwargs.pop("attention_mask", None)
        mask = torch.ones_like(input_ids) if mask is None else mask
        prompt = uncut(mask, slots, rows)  # like the questions before the image is encoded, which asking would wait for
        asked = self._ask(input_ids, mask, prompt)
        images = encoded.get("image")
        if images is None and pixels is not None:
            images = core.get_image_features(pixel_values=pixels, return_dict=True)
        features = [] if images is None else list(images.pooler_output)
        if len(features) != len(rows) or (features and len(features) != len(self.vision.patch)):
            raise VtbenchError(
                f"prompt: {len(features)} images for {len(rows)} places; allowed is one for each, so no beam search "
                "and no several sequences for one prompt"
            )
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
        rides = self.llm.rider >= 0 and bool(features)
        states, guides = self._guide(asked, embeddings, prompt) if rides else (None, [])
        if states is not None and self.method.inserts_pseudo_cls:
            embeddings, mask, slots = insert(embeddings, mask, slots, rows, states)
            prompt = uncut(mask, slots, rows)
        frame, embedded = splice(
            prompt,
            embeddings,
            visual,
            patch,
            size,
            self.at_input,
            vision.uniform,
            contiguous=self.contiguous,
            ragged=bool(features) and vision.padded,
        )
        self.ledger = Ledger(
            prompt_end=mask.bool().sum(dim=1),
            vit_counts=list(vision.counts) if features else [rows] * parts.shape.vit_layers,
            frames=[frame],
            cache=ref(cache) if cache is not None else None,
            guides=guides,
        )
        language, inserted = self.language, self.method.inserts_pseudo_cls
        language.begin(self.ledger)
        language.rider = language.raters = None
        if states is not None:
            language.rider = Inserted() if inserted else Rider(states, parts.llm.rotary_emb)
            language.rider_position = (mask.bool().int().cumsum(dim=1) - 1)[rows, slots[:, -1]] + 1
        if self.rated and features:
            language.raters = Raters(frame, embedded, inserted and states is not None)
        # without a cache and a mask, positions that jump would be read as several sequences
        unpadded = frame.full and cache is not None
        return kwargs | {
            "inputs_embeds": embedded,
            "attention_mask": None if unpadded else frame.valid.long(),
            "position_ids": frame.position,
        }

    def _ask(self, input_ids: Tensor, mask: Tensor, prompt: Frame) -> list[Asked]:
        """Return the question of every image, where one guides."""
        if self.llm.rider < 0 or not self.method.reads_question:
            return []
        assert self.tokenizer is not None
        text = mask.bool() & (input_ids != self.parts.image_token)
        return [ask(self.tokenizer, self.encoder, input_ids[row], text[row]) for row, _ in prompt.layout.images]

    def _guide(self, asked: list[Asked], embeddings: Tensor, prompt: Frame) -> tuple[Tensor, list[Guide]]:
        """Return the pseudo CLS of every image [M, D] and the words that it is made of."""

        def project(states: Tensor) -> Tensor:
            return self.parts.projector(states.to(self.vision.feature_cls)).to(embeddings)

        projected = project(self.vision.feature_cls)
        states, guides = [], []
        for image, (row, _) in enumerate(prompt.layout.images):
            text, seen = "", Words(embeddings[row, :0], [], projected[image])
            if asked:
                text, last_cls = asked[image].text, self.vision.last_cls[image]
                seen = words(asked[image], self.encoder, embeddings[row], last_cls, projected[image], project)
            made = self.method.guide(seen)
            states.append(made.state)
            guides.append(Guide(text, made.guides))
        return torch.stack(states), guides

    def begun(self, ledger: Ledger, cache: DynamicCache, rows: Sequence[int]) -> DynamicCache:
        """Return a cache for prompts that all begin as a row of a prefill did, up to the end of its last image.

        ledger, cache: that prefill's; rows: of each prompt the row that it begins as. The next pass takes the rest of
        the prompts, its attention mask [B, first layer's slots + Q]. Errors: VtbenchError for a method that reads it.
        """
        if self.reads_text:
            raise VtbenchError(f"{self.method.name}: reads the whole prompt, so prompts cannot share their beginning")
        taken = DynamicCache(config=self.parts.llm.config)
        row = torch.tensor(rows, device=ledger.prompt_end.device)
        for index, (keys, values, *_) in enumerate(cache):
            taken.update(keys[row], values[row], index)
        self.ledger = ledger.begun(rows, taken)
        return taken

    def _decode(self, kwargs: dict[str, Any], cache: Any, past: int) -> dict[str, Any]:
        known = getattr(self, "ledger", None)
        if known is None or known.cache is None or known.cache() is not cache:
            raise VtbenchError("cache: this one was filled by another prefill; start from an empty cache under attach")
        tokens = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        if known.open:
            return self._end_prompt(kwargs, known, tokens)
        frame = known.frames[0]
        new = past - frame.valid.shape[1]
        if tokens.shape[1] > 1:
            raise VtbenchError(
                f"cache: {tokens.shape[1]} tokens follow at once; allowed is one, so no chunked prefill, no assisted "
                "decoding, and no prompt that goes on from a cache"
            )
        position = known.prompt_end[:, None] + new
        self.language.go_on(known, position, new + 1)
        grown = frame.valid.new_ones(len(frame.valid), new + 1)
        return kwargs | {
            "attention_mask": None if frame.full else torch.cat([frame.valid, grown], dim=1).long(),
            "position_ids": position - frame.shift[:, None],
        }

    def _end_prompt(self, kwargs: dict[str, Any], ledger: Ledger, rest: Tensor) -> dict[str, Any]:
        """Arrange the rest [B, Q] of prompts that have begun."""
        mask = kwargs.get("attention_mask")  # `generate` drops one that hides nothing
        mask = torch.ones_like(rest) if mask is None else mask[:, -rest.shape[1] :]
        position = ledger.close(mask.bool())
        self.language.go_on(ledger, position, 0)
        frame = ledger.frames[0]
        return kwargs | {
            "attention_mask": None if frame.full else frame.valid.long(),
            "position_ids": frame.position[:, -rest.shape[1] :],
        }
