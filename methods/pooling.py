"""Spatial pooling: the grid of visual tokens, interpolated to a smaller one."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F

from methods.interface import Cut, Method, Positions, Reduced, Shape, Stage, View
from methods.reduce import cell_centres
from methods.schedule import check_square


@dataclass(frozen=True, kw_only=True)
class Pooling(Method):
    """The projected 24×24 grid is interpolated to g×g before the LLM, so only n = g² can be reached.

    Source: IVTP supplement, Section 2, which names no kernel. Ours: `area`, the mean over each cell; and under
    `original` positions a pooled token stands where the patch at its cell's centre stood.
    """

    name: ClassVar[str] = "pooling"
    paper: ClassVar[str] = "IVTP (ECCV 2024), baseline"

    tokens: Annotated[int, "squares, 1 to all patches"]
    positions: Positions = "contiguous"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return one stage at the LLM's input. Errors: ValueError that names the nearest squares."""
        check_square(self.tokens, shape, self.name)
        return (Stage(seam="input", reduce=pool, cuts=(Cut(0, self.tokens),)),)


def pool(view: View, n: int) -> Reduced:
    """Interpolate the square grid of N tokens to n, itself a square."""
    B, N, D = view.x.shape
    before, after = math.isqrt(N), math.isqrt(n)
    grid = view.x.transpose(1, 2).reshape(B, D, before, before)
    grid = F.interpolate(grid.float(), size=(after, after), mode="area")
    return Reduced(
        index=cell_centres(before, after, view.x.device).expand(B, -1),
        x=grid.flatten(2).transpose(1, 2).to(view.x.dtype),
        size=view.size.new_full((B, n), N / n),
    )
