"""SparseVLM's raters: the text tokens behind an image that its visual tokens are most like, as they enter the LLM.

Shapes: B rows, L slots, M images, N visual tokens of an image, T text tokens of a row (the most of any), R raters.
"""

import torch
from torch import Tensor

from harness.model.ledger import Frame
from harness.model.probe import mean_attention


class Raters:
    """Which text tokens rate each image, by their number among the row's text tokens, which no cut changes."""

    def __init__(self, frame: Frame, x: Tensor, inserted: bool) -> None:
        """Choose them: frame and x [B, L, D] as they enter layer 0.

        The text tokens behind the image share one softmax of the products with a visual token; raters are those whose
        mean over the visual tokens is above the average. Where no text is behind, the prompt's last token rates.
        inserted: whether a pseudo CLS, which is no text, stands behind every image.
        """
        self.inserted = inserted
        slots, text = self._text(frame)
        end = frame.start + frame.count
        behind = text[frame.row] & (slots[frame.row] >= end[:, None])  # [M, T]
        words = x.gather(1, slots.unsqueeze(-1).expand(-1, -1, x.shape[-1]))[frame.row].float()
        likeness = frame.visual(x).float() @ words.transpose(1, 2)  # [M, N, T]
        share = likeness.masked_fill(~behind.unsqueeze(1), torch.finfo(torch.float32).min).softmax(dim=-1)
        real = (frame.size > 0).unsqueeze(-1)
        mean = (share * real).sum(dim=1) / real.sum(dim=1)
        average = mean.sum(dim=1, keepdim=True) / behind.sum(dim=1, keepdim=True).clamp(min=1)
        chosen = behind & (mean * behind > average)
        self.none = ~chosen.any(dim=1)  # [M]
        most = max(1, int(chosen.sum(dim=1).max()))
        self.number = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # [M, R]
        self.rates = chosen.gather(1, self.number)

    def _text(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """Return the slots [B, T] of each row's text tokens, in their order, and which of them there are."""
        device = frame.valid.device
        step = torch.arange(frame.patch.shape[1] + self.inserted, device=device)
        count = frame.count + self.inserted
        taken = frame.start[:, None] + step.minimum(count[:, None] - 1)
        visual = torch.zeros_like(frame.valid).index_put((frame.row[:, None], taken), torch.tensor(True, device=device))
        text = frame.valid & ~visual
        most = int(text.sum(dim=1).max())
        slots = text.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        return slots, text.gather(1, slots)

    def attention(self, frame: Frame, queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
        """Return the raters' mean attention [M, N] to their image, from rotated queries and keys [B, H, L, d]."""
        slots, _ = self._text(frame)
        last = frame.valid.shape[1] - 1
        rates = self.rates | (self.none[:, None] & (torch.arange(self.rates.shape[1], device=slots.device) == 0))
        slot = slots[frame.row].gather(1, self.number).masked_fill(self.none[:, None], last)  # [M, R]
        q = queries[frame.row[:, None], :, slot].transpose(1, 2)  # [M, H, R, d]
        at = torch.arange(last + 1, device=slots.device)
        seen = frame.valid[frame.row].unsqueeze(1) & (at <= slot.unsqueeze(-1))
        rows = mean_attention(q, keys[frame.row], torch.finfo(torch.float32).min * (~seen).float(), scaling)
        row = (rows * rates.unsqueeze(-1)).sum(dim=1) / rates.sum(dim=1, keepdim=True)
        return row.gather(1, frame.slots())
