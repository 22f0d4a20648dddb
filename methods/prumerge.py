"""LLaVA-PruMerge (Shang et al., 2024): patches that CLS attends to beyond measure, each with its nearest merged in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.interface import Cut, Method, Need, Positions, Reduced, Shape, Stage, Tokens, View
from methods.reduce import flags, keep_all, keep_top, keep_where, take
from methods.schedule import check_budget
from methods.score import outliers

NEAREST = 32


@dataclass(frozen=True, kw_only=True)
class PruMerge(Method):
    """On the ViT's features: centres, each plus its 32 nearest weighted by attention, and the rest as one token.

    Attention and keys are the next ViT layer's on these features, all heads as one. Without `tokens` the number of
    centres adapts to the image: the outliers of attention by the interquartile rule. With `tokens` the same number of
    every image stays, the extra token among them. Source: the released code, in which the keys say what is near and
    neither sum is normalised. Ours: at least one centre; centres keep their order; the extra token stands, last, where
    the best dropped patch stood.
    """

    name: ClassVar[str] = "prumerge"
    paper: ClassVar[str] = "LLaVA-PruMerge (2024)"

    tokens: Tokens | None = None
    positions: Positions = "contiguous"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return one stage on the ViT's features; without `tokens` its cut is an upper bound, a quarter and one."""
        if self.tokens is None:
            return (merging_stage(shape, merge_outliers, shape.patches // 4 + 1, adaptive=True),)
        check_budget(self.tokens, shape)
        return (merging_stage(shape, merge_top, self.tokens, adaptive=False),)


def merging_stage(shape: Shape, reduce: Callable[[View, int], Reduced], tokens: int, *, adaptive: bool) -> Stage:
    """Return a stage on the features that the LLM gets, with what `merge_around` needs."""
    needs: frozenset[Need] = frozenset({"next_cls_row", "next_keys"})
    return Stage(seam="vit", reduce=reduce, cuts=(Cut(shape.vit_layers, tokens),), needs=needs, adaptive=adaptive)


def merge_outliers(view: View, n: int) -> Reduced:
    """Merge around the outliers of attention, at least one."""
    assert view.attention is not None
    return merge_around(view, outlying(view.attention))


def merge_top(view: View, n: int) -> Reduced:
    """Merge around the n − 1 most attended tokens."""
    assert view.attention is not None
    N = view.x.shape[1]
    return keep_all(view) if n >= N else merge_around(view, flags(keep_top(view.attention, n - 1).index, N))


def outlying(attention: Tensor) -> Tensor:
    """Return the outliers [B, N] of attention, the most attended token always."""
    return outliers(attention).scatter(1, attention.argmax(dim=1, keepdim=True), True)


def merge_around(view: View, centre: Tensor) -> Reduced:
    """Return the centres, flagged [B, N], each with its nearest merged in, and the token of all others, if any."""
    assert view.attention is not None and view.keys is not None
    N, x, attention = view.x.shape[1], view.x.float(), view.attention
    index = keep_where(centre).index
    keys = F.normalize(view.keys, dim=-1)
    itself = F.one_hot(index.clamp(min=0), N).bool()
    similarity = (take(keys, index) @ keys.transpose(1, 2)).masked_fill(itself, -torch.inf)  # [B, K, N]
    near = similarity.sort(dim=-1, descending=True, stable=True).indices[:, :, : min(NEAREST, N - 1)]
    weight = attention.unsqueeze(1).expand_as(similarity)
    merged = take(x, index) + torch.zeros_like(similarity).scatter(2, near, weight.gather(2, near)) @ x

    extra = (attention * ~centre).unsqueeze(1) @ x
    place = attention.masked_fill(centre, -1).argmax(dim=1, keepdim=True)
    place = place.masked_fill(centre.all(dim=1, keepdim=True), -1)
    left = (view.size * ~centre).sum(dim=1, keepdim=True)
    size = view.size.gather(1, index.clamp(min=0)) * (index >= 0)

    end = centre.sum(dim=1, keepdim=True)  # each image's extra token comes right behind its own last centre
    K = min(index.shape[1] + 1, N)  # where all are centres there is none
    return Reduced(
        index=F.pad(index, (0, 1), value=-1).scatter(1, end, place)[:, :K],
        x=F.pad(merged, (0, 0, 0, 1)).scatter(1, end.unsqueeze(2).expand_as(extra), extra)[:, :K].to(view.x.dtype),
        size=F.pad(size, (0, 1)).scatter(1, end, left)[:, :K],
    )
