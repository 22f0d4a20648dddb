"""LLaVA-PruMerge+ (Shang et al., 2024): PruMerge with evenly spread centres besides."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from methods.interface import Method, Positions, Reduced, Shape, Stage, Tokens, View
from methods.prumerge import merge_around, merging_stage, outlying
from methods.reduce import flags, keep_all, keep_top
from methods.schedule import check_budget


@dataclass(frozen=True, kw_only=True)
class PruMergePlus(Method):
    """PruMerge whose centres are the outliers and an even sample of the patches, about three for each outlier.

    Source: the released code: every int(int(1/ratio)/3)-th of the first N − 1 patches, ratio being the outliers' share.
    With `tokens`, ours, every image keeps as many: a quarter of the centres by attention, the others evenly over the
    patches that are left. The rest is as in PruMerge.
    """

    name: ClassVar[str] = "prumerge+"
    paper: ClassVar[str] = "LLaVA-PruMerge (2024)"

    tokens: Tokens | None = None
    positions: Positions = "contiguous"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return one stage on the ViT's features. Without `tokens` its cut is an upper bound, all patches."""
        if self.tokens is None:
            return (merging_stage(shape, merge_outliers_and_sample, shape.patches, adaptive=True),)
        check_budget(self.tokens, shape)
        return (merging_stage(shape, merge_top_and_sample, self.tokens, adaptive=False),)


def merge_outliers_and_sample(view: View, n: int) -> Reduced:
    """Merge around the outliers of attention and an even sample."""
    assert view.attention is not None
    N = view.x.shape[1]
    centre = outlying(view.attention)
    step = (N // centre.sum(dim=1, keepdim=True) // 3).clamp(min=1)
    slot = torch.arange(N, device=centre.device)
    return merge_around(view, centre | ((slot % step == 0) & (slot < N - 1)))


def merge_top_and_sample(view: View, n: int) -> Reduced:
    """Merge around a quarter of n − 1 tokens by attention and the others evenly sampled from what is left."""
    assert view.attention is not None
    N = view.x.shape[1]
    if n >= N:
        return keep_all(view)
    attended = min(n - 1, max(1, round((n - 1) / 4)))
    centre = flags(keep_top(view.attention, attended).index, N)
    left = (~centre).int().argsort(dim=1, descending=True, stable=True)
    count = n - 1 - attended
    number = torch.arange(count, device=left.device) * (N - attended) // max(count, 1)
    return merge_around(view, centre.scatter(1, left[:, number], True))
