"""The pseudo CLS in the LLM: as a side-car that the sequence never sees, or as a token inserted behind its image.

The rider of an image sees what its row holds up to the image's last token, and itself. Attention of the layer is
run for it on borrowed keys and values that nothing stores, so the main path and the cache stay as they are.
Shapes: M images, P the longest prefix, D width, H heads.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from harness.model.attention import is_flash
from harness.model.ledger import Frame
from harness.model.probe import Projections, heads, mean_attention, overhear, row_attention
from methods.interface import Stage
from methods.score import rollout_row


class Borrowed:
    """Stands where a cache is expected: returns the borrowed keys and values before the rider's own, keeps nothing."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v

    def update(self, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return keys and values [M, H, P + 1, d]."""
        return torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2)


class Told:
    """Stands where a cache is expected: hands on to the cache, and keeps the keys that it gives to the layer."""

    keys: Tensor  # [B, H or fewer, L, d] rotated

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the layer's keys and values."""
        self.keys, values = self.cache.update(*args, **kwargs)
        return self.keys, values


@dataclass(frozen=True)
class Heard:
    """What a layer's main path gave, and what is wanted of it; queries are rotated only where they are wanted."""

    layer: Any
    run: Callable[..., Tensor]  # its own forward
    frame: Frame
    projections: Projections
    keys: Tensor  # [B, H or fewer, L, d] rotated
    embedding: tuple[Tensor, Tensor]  # rotary, each [B, L, d]
    row: bool  # the pseudo CLS's own attention
    matrix: bool  # that of its whole prefix

    @cached_property
    def queries(self) -> Tensor:
        """All queries [B, H, L, d], rotated."""
        return rotate(heads(self.projections.q, self.layer.self_attn.head_dim), self.embedding)

    def last_query(self) -> Tensor:
        """Return the last token's query [B, H, d], rotated."""
        q = heads(self.projections.q[:, -1:], self.layer.self_attn.head_dim)
        return rotate(q, last(self.embedding))[:, :, 0]


@dataclass
class Group:
    """A pseudo CLS's attention in the layers since the last cut."""

    lower: list[Tensor] = field(default_factory=list)  # [M, P, P] for a rollout
    rows: list[Tensor] = field(default_factory=list)  # [M, P]
    own: Tensor | None = None  # [M] its own column

    def attention(self, stage: Stage, frame: Frame) -> Tensor:
        """Return its last row, or its rollout where the stage needs that, at the images' own tokens [M, N]."""
        row = self.rows[-1]
        if "rider_rollout" in stage.needs:
            assert self.own is not None
            source = torch.zeros_like(row).scatter(1, self.own.unsqueeze(1), 1)
            row = rollout_row(row, self.lower, source, identity=stage.identity)
        return row.gather(1, frame.slots())

    def each(self, frame: Frame) -> Tensor:
        """Return its rows at the images' own tokens [M, G, N]."""
        return torch.stack([row.gather(1, frame.slots()) for row in self.rows], dim=1)


class Reach:
    """What the pseudo CLS of each image sees of its row: the first P slots, but for what is hidden [M, P]."""

    def __init__(self, frame: Frame, end: Tensor, behind: int) -> None:
        """End [M]: the last slot seen, so many behind the image's last. Made once a frame."""
        self.frame = frame
        last = frame.patch.shape[1] - 1 + behind
        ends = end.tolist() if frame.ragged else [start + last for _, start in frame.starts()]
        self.P = max(0, *ends) + 1
        seen = frame.rows(frame.valid)[:, : self.P] & (torch.arange(self.P, device=end.device) <= end[:, None])
        self.hidden = torch.finfo(torch.float32).min * (~seen).float()
        self.all_seen = frame.full and len(ends) == 1


class Rider:
    """One pseudo CLS per image, beside the sequence."""

    reach: Reach | None = None

    def __init__(self, state: Tensor, rotary: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.state = state[:, None]  # [M, 1, D]
        self.rotary = rotary
        self.group = Group()

    def cls(self, x: Tensor, frame: Frame) -> Tensor:
        """Return its hidden state [M, D]."""
        return self.state[:, 0]

    def ride(self, heard: Heard, position: Tensor) -> None:
        """Take the rider, at position [M], through a layer whose main path has just run."""
        attention, frame = heard.layer.self_attn, heard.frame
        width, scaling = attention.head_dim, attention.scaling
        if self.reach is None or self.reach.frame is not frame:
            self.reach = Reach(frame, (frame.start + frame.count - 1).clamp(min=0), 0)
        P, hidden = self.reach.P, self.reach.hidden
        k = frame.rows(heard.keys)[:, :, :P]
        v = frame.rows(heads(heard.projections.v, width))[:, :, :P]
        embedding = self.rotary(self.state, position[:, None])
        bias = torch.cat([hidden, hidden.new_zeros(len(hidden), 1)], dim=1)
        mask = None
        if not self.reach.all_seen:
            least = torch.finfo(self.state.dtype).min
            mask = bias == 0 if is_flash(attention) else bias[:, None, None].to(self.state.dtype).clamp(min=least)

        with overhear(attention) as own:
            self.state = heard.run(
                self.state,
                attention_mask=mask,
                position_embeddings=embedding,
                past_key_values=Borrowed(k, v),
            )
        if not (heard.row or heard.matrix):
            return
        q, own_k = (rotate(heads(x, width), embedding) for x in (own.q, own.k))
        row = row_attention(q[:, :, 0], torch.cat([k, own_k], dim=2), bias, scaling)
        self.group.own = frame.start.new_full((len(row),), P)
        self.group.rows.append(row)
        if heard.matrix:
            matrix = torch.zeros(len(row), P + 1, P + 1, device=row.device)
            matrix[:, :P, :P] = _prefix(heard, frame, k, hidden, P)
            matrix[:, P] = row
            self.group.lower.append(matrix)


class Inserted:
    """One pseudo CLS per image, a token of the sequence right behind it."""

    reach: Reach | None = None

    def __init__(self) -> None:
        self.group = Group()

    def cls(self, x: Tensor, frame: Frame) -> Tensor:
        """Return its hidden state [M, D]."""
        return x[frame.row, frame.start + frame.count]

    def ride(self, heard: Heard, position: Tensor) -> None:
        """Note the token's attention in a layer that has just run; its position is the sequence's."""
        if not (heard.row or heard.matrix):
            return
        frame, scaling = heard.frame, heard.layer.self_attn.scaling
        own = frame.start + frame.count
        if self.reach is None or self.reach.frame is not frame:
            self.reach = Reach(frame, own, 1)
        P, hidden = self.reach.P, self.reach.hidden
        k = frame.rows(heard.keys)[:, :, :P]
        self.group.own = own
        self.group.rows.append(row_attention(heard.queries[frame.row, :, own], k, hidden, scaling))
        if heard.matrix:
            self.group.lower.append(_prefix(heard, frame, k, hidden, P))


def _prefix(heard: Heard, frame: Frame, k: Tensor, hidden: Tensor, P: int) -> Tensor:
    """Return the causal attention of the prefix [M, P, P] to its keys k [M, H, P, d]."""
    step = torch.arange(P, device=k.device)
    unseen = hidden[:, None] + torch.finfo(torch.float32).min / 2 * (step > step[:, None])
    return mean_attention(frame.rows(heard.queries)[:, :, :P], k, unseen, heard.layer.self_attn.scaling)


def rotate(x: Tensor, embedding: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary embeddings (cos, sin), each [B, T, d], to x [B, H, T, d]."""
    cos, sin = (part.unsqueeze(1) for part in embedding)
    first, second = x.chunk(2, dim=-1)
    return (x * cos).add_(torch.cat([-second, first], dim=-1).mul_(sin))  # in place: what is fresh, for speed


def last(embedding: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the last token's rotary embeddings, each [B, 1, d]."""
    return embedding[0][:, -1:], embedding[1][:, -1:]
