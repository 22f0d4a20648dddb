"""PyramidDrop (Xing et al., CVPR 2025): at three depths of the LLM, keep what the instruction's last token looks at."""

from dataclasses import dataclass
from typing import ClassVar

from methods.fastv import most_attended
from methods.interface import Method, Positions, Shape, Stage, Tokens
from methods.schedule import Budget, geometric_cuts


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Method):
    """Before layers 8, 16 and 24 of 32, rank by the last prompt token's attention in that very layer, head mean.

    The layer's own norm, projections and RoPE are applied to the tokens at hand. Each cut keeps the same share of what
    is left: 288, 144 and 72 of 576 in the paper, which is `tokens: 72` with `budget: kept`. budget: as FastV's. Other
    depths are cut at their quarters.
    """

    name: ClassVar[str] = "pyramiddrop"
    paper: ClassVar[str] = "PyramidDrop (CVPR 2025)"

    tokens: Tokens
    budget: Budget = "mean"
    positions: Positions = "contiguous"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return one LLM stage. Errors: ValueError that names the mean budgets that can be reached."""
        layers = tuple(dict.fromkeys(round(shape.llm_layers * quarter / 4) for quarter in (1, 2, 3)))
        cuts = geometric_cuts(layers, self.tokens, self.budget, shape)
        return (Stage(seam="llm", reduce=most_attended, cuts=cuts, needs=frozenset({"next_last_row"})),)
