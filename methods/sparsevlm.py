"""SparseVLM (Zhang et al., ICML 2025): visual tokens rated by the words that matter, the dropped ones recycled."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from methods.interface import Cut, Method, Positions, Reduced, Shape, Stage, Tokens, View
from methods.reduce import density_peaks, keep_all, take
from methods.schedule import Budget, check_budget, geometric_cuts

AFTER = (2, 6, 15)  # of 32 layers
PUBLISHED = {192: (300, 200, 110), 128: (303, 110, 36), 64: (66, 30, 17)}  # kept by rating, of 576, after each of these


@dataclass(frozen=True, kw_only=True)
class SparseVLM(Method):
    """After layers 2, 6 and 15 of 32, keep what the raters attend to, and cluster the best of the rest.

    Raters are the text tokens behind the image that its visual tokens are most like, at the LLM's input; rating is
    their mean attention, head mean, in the layer just run. Of the d dropped the best int(0.3 d) + 1 = m become
    m // 10 + 1 tokens, the means of DPC-kNN clusters, behind the kept ones. Source: the released code, version 1.

    budget: as FastV's. At 192, 128 and 64 tokens the mean is nominal: on LLaVA-1.5-7B the published lists are used,
    whose means over the layers, recycled tokens included, are 207, 145 and 82. Elsewhere, ours, every cut drops the
    same share, and in a model of another depth the cuts are at the same fractions of it.
    """

    name: ClassVar[str] = "sparsevlm"
    paper: ClassVar[str] = "SparseVLM (ICML 2025)"

    tokens: Tokens
    budget: Budget = "mean"
    positions: Positions = "contiguous"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return one LLM stage, whose cuts count the recycled tokens too.

        Errors: ValueError that names the mean budgets that can be reached.
        """
        check_budget(self.tokens, shape)
        layers = tuple(dict.fromkeys(1 + round(after * shape.llm_layers / 32) for after in AFTER))
        if self.budget == "mean" and self.tokens in PUBLISHED and shape.patches == 576 and shape.llm_layers == 32:
            totals = [shape.patches]
            for kept in PUBLISHED[self.tokens]:
                totals.append(kept + recycled(totals[-1] - kept)[1])
            cuts = tuple(Cut(layer, total) for layer, total in zip(layers, totals[1:], strict=True))
        else:
            cuts = geometric_cuts(layers, self.tokens, self.budget, shape)
        return (Stage(seam="llm", reduce=keep_and_recycle, cuts=cuts, needs=frozenset({"rater_row"})),)


def recycled(dropped: int) -> tuple[int, int]:
    """Return how many of the dropped tokens are recycled, and to how many tokens."""
    if dropped == 0:
        return 0, 0
    best = int(0.3 * dropped) + 1
    return best, best // 10 + 1


def keep_and_recycle(view: View, n: int) -> Reduced:
    """Return the best rated tokens in their order and the clusters of the best of the rest, n in all.

    Where the clusters alone would be more than n, there are n of them and no rated token.
    """
    assert view.attention is not None
    N = view.x.shape[1]
    if n >= N:
        return keep_all(view)
    kept = max((k for k in range(n) if k + recycled(N - k)[1] <= n), default=0)
    best, clusters = recycled(N - kept)[0], n - kept
    ranked = view.attention.sort(dim=-1, descending=True, stable=True).indices
    stay, pool = (part.sort(dim=-1).values for part in (ranked[:, :kept], ranked[:, kept : kept + best]))
    x = take(view.x, pool).float()
    centres, cluster = density_peaks(x, clusters)
    member = F.one_hot(cluster, clusters).transpose(1, 2).float()  # [B, clusters, m]
    mean = member @ x / member.sum(dim=2, keepdim=True)
    size = (member @ view.size.gather(1, pool).unsqueeze(2)).squeeze(2)
    return Reduced(
        index=torch.cat([stay, pool.gather(1, centres)], dim=1),
        x=torch.cat([take(view.x, stay), mean.to(view.x.dtype)], dim=1),
        size=torch.cat([view.size.gather(1, stay), size], dim=1),
    )
