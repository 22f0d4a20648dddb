"""The ViT seam: cuts before a layer, or inside it between attention and MLP.

Hooks cannot cut between attention and MLP, so each layer's `forward` is bound anew. Shapes: M images, N patches left,
1 + N with CLS in front, D width. Images with fewer tokens are padded at the end with tokens of size 0.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from harness.model.anatomy import Anatomy
from harness.model.draw import digest, uniform
from harness.model.plan import Plan, Planned
from harness.model.probe import Projections, heads, mean_attention, overhear, row_attention, value_norm
from methods.interface import Reduced, Stage, View
from methods.score import rollout_row


class Vision:
    """The state of one pass through the ViT, and the layers' new forwards."""

    patch: Tensor  # [M, N] the patch each token stands for, -1 = padding
    size: Tensor  # [M, N] how many patches it stands for, 0 = padding
    counts: list[Tensor]  # per layer [M]: tokens that entered it
    feature_cls: Tensor  # [M, D] the CLS of the layer that the LLM reads
    last_cls: Tensor  # [M, D] the CLS after the last layer
    pixels: Tensor  # [M, 3, H, W]
    lower: list[Tensor]  # [M, 1 + N, 1 + N] attention of the layers since the last cut, for a rollout
    padded: bool  # whether some image has fewer tokens than another
    merged: bool  # whether sizes differ from 1

    def __init__(self, anatomy: Anatomy, plan: Plan, seed: int) -> None:
        self.anatomy, self.plan, self.seed = anatomy, plan, seed
        cuts = [*plan.before.values(), *plan.inside.values()]
        self.proportional = any(stage.proportional for planned in cuts for stage, _ in planned)
        self.digests: list[bytes] | None = None

    def see(self, pixels: Tensor) -> None:
        """Start a pass on these pixels."""
        self.pixels, self.digests = pixels, None

    def forward(self, index: int, layer: Any, x: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Tensor:
        """Run one layer with its cuts. A cut before layer l is made at the end of layer l − 1, so that the features
        that LLaVA reads there are cut too.
        """
        if index == 0:
            self._begin(x)
            x = self._cut(self.plan.before.get(0, []), x, layer, None, None)
        if index < self.anatomy.shape.vit_layers:
            self.counts.append((self.size > 0).sum(dim=1))
        bias = self._bias(x.dtype)
        with overhear(layer.self_attn) if index in self.plan.heard else nullcontext() as heard:
            attended, _ = layer.self_attn(layer.layer_norm1(x), attention_mask=bias, **kwargs)
        if heard is not None and index in self.plan.matrix:
            added = heard.k.new_zeros(1, 1, 1) if bias is None else bias[:, 0]
            q, k = (heads(part, layer.self_attn.head_dim) for part in (heard.q, heard.k))
            self.lower.append(mean_attention(q, k, added, layer.self_attn.scale))
        x = self._cut(self.plan.inside.get(index, []), x + attended, layer, heard, bias)
        x = x + layer.mlp(layer.layer_norm2(x))
        x = self._cut(self.plan.before.get(index + 1, []), x, layer, heard, bias)
        if index + 1 == self.anatomy.shape.vit_layers:
            self.feature_cls = x[:, 0]
        if index + 1 == len(self.anatomy.vit_layers):
            self.last_cls = x[:, 0]
        return x

    def _begin(self, x: Tensor) -> None:
        M, N = x.shape[0], x.shape[1] - 1
        self.patch = torch.arange(N, device=x.device).expand(M, -1)
        self.size = torch.ones(M, N, device=x.device)
        self.counts, self.lower = [], []
        self.padded = self.merged = False

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
            reduced = stage.reduce(self._view(stage, cut.layer, x, layer, heard, bias), cut.tokens)
            x = self._apply(x, reduced)
            if stage.adaptive:  # asked of the device only here: no mask, and its cost, where nothing is padded
                self.padded = bool((self.size == 0).any())
            self.lower = []
        return x

    def _view(
        self, stage: Stage, index: int, x: Tensor, layer: Any, heard: Projections | None, bias: Tensor | None
    ) -> View:
        attention = norm = keys = None
        if heard is not None:
            width, scaling = layer.self_attn.head_dim, layer.self_attn.scale
            added = heard.k.new_zeros(1, 1) if bias is None else bias[:, 0, 0]
            k = heads(heard.k, width)
            if stage.needs & {"cls_row", "cls_rollout"}:
                row = row_attention(heads(heard.q[:, :1], width)[:, :, 0], k, added, scaling)
                if "cls_rollout" in stage.needs:
                    source = torch.zeros_like(row)
                    source[:, 0] = 1
                    row = rollout_row(row, self.lower, source)
                attention = row[:, 1:]
            if "value_norm" in stage.needs:
                norm = value_norm(heard.v, 1)[:, 1:]
            if "keys" in stage.needs:
                keys = k[:, :, 1:].float().mean(dim=1)
        return View(
            x=x[:, 1:],
            size=self.size,
            attention=attention,
            value_norm=norm,
            keys=keys,
            cls=x[:, 0] if "cls" in stage.needs else None,
            random=self.uniform(str(index), self.size) if "random" in stage.needs else None,
        )

    def _apply(self, x: Tensor, reduced: Reduced) -> Tensor:
        """Return [CLS, what stays], padding at the end."""
        stays = reduced.index >= 0
        index = reduced.index.clamp(min=0)
        patches = reduced.x
        if patches is None:
            patches = x[:, 1:].gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        size = self.size.gather(1, index) if reduced.size is None else reduced.size
        self.patch = self.patch.gather(1, index).masked_fill(~stays, -1)
        self.size = size.masked_fill(~stays, 0)
        self.merged = self.merged or reduced.size is not None
        return torch.cat([x[:, :1], patches.to(x.dtype)], dim=1)

    def uniform(self, place: str, size: Tensor) -> Tensor:
        """Return random numbers like size [M, N] for the images last seen."""
        if self.digests is None:
            self.digests = digest(self.pixels)
        return uniform(self.digests, self.seed, place, size.shape[1]).to(size.device)
