"""The ViT seam: cuts before a layer, or inside it between attention and MLP.

Hooks cannot cut between attention and MLP, so each layer's `forward` is bound anew. Shapes: M images, N patches left,
1 + N with CLS in front, D width. Images with fewer tokens are padded at the end with tokens of size 0.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor

from harness.model.anatomy import Anatomy
from harness.model.probe import Projections, heads, mean_attention, overhear, row_attention, value_norm
from methods.interface import Cut, Reduced, Stage, View
from methods.score import rollout_row


class Vision:
    """The state of one pass through the ViT, and the layers' new forwards."""

    patch: Tensor  # [M, N] the patch each token stands for, -1 = padding
    size: Tensor  # [M, N] how many patches it stands for, 0 = padding
    counts: list[Tensor]  # per layer [M]: tokens that entered it
    feature_cls: Tensor  # [M, D] the CLS of the layer that the LLM reads
    last_cls: Tensor  # [M, D] the CLS after the last layer
    digests: list[bytes]  # per image, of its pixels

    def __init__(self, anatomy: Anatomy, stages: list[Stage], seed: int) -> None:
        self.anatomy, self.stages, self.seed = anatomy, stages, seed
        self.proportional = any(stage.proportional for stage in stages)
        self.pixels: Tensor | None = None
        self.before: dict[int, list[tuple[Stage, Cut]]] = {}
        self.inside: dict[int, list[tuple[Stage, Cut]]] = {}
        for stage in stages:
            for cut in stage.cuts:
                (self.inside if stage.inside else self.before).setdefault(cut.layer, []).append((stage, cut))
        self.lower: list[Tensor] = []

    def forward(self, index: int, layer: Any, x: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Tensor:
        """Run one layer with its cuts. A cut before layer l is made at the end of layer l − 1, so that the features
        that LLaVA reads there are cut too.
        """
        if index == 0:
            self._begin(x)
            x = self._cut(self.before.get(0, []), 0, x, None, None)
        if index < self.anatomy.shape.vit_layers:
            self.counts.append((self.size > 0).sum(dim=1))
        bias = self._bias(x.dtype)
        here, after = self.inside.get(index, []), self.before.get(index + 1, [])
        listens = bool(here or after or self._rolls_over(index))
        if listens:
            with overhear(layer.self_attn) as heard:
                attended, _ = layer.self_attn(layer.layer_norm1(x), attention_mask=bias, **kwargs)
            if self._rolls_over(index) and not after:
                self.lower.append(self._matrix(layer, heard, bias))
        else:
            heard = None
            attended, _ = layer.self_attn(layer.layer_norm1(x), attention_mask=bias, **kwargs)
        x = x + attended
        x = self._cut(here, index, x, layer, heard, bias)
        x = x + layer.mlp(layer.layer_norm2(x))
        x = self._cut(after, index + 1, x, layer, heard, bias)
        if index + 1 == self.anatomy.shape.vit_layers:
            self.feature_cls = x[:, 0]
        if index + 1 == len(self.anatomy.vit_layers):
            self.last_cls = x[:, 0]
        return x

    def _begin(self, x: Tensor) -> None:
        M, N = x.shape[0], x.shape[1] - 1
        self.patch = torch.arange(N, device=x.device).expand(M, -1)
        self.size = torch.ones(M, N, device=x.device)
        self.counts, self.lower, self.digests = [], [], []
        self.padded = self.merged = False

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to every query's logits [M, 1, 1, 1 + N], None where that is nothing."""
        if not self.padded and not (self.proportional and self.merged):
            return None
        size = self.size if self.proportional else (self.size > 0).float()
        bias = torch.cat([size.new_zeros(len(size), 1), size.log()], dim=1)
        return bias[:, None, None].to(dtype)

    def _rolls_over(self, index: int) -> bool:
        """Whether a rollout of a later cut goes through this layer."""
        return any("cls_rollout" in stage.needs and stage.cuts[-1].layer > index for stage in self.stages)

    def _cut(
        self,
        cuts: list[tuple[Stage, Cut]],
        layer_index: int,
        x: Tensor,
        layer: Any,
        heard: Projections | None,
        bias: Tensor | None = None,
    ) -> Tensor:
        for stage, cut in cuts:
            view = self._view(stage, layer_index, x, layer, heard, bias)
            reduced = stage.reduce(view, cut.tokens)
            x = self._apply(x, reduced)
            self.padded = self.padded or stage.adaptive
            self.lower = []
        return x

    def _view(
        self,
        stage: Stage,
        layer_index: int,
        x: Tensor,
        layer: Any,
        heard: Projections | None,
        bias: Tensor | None,
    ) -> View:
        attention = norm = keys = None
        if layer is not None and heard is not None:
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
            random=self._random(layer_index) if "random" in stage.needs else None,
        )

    def _matrix(self, layer: Any, heard: Projections, bias: Tensor | None) -> Tensor:
        added = heard.k.new_zeros(1, 1, 1) if bias is None else bias[:, 0]
        width = layer.self_attn.head_dim
        return mean_attention(heads(heard.q, width), heads(heard.k, width), added, layer.self_attn.scale)

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

    def _random(self, layer_index: int) -> Tensor:
        """Return uniform numbers [M, N] that depend on the image, the seed and the layer alone."""
        if not self.digests:
            assert self.pixels is not None
            pixels = self.pixels.detach().to("cpu", torch.float32).contiguous().numpy()
            self.digests = [hashlib.sha256(image.tobytes()).digest() for image in pixels]
        rows = []
        for image_digest in self.digests:
            digest = hashlib.sha256(f"{self.seed}/{layer_index}/".encode() + image_digest).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            rows.append(torch.rand(self.size.shape[1], generator=generator))
        return torch.stack(rows).to(self.size.device)
