"""Reductions: which tokens go on after a cut, pure tensor functions. B images, N tokens enter, n go on."""

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.interface import Reduced, View


def keep_top(score: Tensor, n: int) -> Reduced:
    """Keep the n tokens of highest score [B, N], in their original order; on a tie the earlier token wins."""
    return Reduced(score.sort(dim=-1, descending=True, stable=True).indices[:, :n].sort(dim=-1).values)


def keep_all(view: View) -> Reduced:
    """Keep every token as it is."""
    B, N = view.size.shape
    return Reduced(torch.arange(N, device=view.size.device).expand(B, -1))


def keep_where(keep: Tensor) -> Reduced:
    """Keep what is flagged [B, N], in its order: as many of an image as it has flags."""
    N = keep.shape[1]
    index = torch.arange(N, device=keep.device).where(keep, N).sort(dim=-1).values[:, : int(keep.sum(dim=1).max())]
    return Reduced(index.masked_fill(index == N, -1))


def flags(index: Tensor, N: int) -> Tensor:
    """Return a bool [B, N] that is true at index [B, K]."""
    return torch.zeros(len(index), N, dtype=torch.bool, device=index.device).scatter(1, index, True)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return x [B, N, D] at index [B, K]: [B, K, D]; −1 reads the first token."""
    return x.gather(1, index.clamp(min=0).unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def cell_centres(before: int, after: int, device: torch.device) -> Tensor:
    """Return the slots [after²] of a grid of `before`² tokens at the centres of after² cells."""
    centre = torch.arange(after, device=device).mul(2).add(1).mul(before).div(2 * after, rounding_mode="floor")
    return (centre[:, None] * before + centre[None, :]).flatten()


def density_peaks(x: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Cluster tokens x [B, M, D] by DPC-kNN: the clusters' centres [B, clusters] and each token's cluster [B, M].

    Distances are divided by √D. Density: exp(−mean squared distance to the `clusters` nearest, itself included); score:
    density × distance to the nearest denser token (to the farthest of all, for the densest). Centres come highest score
    first; on a tie the earlier token wins. Source: SparseVLM's released code, which follows TCFormer (CVPR 2022) and
    breaks ties of density by random noise; ours does not.
    """
    x = x.float()
    distance = pair_distance(x) / x.shape[-1] ** 0.5
    density = (-distance.sort(dim=-1).values[:, :, :clusters].square().mean(dim=-1)).exp()
    denser = density.unsqueeze(1) > density.unsqueeze(2)
    apart = torch.where(denser, distance, distance.flatten(1).amax(dim=1)[:, None, None]).amin(dim=-1)
    centres = (apart * density).sort(dim=-1, descending=True, stable=True).indices[:, :clusters]
    cluster = take(distance, centres).argmin(dim=1)
    own = torch.arange(clusters, device=x.device).expand_as(centres)
    return centres, cluster.scatter(1, centres, own)


def pair_distance(x: Tensor, rows: int = 16) -> Tensor:
    """Return the Euclidean distances [B, M, M] of tokens x [B, M, D], from differences, so that equal ones have 0.

    `rows` at a time against those behind them: that kernel is slow, and this is half of its work, bit for bit the same.
    """
    B, M = x.shape[:2]
    distance = x.new_empty(B, M, M)
    for start in range(0, M, rows):
        stop = start + rows
        block = torch.cdist(x[:, start:stop], x[:, start:], compute_mode="donot_use_mm_for_euclid_dist")
        distance[:, start:stop, start:] = block
        distance[:, start:, start:stop] = block.mT
    return distance


def bipartite_merge(view: View, n: int) -> Reduced:
    """Merge the N − n most similar pairs across two alternating sets, as size-weighted means (ToMe, Section 3).

    A and B are the even and odd positions of a sequence that starts with CLS, which never merges; so among the
    patches A is the odd ones and B the even. Each token of A proposes its most similar token of B by keys; order
    afterwards: the unmerged of A, then B, both ascending. Where nothing is to merge the order stays, as in the released
    code.
    """
    assert view.keys is not None
    B, N, _ = view.x.shape
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
    joined = F.one_hot(target, b_sum.shape[1]).transpose(1, 2).float()  # a scatter of floats differs from run to run
    b_sum = b_sum + joined @ take(a_sum, merged)
    b_mean = (b_sum / new_size.unsqueeze(-1)).to(view.x.dtype)

    b_slots = torch.arange(0, N, 2, device=view.x.device).expand(B, -1)
    return Reduced(
        index=torch.cat([2 * unmerged + 1, b_slots], dim=1),
        x=torch.cat([take(view.x[:, 1::2], unmerged), b_mean], dim=1),
        size=torch.cat([a_size.gather(1, unmerged), new_size], dim=1),
    )
