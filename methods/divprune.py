"""DivPrune (Alvar et al., CVPR 2025): the subset of visual tokens whose smallest distance is largest."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from methods.interface import Cut, Method, Positions, Reduced, Shape, Stage, Tokens, View
from methods.reduce import keep_top, take
from methods.schedule import check_budget


@dataclass(frozen=True, kw_only=True)
class DivPrune(Method):
    """Greedy max-min diversity of the projected tokens at the LLM's input, by cosine distance (Section 3.2)."""

    name: ClassVar[str] = "divprune"
    paper: ClassVar[str] = "DivPrune (CVPR 2025)"

    tokens: Tokens
    positions: Positions = "contiguous"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return one stage at the LLM's input."""
        check_budget(self.tokens, shape)
        return (Stage(seam="input", reduce=most_diverse, cuts=(Cut(0, self.tokens),)),)


def most_diverse(view: View, n: int) -> Reduced:
    """Pick the token farthest from its nearest, then n − 1 times the one farthest from all that are picked.

    Each pick depends on those before it, so there is no doing without the loop.
    """
    x = F.normalize(view.x.float(), dim=-1)
    distance = 1 - x @ x.transpose(1, 2)
    itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    pick = distance.masked_fill(itself, torch.inf).amin(dim=2).argmax(dim=1, keepdim=True)
    nearest = torch.full_like(view.size, torch.inf)
    picked = torch.zeros_like(nearest)
    for _ in range(n):
        picked.scatter_(1, pick, 1.0)
        nearest = torch.minimum(nearest, take(distance, pick).squeeze(1)).scatter(1, pick, -torch.inf)
        pick = nearest.argmax(dim=1, keepdim=True)
    return keep_top(picked, n)
