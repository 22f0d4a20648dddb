"""Where every visual token is, at every layer.

Shapes: B rows (prompts) of a batch, L slots of a row, M images, N visual tokens of an image (the most of any, the rest
is padding at the end), K what stays of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor
from transformers import Cache

from methods.interface import Reduced
from methods.schedule import TokensPerLayer


class Layout(NamedTuple):
    """What the host knows of a frame without asking the device, which would wait for it."""

    lengths: tuple[int, ...]  # real tokens of each row
    images: tuple[tuple[int, int], ...]  # of each image its row, and the row's real tokens in front of it

    def without(self, dropped: int) -> Layout:
        """Return the layout when every image has so many tokens fewer."""
        lengths, images = list(self.lengths), []
        for row, before in self.images:
            images.append((row, before - (self.lengths[row] - lengths[row])))
            lengths[row] -= dropped
        return Layout(tuple(lengths), tuple(images))

    def of(self, rows: Sequence[int]) -> tuple[Layout, list[int]]:
        """Return the layout of these rows, one after another and any of them again, and the image behind each image."""
        mine: list[list[int]] = [[] for _ in self.lengths]
        for image, (row, _) in enumerate(self.images):
            mine[row].append(image)
        images = [image for row in rows for image in mine[row]]
        holders = [new for new, row in enumerate(rows) for _ in mine[row]]
        places = tuple((new, self.images[image][1]) for new, image in zip(holders, images, strict=True))
        return Layout(tuple(self.lengths[row] for row in rows), places), images


@dataclass(frozen=True)
class Frame:
    """One arrangement of a batch: rows are padded on the left, an image's tokens stand side by side."""

    valid: Tensor  # [B, L] bool
    position: Tensor  # [B, L] int64, the position ids
    shift: Tensor  # [B] int64: how far renumbering has moved what comes next
    row: Tensor  # [M] the row that holds the image
    start: Tensor  # [M] the slot of its first token
    count: Tensor  # [M] its tokens
    patch: Tensor  # [M, N] int64: the patch each token stands for, -1 = padding
    size: Tensor  # [M, N] float32: how many patches it stands for, 0 = padding
    layout: Layout
    ragged: bool = False  # whether images may differ in their counts

    @property
    def full(self) -> bool:
        """Whether no row has padding."""
        return min(self.layout.lengths) == self.valid.shape[1]

    def slots(self) -> Tensor:
        """Return the slot [M, N] of every visual token; padding repeats the first."""
        step = torch.arange(self.patch.shape[1], device=self.start.device)
        return self.start[:, None] + (torch.where(step < self.count[:, None], step, 0) if self.ragged else step)

    def starts(self) -> list[tuple[int, int]]:
        """Return the row of every image and the slot of its first token, without asking the device."""
        L, lengths = self.valid.shape[1], self.layout.lengths
        return [(row, L - lengths[row] + before) for row, before in self.layout.images]

    def visual(self, x: Tensor) -> Tensor:
        """Return what x [B, L, ...] holds at the visual tokens: [M, N, ...]."""
        if self.ragged or len(self.row) != 1:
            return x[self.row[:, None], self.slots()]
        ((row, start),) = self.starts()
        return x[row : row + 1, start : start + self.patch.shape[1]]

    def rows(self, x: Tensor) -> Tensor:
        """Return of x [B, ...] the row of every image: [M, ...]."""
        in_order = [row for row, _ in self.layout.images] == list(range(len(x)))
        return x if in_order else x[self.row]

    def repack(self, x: Tensor, reduced: Reduced, *, contiguous: bool, ragged: bool = False) -> tuple[Frame, Tensor]:
        """Return the frame after a cut and the hidden states x [B, L, D] in it.

        The tokens that stay take, in their order, the first places of their image; text keeps its order; shorter rows
        are padded on the left, so that the last slot is always a real token.
        """
        if len(self.valid) == 1 and self.full and not (self.ragged or ragged):
            return self._cut_out(x, reduced, contiguous=contiguous)
        B, L = self.valid.shape
        device = self.valid.device
        stays = reduced.index >= 0
        count = stays.sum(dim=1)
        step = torch.arange(self.patch.shape[1], device=device)
        gone = (step >= count[:, None]) & (step < self.count[:, None])
        keep = self.valid & ~_marked(gone, self.row, self.slots(), (B, L))

        left, kept_before = keep.sum(dim=1), keep.int().cumsum(dim=1) - 1
        if self.ragged or ragged:
            layout = _layout(left, self.row, kept_before[self.row, self.start])
        else:
            layout = self.layout.without(self.patch.shape[1] - reduced.index.shape[1])
        length = max(layout.lengths)
        source = keep.int().argsort(dim=1, stable=True)[:, -length:]
        valid = torch.arange(length, device=device) >= (length - left)[:, None]
        rank = kept_before + (length - left)[:, None]
        start = rank[self.row, self.start].clamp(min=0)

        ahead = torch.arange(reduced.index.shape[1], device=device)
        cell = torch.where(stays, start[:, None] + ahead, length)  # padding is written past the end, then cut off
        row = self.row[:, None].expand_as(cell)
        index = reduced.index.clamp(min=0)
        source = torch.cat([source, source.new_zeros(B, 1)], dim=1)
        source[row, cell] = self.start[:, None] + index
        source = source[:, :length]

        x = x.gather(1, source.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        if reduced.x is not None:
            x = torch.cat([x, x.new_zeros(B, 1, x.shape[-1])], dim=1)
            x[row, cell] = reduced.x.to(x.dtype)
            x = x[:, :length]
        position, shift = self.position.gather(1, source), self.shift
        if contiguous:
            packed = (valid.int().cumsum(dim=1) - 1).clamp(min=0)
            shift = shift + self.position[:, -1] - packed[:, -1]
            position = packed
        size = self.size.gather(1, index) if reduced.size is None else reduced.size
        frame = Frame(
            valid=valid,
            position=position,
            shift=shift,
            row=self.row,
            start=start,
            count=count,
            patch=self.patch.gather(1, index).masked_fill(~stays, -1),
            size=size.masked_fill(~stays, 0),
            layout=layout,
            ragged=ragged,
        )
        return frame, x

    def of(self, rows: Sequence[int], row: Tensor, image: Tensor) -> Frame:
        """Return the frame of these rows, one after another and any of them again: row [B], and their images [M]."""
        layout, _ = self.layout.of(rows)
        return Frame(
            valid=self.valid[row],
            position=self.position[row],
            shift=self.shift[row],
            row=torch.tensor([each for each, _ in layout.images], dtype=torch.long, device=row.device),
            start=self.start[image],
            count=self.count[image],
            patch=self.patch[image],
            size=self.size[image],
            layout=layout,
            ragged=self.ragged,
        )

    def longer(self, text: Tensor, lengths: Sequence[int], position: Tensor) -> Frame:
        """Return the frame with text behind it [B, Q], False where padded, of these lengths, at these positions.

        Padding then stands in the middle: it is to be seen and decoded behind, but neither `starts` nor a cut knows it.
        """
        lengths = tuple(before + more for before, more in zip(self.layout.lengths, lengths, strict=True))
        return replace(
            self,
            valid=torch.cat([self.valid, text], dim=1),
            position=torch.cat([self.position, position - self.shift[:, None]], dim=1),
            layout=Layout(lengths, self.layout.images),
        )

    def _cut_out(self, x: Tensor, reduced: Reduced, *, contiguous: bool) -> tuple[Frame, Tensor]:
        """Repack one row without padding, whose images all keep as many tokens: pieces put together, no sorting."""
        N, index = self.patch.shape[1], reduced.index
        starts = [start for _, start in self.starts()]

        def joined(old: Tensor, new: Tensor | None) -> Tensor:
            pieces, end = [], 0
            for image, start in enumerate(starts):
                tokens = old[0, start : start + N][index[image]] if new is None else new[image].to(old.dtype)
                pieces += [old[:, end:start], tokens.unsqueeze(0)]
                end = start + N
            return torch.cat([*pieces, old[:, end:]], dim=1)

        x = joined(x, reduced.x)
        length = x.shape[1]
        if contiguous:
            position = torch.arange(length, device=x.device).unsqueeze(0)
            shift = self.shift + self.position[:, -1] - (length - 1)
        else:
            position, shift = joined(self.position, None), self.shift
        gone = N - index.shape[1]
        frame = Frame(
            valid=self.valid[:, :length],
            position=position,
            shift=shift,
            row=self.row,
            start=self.start - gone * torch.arange(len(starts), device=x.device),
            count=self.count - gone,
            patch=self.patch.gather(1, index),
            size=self.size.gather(1, index) if reduced.size is None else reduced.size,
            layout=self.layout.without(gone),
        )
        return frame, x


def uncut(mask: Tensor, image_slots: Tensor, rows: Tensor) -> Frame:
    """Return the frame of a prompt as the processor made it; mask [B, L], image_slots [M, P], rows [M].

    Its padding may stand anywhere; the first `repack` moves it to the left. It asks the device.
    """
    M, P = image_slots.shape
    valid = mask.bool()
    rank = valid.int().cumsum(dim=1) - 1
    position = rank.clamp(min=0).long()
    start = image_slots[:, 0]
    return Frame(
        valid=valid,
        position=position,
        shift=position.new_zeros(len(mask)),
        row=rows,
        start=start,
        count=rows.new_full((M,), P),
        patch=torch.arange(P, device=mask.device).expand(M, -1),
        size=torch.ones(M, P, device=mask.device),
        layout=_layout(valid.sum(dim=1), rows, rank[rows, start]),
    )


def _layout(lengths: Tensor, rows: Tensor, before: Tensor) -> Layout:
    return Layout(tuple(lengths.tolist()), tuple(zip(rows.tolist(), before.tolist(), strict=True)))


def _marked(flags: Tensor, row: Tensor, slots: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return a bool [B, L] that is true at the slots [M, N] of these rows [M] where flags [M, N] is."""
    B, L = shape
    flat = torch.where(flags, row[:, None] * L + slots, B * L)
    marked = torch.zeros(B * L + 1, dtype=torch.bool, device=flags.device)
    marked[flat.flatten()] = True
    return marked[:-1].view(B, L)


class Realised(NamedTuple):
    """Visual tokens of each image that entered every layer."""

    vit: list[list[int]]  # [M][ViT layers]
    llm: list[list[int]]  # [M][LLM layers]

    def image(self, index: int) -> TokensPerLayer:
        """Return one image's."""
        return TokensPerLayer(tuple(self.vit[index]), tuple(self.llm[index]))


class Guide(NamedTuple):
    """The question behind an image, and the character ranges of it that guided the cuts."""

    question: str
    spans: list[tuple[int, int]]

    @property
    def words(self) -> list[str]:
        """The words that guided, or the parts of words."""
        marked = {index for span in self.spans for index in range(*span)}
        return "".join(letter if i in marked else " " for i, letter in enumerate(self.question)).split()


@dataclass
class Ledger:
    """What one prefill did; decoding reads it and does not change it.

    open: it is that of the prompts' beginnings, up to the end of their last images; the pass with the rest closes it.
    """

    prompt_end: Tensor  # [B] the position id of the first new token, uncut
    vit_counts: list[Tensor]  # per ViT layer [M]
    frames: list[Frame] = field(default_factory=list)  # one an LLM layer, shared between cuts
    cache: ref[Cache] | None = None
    guides: list[Guide] = field(default_factory=list)  # one an image, for a method that a question guides
    open: bool = False

    def begun(self, rows: Sequence[int], cache: Cache) -> Ledger:
        """Return the open ledger of prompts that begin as these rows, any of them again, and whose cache this is."""
        images = self.frames[0].layout.of(rows)[1]
        device = self.prompt_end.device
        row, image = (torch.tensor(each, dtype=torch.long, device=device) for each in (rows, images))
        return Ledger(
            prompt_end=self.prompt_end[row],
            vit_counts=[counts[image] for counts in self.vit_counts],
            frames=_each_once(self.frames, lambda frame: frame.of(rows, row, image)),
            cache=ref(cache),
            guides=[self.guides[image] for image in images] if self.guides else [],
            open=True,
        )

    def close(self, text: Tensor) -> Tensor:
        """Have the rest of the prompts in every frame, text [B, Q] that is False where padded; return its positions."""
        position = self.prompt_end[:, None] + text.int().cumsum(dim=1) - 1
        lengths: list[int] = text.sum(dim=1).tolist()
        self.frames = _each_once(self.frames, lambda frame: frame.longer(text, lengths, position))
        self.prompt_end, self.open = position[:, -1] + 1, False
        return position

    @property
    def tokens(self) -> Realised:
        """Visual tokens of each image that entered every layer."""
        llm = [frame.count for frame in self.frames]
        return Realised(*(torch.stack(counts, dim=1).tolist() for counts in (self.vit_counts, llm)))

    @property
    def kept(self) -> list[Tensor]:
        """The patches of each image that stand behind the tokens that the last LLM layer saw, in their order."""
        return _patches(self.frames[-1])

    @property
    def merged(self) -> list[bool]:
        """Of each image whether one of these tokens stands for more or less than one patch."""
        last = self.frames[-1]
        found: list[bool] = ((last.patch >= 0) & (last.size != 1)).any(dim=1).tolist()
        return found

    @property
    def entered(self) -> list[Tensor]:
        """The patches of each image that stand behind the tokens that entered the LLM, in their order."""
        return _patches(self.frames[0])

    @property
    def lengths(self) -> Tensor:
        """All tokens of each row at every LLM layer, text included: [B, LLM layers]."""
        return torch.stack([frame.valid.sum(dim=1) for frame in self.frames], dim=1)

    @property
    def text(self) -> Tensor:
        """Text tokens of each row: [B]."""
        entry = self.frames[0]
        return entry.valid.sum(dim=1).index_add(0, entry.row, -entry.count)

    @property
    def row(self) -> list[int]:
        """The row that holds each image."""
        rows: list[int] = self.frames[0].row.tolist()
        return rows


def _each_once(frames: list[Frame], change: Callable[[Frame], Frame]) -> list[Frame]:
    """Return every frame changed; layers that share one still do."""
    changed = {id(frame): change(frame) for frame in {id(frame): frame for frame in frames}.values()}
    return [changed[id(frame)] for frame in frames]


def _patches(frame: Frame) -> list[Tensor]:
    return [patch[patch >= 0] for patch in frame.patch]
