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
from harness.model.ledger import Frame, Ledger
from harness.model.plan import Plan, Planned
from harness.model.probe import Projections, heads, overhear, row_attention, value_norm
from harness.model.rider import Rider, rotate
from methods.interface import Stage, View


class Language:
    """The LLM layers' new forwards; the ledger at hand is the state of one prefill."""

    ledger: Ledger
    entry: Frame  # what the caller's mask and positions are made for
    prefill: bool  # whether this pass is a prefill
    past: int  # new tokens that the cache holds already
    rider: Rider | None = None
    rider_position: Tensor  # [M] under `original` positions
    arranged: tuple[Frame, dict[str, Any]] | None  # the latest frame's mask and rotary embeddings
    heard: Projections | None  # of the layer just run, if a cut needs them; with that layer and its rotary embeddings
    layer: Any
    embedding: tuple[Tensor, Tensor]

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
        frame = frames[index]
        if frame is not self.entry:
            kwargs |= self._arrangement(index, frame, x, past_key_values)
        if not (self.prefill and index in self.plan.heard):
            return run(x, past_key_values=past_key_values, **kwargs)
        embedding = kwargs["position_embeddings"]
        with overhear(layer.self_attn) as heard:
            x = run(x, past_key_values=past_key_values, **kwargs)
        self.heard, self.layer, self.embedding = heard, layer, embedding
        if self.rider is not None and index < self.plan.rider:
            width = layer.self_attn.head_dim
            keys = rotate(heads(heard.k, width), embedding)
            queries = rotate(heads(heard.q, width), embedding) if index in self.plan.matrix else None
            self.rider.ride(layer, run, self.anatomy.llm.rotary_emb, frame, self._behind(frame), heard, keys, queries)
        return x

    def _behind(self, frame: Frame) -> Tensor:
        """Return the position [M] right behind each image."""
        if not self.contiguous:
            return self.rider_position
        return frame.position[frame.row, (frame.start + frame.count - 1).clamp(min=0)] + 1

    def _arrangement(self, index: int, frame: Frame, x: Tensor, cache: Cache | None) -> dict[str, Any]:
        """Return this layer's mask and rotary embeddings; layers of one frame share them."""
        if self.arranged is None or self.arranged[0] is not frame:
            B, Q = x.shape[:2]
            if self.prefill:
                valid, position = frame.valid, frame.position
            else:
                valid = torch.cat([frame.valid, frame.valid.new_ones(B, self.past + Q)], dim=1)
                position = self.positions(Q) - frame.shift[:, None]
            mask = create_causal_mask(self.anatomy.llm.config, x, valid.long(), cache, None, layer_idx=index)
            self.arranged = (
                frame,
                {
                    "attention_mask": mask,
                    "position_embeddings": self.anatomy.llm.rotary_emb(x, position),
                    "position_ids": None,
                },
            )
        return self.arranged[1]

    def positions(self, Q: int) -> Tensor:
        """Return the uncut positions [B, Q] of the tokens being decoded."""
        end = self.ledger.prompt_end
        return end[:, None] + self.past + torch.arange(Q, device=end.device)

    def begin(self, ledger: Ledger, *, prefill: bool, past: int) -> None:
        """Start a pass through the LLM."""
        self.ledger, self.entry, self.prefill, self.past = ledger, ledger.frames[0], prefill, past
        self.arranged = self.heard = None

    def _cut(self, cuts: list[Planned], x: Tensor) -> Tensor:
        frames = self.ledger.frames
        for stage, cut in cuts:
            reduced = stage.reduce(self._view(stage, cut.layer, frames[-1], x), cut.tokens)
            frames[-1], x = frames[-1].repack(x, reduced, contiguous=self.contiguous)
        self.heard = None
        return x

    def _view(self, stage: Stage, index: int, frame: Frame, x: Tensor) -> View:
        attention = norm = None
        if self.heard is not None:
            module = self.layer.self_attn
            if "rider_rollout" in stage.needs:
                assert self.rider is not None
                attention = self.rider.rollout(frame)
            elif "last_row" in stage.needs:
                q = rotate(
                    heads(self.heard.q[:, -1:], module.head_dim), (self.embedding[0][:, -1:], self.embedding[1][:, -1:])
                )
                k = rotate(heads(self.heard.k, module.head_dim), self.embedding)
                hidden = torch.finfo(torch.float32).min * (~frame.valid).float()
                row = row_attention(q[:, :, 0], k, hidden, module.scaling)
                attention = frame.visual(row)
            if "value_norm" in stage.needs:
                norm = frame.visual(value_norm(self.heard.v, module.num_key_value_groups))
        return View(
            x=frame.visual(x),
            size=frame.size,
            attention=attention,
            value_norm=norm,
            random=self.uniform(f"llm {index}", frame.size) if "random" in stage.needs else None,
        )
