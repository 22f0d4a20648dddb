"""Scores: one number a visual token, pure tensor functions. B images, N visual tokens, M all tokens."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cls_similarity(x: Tensor, cls: Tensor) -> Tensor:
    """Return the cosine similarity [B, N] of hidden states x [B, N, D] with the CLS token's [B, D]."""
    return F.cosine_similarity(x.float(), cls.float().unsqueeze(1), dim=-1)


def rollout_row(top: Tensor, lower: Sequence[Tensor], source: Tensor, *, identity: bool = False) -> Tensor:
    """Return one row [B, M] of the attention rollout over a group of layers (IVTP, Eq. 3).

    top [B, M]: that token's head-mean attention in the group's last layer; source [B, M]: one-hot, the token itself;
    lower: head-mean attention [B, M, M] of the layers below, first layer first. With Ã = A at the group's first layer
    and (A + I)·Ã above, only one row is wanted, so a row vector goes down from the top: no matrix product is made.
    Re-normalising the rows of A + I, which the equation omits, scales the row and so cannot change a ranking.
    identity: A + I at the first layer as well, as the supplement's Algorithm 1 begins with Ã = I.
    """
    if not lower:
        return top + source if identity else top
    row = (top + source).unsqueeze(1)
    for attention in reversed(lower[1:]):
        row = row + row @ attention
    last = row @ lower[0]
    return (last + row if identity else last).squeeze(1)


def logarithm(score: Tensor) -> Tensor:
    """Return the natural logarithm of what is not negative, finite: 0 counts as the smallest float there is."""
    return score.clamp_min(torch.finfo(score.dtype).tiny).log()


def outliers(score: Tensor) -> Tensor:
    """Return which scores [B, N] lie above Q3 + 1.5·IQR of their image's (LLaVA-PruMerge, Section 3.2).

    Quartiles are interpolated linearly, as numpy's percentiles.
    """
    first, third = score.quantile(torch.tensor([0.25, 0.75], device=score.device), dim=-1, keepdim=True)
    return score > third + 1.5 * (third - first)


def activation_weighted(attention: Tensor, value_norm: Tensor) -> Tensor:
    """Return the importance [B, N] of attention [B, N] weighted by the values' norms [B, N] (IVTP, Eq. 4)."""
    score = attention * value_norm
    return score / score.sum(dim=-1, keepdim=True)


def relevance(clip_features: Tensor, clip_cls: Tensor) -> Tensor:
    """Return the cosine [S] of CLIP's text tokens [S, P] with its visual CLS [P] (IVTP, Eq. 6)."""
    return F.cosine_similarity(clip_features.float(), clip_cls.float().unsqueeze(0), dim=-1)


def map_relevance(scores: Tensor, clip_spans: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> Tensor:
    """Return the relevance [T] of the LLM's tokens from that of CLIP's tokens [S] (IVTP, Eq. 7).

    Both tokenizers cut the same text, so a token's relevance is the mean over the CLIP tokens whose character ranges
    overlap its own; where none does (beyond CLIP's context, or a special token) it is −∞.
    """
    if not spans or not clip_spans:
        return scores.new_full((len(spans),), -torch.inf)
    ours = torch.tensor(spans, device=scores.device)
    theirs = torch.tensor(clip_spans, device=scores.device)
    overlap = (ours[:, None, 0] < theirs[None, :, 1]) & (theirs[None, :, 0] < ours[:, None, 1])
    count = overlap.sum(dim=-1)
    mean = (overlap * scores).sum(dim=-1) / count.clamp(min=1)
    return mean.masked_fill(count == 0, -torch.inf)
