"""VisionZip (Yang et al., CVPR 2025): the patches that CLS attends to most, and the others merged into a few."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F

from methods.interface import Cut, Method, Positions, Reduced, Shape, Stage, Tokens, View
from methods.reduce import flags, keep_all, keep_top, take
from methods.schedule import check_budget


@dataclass(frozen=True, kw_only=True)
class VisionZip(Method):
    """On the ViT's features: CLS, the dominant tokens by its attention in the layer below, and contextual ones.

    contextual: how many of the tokens are merged ones; by default 5 in 32, the paper's 30 of 192, 20 of 128 and 10 of
    64. Source: the released code, Section 3.2 of the paper. Ours: CLS, which has no patch, stands where the first
    patch stood at whose place no other token stands; a budget of all patches prunes nothing, so CLS does not enter.
    """

    name: ClassVar[str] = "visionzip"
    paper: ClassVar[str] = "VisionZip (CVPR 2025)"

    tokens: Tokens
    contextual: Annotated[int, "0 to tokens - 1"] | None = None
    positions: Positions = "contiguous"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return one stage on the ViT's features. Errors: ValueError for more contextual tokens than there can be."""
        check_budget(self.tokens, shape)
        contextual = round(5 * self.tokens / 32) if self.contextual is None else self.contextual
        if not 0 <= contextual < self.tokens:
            raise ValueError(f"contextual: {contextual} is not possible; allowed are 0 to {self.tokens - 1}")
        return (
            Stage(
                seam="vit",
                reduce=partial(dominant_and_contextual, contextual=contextual),
                cuts=(Cut(shape.vit_layers, self.tokens),),
                needs=frozenset({"cls", "cls_row", "keys"}),
            ),
        )


def dominant_and_contextual(view: View, n: int, contextual: int) -> Reduced:
    """Return CLS, n − contextual − 1 dominant tokens in their order, and the contextual ones."""
    assert view.attention is not None and view.keys is not None and view.cls is not None
    N = view.x.shape[1]
    if n >= N:
        return keep_all(view)
    dominant = keep_top(view.attention, n - contextual - 1).index
    rest = (~flags(dominant, N)).int().argsort(dim=1, descending=True, stable=True)[:, : N - dominant.shape[1]]
    slot = torch.arange(rest.shape[1], device=rest.device)
    step = max(1, rest.shape[1] // max(contextual, 1))
    is_target = (slot % step == 0) & (slot < contextual * step)
    targets, others = rest[:, is_target.int().argsort(descending=True, stable=True)].split(
        [contextual, rest.shape[1] - contextual], dim=1
    )

    x, size = view.x.float(), view.size
    merged, merged_size = take(x, targets), size.gather(1, targets)
    if contextual:
        keys = F.normalize(view.keys, dim=-1)
        nearest = (take(keys, others) @ take(keys, targets).transpose(1, 2)).argmax(dim=2)
        joined = F.one_hot(nearest, contextual).transpose(1, 2).float()  # [B, targets, others]
        count = joined.sum(dim=2, keepdim=True)
        merged = merged + joined @ take(x, others) / count.clamp(min=1)
        merged_size = merged_size + (joined @ size.gather(1, others).unsqueeze(2)).squeeze(2)
    return Reduced(
        index=torch.cat([others[:, :1], dominant, targets], dim=1),
        x=torch.cat([view.cls.unsqueeze(1), take(view.x, dominant), merged.to(view.x.dtype)], dim=1),
        size=torch.cat([torch.ones_like(size[:, :1]), size.gather(1, dominant), merged_size], dim=1),
    )
