"""The LLM seam: cuts before a layer in prefill, and every layer's own mask and positions from there on, decoding too.

Shapes: B rows, L slots of the frame at hand, M images, N visual tokens of an image, D width, Q new tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.masking_utils import create_causal_mask

from harness.model.anatomy import Anatomy
from harness.model.cut import reduced, uneven
from harness.model.ledger import Frame, Ledger
from harness.model.plan import OWN_ROW, Plan, Planned
from harness.model.probe import heads, overhear, row_attention, value_norm
from harness.model.raters import Raters
from harness.model.rider import Group, Heard, Inserted, Rider, Told, last, rotate
from methods.interface import Cut, Stage, View


class Language:
    """The LLM layers' new forwards; the ledger at hand is the state of one prefill."""

    ledger: Ledger
    entry: Frame  # what the caller's mask and positions are made for
    prefill: bool  # whether this pass is a prefill
    position: Tensor  # [B, Q] of the tokens that this pass takes behind a prefill, uncut
    fresh: int  # how many slots at the end the frames do not have, decoded ones
    rider: Rider | Inserted | None = None
    rider_position: Tensor  # [M] under `original` positions
    raters: Raters | None = None
    arranged: tuple[Frame, dict[str, Any]] | None  # the latest frame's mask and rotary embeddings
    heard: Heard | None  # of the layer just run, if a cut needs it

    def __init__(
        self, anatomy: Anatomy, plan: Plan, uniform: Callable[[str, Tensor], Tensor], *, contiguous: bool
    ) -> None:
        self.anatomy, self.plan, self.uniform, self.contiguous = anatomy, plan, uniform, contiguous

    def forward(
        self,
        index: int,
        layer: Any,
        run: Callable[..., Tensor],
        x: Tensor,
        *,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Run one layer: cut first if the schedule says so, then in its own frame."""
        frames = self.ledger.frames
        if self.prefill:
            if index:
                frames.append(frames[-1])
            if index in self.plan.before and len(frames[0].row):
                x = self._cut(self.plan.before[index], x)
            self.heard = None  # freed before the layer takes its own memory
        frame = frames[index]
        kwargs["position_ids"] = None  # those that jump would be several sequences to FlashAttention
        if frame is not self.entry:
            kwargs |= self._arrangement(index, frame, x, past_key_values)
        if not (self.prefill and index in self.plan.heard):
            return run(x, past_key_values=past_key_values, **kwargs)
        told = Told(past_key_values)
        with overhear(layer.self_attn) as projections:
            x = run(x, past_key_values=told, **kwargs)
        row, matrix = index in self.plan.rows, index in self.plan.matrix
        self.heard = Heard(layer, run, frame, projections, told.keys, kwargs["position_embeddings"], row, matrix)
        if self.rider is not None and index < self.plan.rider:
            self.rider.ride(self.heard, self._behind(frame))
        return x

    def _behind(self, frame: Frame) -> Tensor:
        """Return the position [M] right behind each image."""
        if not self.contiguous:
            return self.rider_position
        return frame.position[frame.row, (frame.start + frame.count - 1).clamp(min=0)] + 1

    def _arrangement(self, index: int, frame: Frame, x: Tensor, cache: Cache | None) -> dict[str, Any]:
        """Return this layer's mask and rotary embeddings; layers of one frame share them."""
        if self.arranged is None or self.arranged[0] is not frame:
            valid, position = None if frame.full else frame.valid, frame.position
            if not self.prefill:
                position = self.position - frame.shift[:, None]
                if valid is not None and self.fresh:
                    valid = torch.cat([valid, valid.new_ones(len(x), self.fresh)], dim=1)
            mask = create_causal_mask(self.anatomy.llm.config, x, valid, cache, None, layer_idx=index)
            embeddings = self.anatomy.llm.rotary_emb(x, position)
            self.arranged = (frame, {"attention_mask": mask, "position_embeddings": embeddings})
        return self.arranged[1]

    def begin(self, ledger: Ledger) -> None:
        """Start a prefill."""
        self.ledger, self.entry, self.prefill = ledger, ledger.frames[0], True
        self.arranged = self.heard = None

    def go_on(self, ledger: Ledger, position: Tensor, fresh: int) -> None:
        """Start a pass behind a prefill, of tokens at these uncut positions [B, Q]."""
        self.ledger, self.entry, self.prefill = ledger, ledger.frames[0], False
        self.position, self.fresh = position, fresh
        self.arranged = self.heard = None

    def _cut(self, cuts: list[Planned], x: Tensor) -> Tensor:
        frames = self.ledger.frames
        for stage, cut in cuts:
            frame = frames[-1]
            left = reduced(stage, self._view(stage, cut, frame, x), cut.tokens, ragged=frame.ragged)
            ragged = uneven(left) if stage.adaptive else frame.ragged
            frames[-1], x = frame.repack(x, left, contiguous=self.contiguous, ragged=ragged)
        if self.rider is not None:
            self.rider.group = Group()
        return x

    def _view(self, stage: Stage, cut: Cut, frame: Frame, x: Tensor) -> View:
        needs, heard = stage.needs, self.heard
        attention = rows = norm = keys = cls = None
        if needs & OWN_ROW:
            assert self.rider is not None
            if "rider_rows" in needs:
                rows = self.rider.group.each(frame)
            else:
                attention = self.rider.group.attention(stage, frame)
        if "cls" in needs:
            assert self.rider is not None
            cls = self.rider.cls(x, frame)
        if "next_last_row" in needs:
            attention = self._next_last_row(cut.layer, frame, x)
        if heard is not None:
            module = heard.layer.self_attn
            if "last_row" in needs:
                row = row_attention(heard.last_query(), heard.keys, hidden(frame), module.scaling)
                attention = frame.visual(row)
            if "rater_row" in needs:
                assert self.raters is not None
                attention = self.raters.attention(frame, heard.queries, heard.keys, module.scaling)
            if "value_norm" in needs:
                norm = frame.visual(value_norm(heard.projections.v, module.num_key_value_groups))
            if "keys" in needs:
                keys = frame.visual(heads(heard.projections.k, module.head_dim).float().mean(dim=1))
        return View(
            x=frame.visual(x),
            size=frame.size,
            attention=attention,
            rows=rows,
            value_norm=norm,
            keys=keys,
            cls=cls,
            random=self.uniform(f"llm {cut.layer}", frame.size) if "random" in needs else None,
        )

    def _next_last_row(self, index: int, frame: Frame, x: Tensor) -> Tensor:
        """Return the attention [M, N] that the prompt's last token would pay in a layer that has not run yet."""
        layer = self.anatomy.llm_layers[index]
        module, h = layer.self_attn, layer.input_layernorm(x)
        embedding = self.anatomy.llm.rotary_emb(x, frame.position)
        k = rotate(heads(module.k_proj(h), module.head_dim), embedding)
        q = rotate(heads(module.q_proj(h[:, -1:]), module.head_dim), last(embedding))
        return frame.visual(row_attention(q[:, :, 0], k, hidden(frame), module.scaling))


def hidden(frame: Frame) -> Tensor | None:
    """Return what is added to logits [B, L] so that padding is not seen, None where there is none."""
    return None if frame.full else torch.finfo(torch.float32).min * (~frame.valid).float()
