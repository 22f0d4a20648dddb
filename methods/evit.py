"""EViT (Liang et al., ICLR 2022): keep the patches that CLS attends to and fuse the others into one token."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from methods.interface import Method, Reduced, Shape, Stage, Tokens, View
from methods.reduce import keep_all, take
from methods.schedule import check_budget, even_cuts


@dataclass(frozen=True, kw_only=True)
class EViT(Method):
    """Inside every ViT layer, between attention and MLP, the most attended patches go on and the rest become one token.

    Order: falling attention, the fused token last, which is an ordinary token from then on. Source: EViT, Section 3.2,
    and its released code, for the fused token's unnormalised sum; IVTP supplement, Section 2, for the budget: the same
    number goes in every layer, and n includes the fused token. Ours: it stands where the best dropped patch stood. The
    papers' TFLOPs count CLS among the 64.
    """

    name: ClassVar[str] = "evit"
    paper: ClassVar[str] = "EViT (ICLR 2022)"

    tokens: Tokens

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return one ViT stage that cuts inside every layer."""
        check_budget(self.tokens, shape)
        cuts = even_cuts(range(shape.vit_layers), shape.patches, self.tokens)
        return (Stage(seam="vit", reduce=fuse_inattentive, cuts=cuts, needs=frozenset({"cls_row"}), inside=True),)


def fuse_inattentive(view: View, n: int) -> Reduced:
    """Keep the n − 1 tokens of highest attention and fuse the others, weighted by their attention."""
    assert view.attention is not None
    if n >= view.x.shape[1]:
        return keep_all(view)
    ranked = view.attention.sort(dim=-1, descending=True, stable=True).indices
    kept, rest = ranked[:, : n - 1], ranked[:, n - 1 :]
    fused = view.attention.gather(1, rest).unsqueeze(1) @ take(view.x, rest).float()
    size = view.size.gather(1, ranked)
    return Reduced(
        index=ranked[:, :n],
        x=torch.cat([take(view.x, kept), fused.to(view.x.dtype)], dim=1),
        size=torch.cat([size[:, : n - 1], size[:, n - 1 :].sum(dim=1, keepdim=True)], dim=1),
    )
