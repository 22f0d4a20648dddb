"""The ViT seam: cuts before a layer, or inside it between attention and MLP.

Hooks cannot cut between attention and MLP, so each layer's `forward` is bound anew. Shapes: M images, N patches left,
1 + N with CLS in front, D width. Images with fewer tokens are padded at the end with tokens of size 0.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from harness.model.anatomy import Anatomy
from harness.model.attention import is_flash
from harness.model.cut import reduced, uneven
from harness.model.draw import digest, uniform
from harness.model.plan import NEXT, OWN_ROW, Plan, Planned
from harness.model.probe import Projections, heads, joint_row, mean_attention, overhear, row_attention, value_norm
from methods.interface import Cut, Reduced, Stage, View
from methods.reduce import take
from methods.score import rollout_row


class Vision:
    """The state of one pass through the ViT, and the layers' new forwards."""

    patch: Tensor  # [M, N] the patch each token stands for, -1 = padding
    size: Tensor  # [M, N] how many patches it stands for, 0 = padding
    count: Tensor  # [M] tokens of each image
    counts: list[Tensor]  # per layer [M]: tokens that entered it
    feature_cls: Tensor  # [M, D] the CLS of the layer that the LLM reads
    last_cls: Tensor  # [M, D] the CLS after the last layer
    pixels: Tensor  # [M, 3, H, W] as the processor gave them
    lower: list[Tensor]  # [M, 1 + N, 1 + N] attention of the layers since the last cut, for a rollout
    rows: list[Tensor]  # [M, 1 + N] CLS's attention in the layers since the last cut, where it is wanted
    padded: bool  # whether some image has fewer tokens than another
    merged: bool  # whether sizes differ from 1

    def __init__(self, anatomy: Anatomy, plan: Plan, seed: int) -> None:
        self.anatomy, self.plan, self.seed = anatomy, plan, seed
        cuts = [*plan.before.values(), *plan.inside.values()]
        self.proportional = any(stage.proportional for planned in cuts for stage, _ in planned)
        self.digests: list[bytes] | None = None

    def see(self, pixels: Tensor, patch: Tensor, size: Tensor) -> None:
        """Start a pass on these pixels, of which the ViT gets patches that stand for `patch` [M, N], with `size`."""
        self.pixels, self.digests = pixels, None
        self.patch, self.size = patch, size
        self.count = patch.new_full((len(patch),), patch.shape[1])
        self.counts, self.lower, self.rows = [], [], []
        self.padded = self.merged = False

    def forward(self, index: int, layer: Any, x: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Tensor:
        """Run one layer with its cuts. A cut before layer l is made at the end of layer l − 1, so that the features
        that LLaVA reads there are cut too.
        """
        if index == 0:
            x = self._cut(self.plan.before.get(0, []), x, layer, None, None)
        if index < self.anatomy.shape.vit_layers:
            self.counts.append(self.count)
        bias = self._bias(x.dtype)
        mask = bias if bias is None or not is_flash(layer.self_attn) else bias[:, 0, 0] == 0
        with overhear(layer.self_attn) if index in self.plan.heard else nullcontext() as heard:
            attended, _ = layer.self_attn(layer.layer_norm1(x), attention_mask=mask, **kwargs)
        if heard is not None:
            self._listen(index, layer, heard, bias)
        x = self._cut(self.plan.inside.get(index, []), x + attended, layer, heard, bias)
        x = x + layer.mlp(layer.layer_norm2(x))
        x = self._cut(self.plan.before.get(index + 1, []), x, layer, heard, bias)
        if index + 1 == self.anatomy.shape.vit_layers:
            self.feature_cls = x[:, 0]
        if index + 1 == len(self.anatomy.vit_layers):
            self.last_cls = x[:, 0]
        return x

    def _listen(self, index: int, layer: Any, heard: Projections, bias: Tensor | None) -> None:
        """Keep of a layer's attention what a later cut will want."""
        attention = layer.self_attn
        q, k = (heads(part, attention.head_dim) for part in (heard.q, heard.k))
        added = None if bias is None else bias[:, 0]
        if index in self.plan.rows:
            self.rows.append(row_attention(q[:, :, 0], k, None if added is None else added[:, 0], attention.scale))
        if index in self.plan.matrix:
            self.lower.append(mean_attention(q, k, added, attention.scale))

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to every query's logits [M, 1, 1, 1 + N], None where that is nothing."""
        if not self.padded and not (self.proportional and self.merged):
            return None
        size = self.size if self.proportional else (self.size > 0).float()
        bias = torch.cat([size.new_zeros(len(size), 1), size.log()], dim=1)
        return bias[:, None, None].to(dtype)

    def _cut(
        self, cuts: list[Planned], x: Tensor, layer: Any, heard: Projections | None, bias: Tensor | None
    ) -> Tensor:
        for stage, cut in cuts:
            left = reduced(stage, self._view(stage, cut, x, layer, heard, bias), cut.tokens, ragged=self.padded)
            x = self._apply(x, left, padding=stage.adaptive or self.padded)
            if stage.adaptive:  # asked of the device only here: no mask, and its cost, where nothing is padded
                self.padded = uneven(left)
            self.lower, self.rows = [], []
        return x

    def _view(
        self, stage: Stage, cut: Cut, x: Tensor, layer: Any, heard: Projections | None, bias: Tensor | None
    ) -> View:
        attention = rows = norm = keys = None
        if stage.needs & NEXT:
            above = self.anatomy.vit_layers[cut.layer]
            h = above.layer_norm1(x)
            k = above.self_attn.k_proj(h).float()
            if "next_keys" in stage.needs:
                keys = k[:, 1:]
            if "next_cls_row" in stage.needs:
                added = 0.0 if bias is None else bias[:, 0, 0].float()
                attention = joint_row(above.self_attn.q_proj(h[:, 0]).float(), k, added)[:, 1:]
        if stage.needs & OWN_ROW:
            row = self.rows[-1]
            if "cls_rows" in stage.needs:
                rows = torch.stack(self.rows, dim=1)[:, :, 1:]
            elif "cls_rollout" in stage.needs:
                source = torch.zeros_like(row)
                source[:, 0] = 1
                attention = rollout_row(row, self.lower, source, identity=stage.identity)[:, 1:]
            else:
                attention = row[:, 1:]
        if "value_norm" in stage.needs:
            assert heard is not None
            norm = value_norm(heard.v, 1)[:, 1:]
        if "keys" in stage.needs:
            assert heard is not None
            keys = heads(heard.k, layer.self_attn.head_dim)[:, :, 1:].float().mean(dim=1)
        return View(
            x=x[:, 1:],
            size=self.size,
            attention=attention,
            rows=rows,
            value_norm=norm,
            keys=keys,
            cls=x[:, 0] if "cls" in stage.needs else None,
            random=self.uniform(str(cut.layer), self.size) if "random" in stage.needs else None,
        )

    def _apply(self, x: Tensor, left: Reduced, *, padding: bool) -> Tensor:
        """Return [CLS, what stays], padding at the end, if there is any."""
        index = left.index.clamp(min=0) if padding else left.index
        patches = take(x[:, 1:], index) if left.x is None else left.x
        self.patch = self.patch.gather(1, index)
        self.size = self.size.gather(1, index) if left.size is None else left.size
        self.count = self.count.new_full(self.count.shape, index.shape[1])
        if padding:
            stays = left.index >= 0
            self.patch, self.size = self.patch.masked_fill(~stays, -1), self.size.masked_fill(~stays, 0)
            self.count = stays.sum(dim=1)
        self.merged = self.merged or left.size is not None
        return torch.cat([x[:, :1], patches.to(x.dtype)], dim=1)

    def uniform(self, place: str, size: Tensor) -> Tensor:
        """Return random numbers like size [M, N] for the images last seen."""
        if self.digests is None:
            self.digests = digest(self.pixels)
        return uniform(self.digests, self.seed, place, size.shape[1]).to(size.device)
