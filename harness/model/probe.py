"""Attention rows beside the model's own attention: only what a stage needs, whatever the implementation.

The projections of a layer are overheard while it runs, so queries, keys and values are computed once and SDPA or flash
makes the output. Shapes: B sequences, Q queries, T keys, H heads, d head width. All results are float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

AT_ONCE = 2**21  # logits: 8 MiB


class Projections:
    """Queries, keys and values of one layer, as its projections gave them: [B, T, heads · d], before RoPE."""

    q: Tensor
    k: Tensor
    v: Tensor


@contextmanager
def overhear(attention: nn.Module) -> Iterator[Projections]:
    """Collect what q_proj, k_proj and v_proj of an attention module give while the context lasts."""
    heard = Projections()
    hooks = [
        attention.get_submodule(f"{name}_proj").register_forward_hook(_listener(heard, name))
        for name in ("q", "k", "v")
    ]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def _listener(heard: Projections, name: str) -> Any:
    def listen(module: nn.Module, args: Any, output: Tensor) -> None:
        setattr(heard, name, output)

    return listen


def heads(x: Tensor, width: int) -> Tensor:
    """Return [B, H, T, d] of [B, T, H · d]."""
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def mean_attention(q: Tensor, k: Tensor, bias: Tensor | None, scaling: float) -> Tensor:
    """Return the head-mean attention [B, Q, T] of queries [B, H, Q, d] to keys [B, H or fewer, T, d].

    bias [B, 1 or Q, T] is added to the logits, if there is any. A few heads at a time, so that no large [B, H, Q, T] is
    ever held. A row that may see nothing at all (padding) gets the mean over everything, not NaN.
    """
    B, H, Q, _ = q.shape
    k = k.repeat_interleave(H // k.shape[1], dim=1)
    if bias is not None:
        bias = bias.float().clamp(min=torch.finfo(torch.float32).min).unsqueeze(1)
    total = torch.zeros(B, Q, k.shape[2], device=q.device)
    some = max(1, AT_ONCE // total.numel())
    for some_q, some_k in zip(q.split(some, dim=1), k.split(some, dim=1), strict=True):
        logits = (some_q.float() * scaling) @ some_k.float().transpose(2, 3)
        if bias is not None:
            logits += bias
        total += torch.softmax(logits, dim=-1).sum(dim=1)
    return total.div_(H)


def row_attention(q: Tensor, k: Tensor, bias: Tensor | None, scaling: float) -> Tensor:
    """Return the head-mean attention [B, T] of one query a sequence, q [B, H, d], to keys [B, H or fewer, T, d]."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = torch.einsum("bhd,bhtd->bht", q.float(), k.float()) * scaling
    if bias is not None:
        logits += bias.float().clamp(min=torch.finfo(torch.float32).min)[:, None]
    return torch.softmax(logits, dim=-1).mean(dim=1)


def joint_row(q: Tensor, k: Tensor, bias: Tensor | float) -> Tensor:
    """Return the attention [B, T] of one query a sequence, q [B, C], to keys [B, T, C], all heads taken as one."""
    logits = (k @ q.unsqueeze(2)).squeeze(2) * q.shape[-1] ** -0.5
    return torch.softmax(logits + bias, dim=-1)


def value_norm(v: Tensor, groups: int) -> Tensor:
    """Return the L2 norm [B, T] of values [B, T, heads · d], all heads joined; shared heads count once a query head."""
    return v.float().norm(dim=-1) * groups**0.5
