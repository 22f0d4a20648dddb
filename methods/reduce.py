"""Reductions: which tokens go on after a cut, pure tensor functions. B images, N tokens enter, n go on."""

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.interface import Reduced, View


def keep_top(score: Tensor, n: int, size: Tensor) -> Reduced:
    """Keep the n tokens of highest score [B, N], in their original order; on a tie the earlier token wins.

    Padding (size 0) is never kept, so an image with fewer than n tokens keeps them all.
    """
    N = score.shape[1]
    lowest = torch.finfo(torch.float32).min
    score = score.float().clamp_min(lowest).masked_fill(size == 0, -torch.inf)
    best = score.sort(dim=-1, descending=True, stable=True).indices[:, :n]
    index = torch.where(size.gather(1, best) > 0, best, N).sort(dim=-1).values
    return Reduced(index.masked_fill(index == N, -1))


def bipartite_merge(view: View, n: int) -> Reduced:
    """Merge the N − n most similar pairs across two alternating sets, as size-weighted means (ToMe, Section 3).

    A and B are the even and odd positions of a sequence that starts with CLS, which never merges; so among the
    patches A is the odd ones and B the even. Each token of A proposes its most similar token of B by keys; order
    afterwards: the unmerged of A, then B, both ascending. Where nothing is to merge the order stays, as in the released
    code.
    """
    assert view.keys is not None
    B, N, D = view.x.shape
    r = N - n
    if r == 0:
        return Reduced(torch.arange(N, device=view.x.device).expand(B, -1))
    metric = F.normalize(view.keys.float(), dim=-1)
    similarity, partner = (metric[:, 1::2] @ metric[:, ::2].transpose(1, 2)).max(dim=-1)
    ranked = similarity.sort(dim=-1, descending=True, stable=True).indices
    merged, unmerged = ranked[:, :r], ranked[:, r:].sort(dim=-1).values
    target = partner.gather(1, merged)

    a_size, b_size = view.size[:, 1::2], view.size[:, ::2]
    moved = a_size.gather(1, merged)
    new_size = b_size.scatter_add(1, target, moved)

    weighted = view.x.float() * view.size.unsqueeze(-1)
    a_sum, b_sum = weighted[:, 1::2], weighted[:, ::2]
    b_sum = b_sum.scatter_add(1, target.unsqueeze(-1).expand(-1, -1, D), _gather(a_sum, merged))
    b_mean = (b_sum / new_size.unsqueeze(-1)).to(view.x.dtype)

    b_slots = torch.arange(0, N, 2, device=view.x.device).expand(B, -1)
    return Reduced(
        index=torch.cat([2 * unmerged + 1, b_slots], dim=1),
        x=torch.cat([_gather(view.x[:, 1::2], unmerged), b_mean], dim=1),
        size=torch.cat([a_size.gather(1, unmerged), new_size], dim=1),
    )


def _gather(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
