"""IVTP's pseudo CLS as a side-car: it goes through the LLM beside the sequence, which never sees it.

The rider of an image sees what its row holds up to the image's last token, and itself. Attention of the layer is
run for it on borrowed keys and values that nothing stores, so the main path and the cache stay as they are.
Shapes: M images, P the longest prefix, D width, H heads.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.model.ledger import Frame
from harness.model.probe import Projections, heads, mean_attention, overhear, row_attention
from methods.score import rollout_row


class Borrowed:
    """Stands where a cache is expected: returns the borrowed keys and values before the rider's own, keeps nothing."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v

    def update(self, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return keys and values [M, H, P + 1, d]."""
        return torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2)


class Rider:
    """One pseudo CLS per image, and the attention matrices of the group that it is in."""

    def __init__(self, state: Tensor) -> None:
        self.state = state[:, None]  # [M, 1, D]
        self.lower: list[Tensor] = []  # [M, P + 1, P + 1] of the layers since the last cut
        self.row: Tensor | None = None  # [M, P + 1] of the layer just run

    def ride(
        self,
        layer: Any,
        run: Callable[..., Tensor],
        rotary: Callable[..., tuple[Tensor, Tensor]],
        frame: Frame,
        position: Tensor,
        heard: Projections,
        rotated_keys: Tensor,
        rotated_queries: Tensor | None,
    ) -> None:
        """Take the rider through one layer, whose own forward is `run` and whose main path has just run.

        heard: its projections; rotated_keys [B, H, L, d] and, unless the cut comes right after this layer,
        rotated_queries [B, H, L, d], from which the matrix of the whole prefix is kept for the rollout; position [M].
        """
        attention = layer.self_attn
        width, scaling = attention.head_dim, attention.scaling
        end = (frame.start + frame.count - 1).clamp(min=0)
        P = int(end.max()) + 1
        seen = frame.valid[frame.row, :P] & (torch.arange(P, device=end.device) <= end[:, None])
        hidden_from = torch.finfo(torch.float32).min * (~seen).float()  # [M, P]
        k = rotated_keys[frame.row, :, :P]
        v = heads(heard.v, width)[frame.row, :, :P]
        embedding = rotary(self.state, position[:, None])
        bias = torch.cat([hidden_from, hidden_from.new_zeros(len(hidden_from), 1)], dim=1)

        with overhear(attention) as own:
            self.state = run(
                self.state,
                attention_mask=bias[:, None, None].to(self.state.dtype).clamp(min=torch.finfo(self.state.dtype).min),
                position_embeddings=embedding,
                past_key_values=Borrowed(k, v),
            )
        q, own_k = (rotate(heads(x, width), embedding) for x in (own.q, own.k))
        row = row_attention(q[:, :, 0], torch.cat([k, own_k], dim=2), bias, scaling)
        if rotated_queries is not None:
            causal = torch.ones(P, P, dtype=torch.bool, device=end.device).triu(1)
            unseen = hidden_from[:, None] + torch.finfo(torch.float32).min / 2 * causal
            prefix = mean_attention(rotated_queries[frame.row, :, :P], k, unseen, scaling)
            matrix = torch.zeros(len(row), P + 1, P + 1, device=row.device)
            matrix[:, :P, :P] = prefix
            matrix[:, P] = row
            self.lower.append(matrix)
        self.row = row

    def rollout(self, frame: Frame) -> Tensor:
        """Return the rider's rollout [M, N] over the layers since the last cut, at the images' own tokens."""
        assert self.row is not None
        source = torch.zeros_like(self.row)
        source[:, -1] = 1
        row = rollout_row(self.row, self.lower, source)
        self.lower, self.row = [], None
        return row.gather(1, frame.slots())


def rotate(x: Tensor, embedding: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary embeddings (cos, sin), each [B, T, d], to x [B, H, T, d]."""
    cos, sin = (part.unsqueeze(1) for part in embedding)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
