"""LVPruning (Sun et al., 2025): trained cross-attention modules in the LLM decide by the text which tokens to keep."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from methods.interface import Cut, Method, Reduced, Shape, Stage, View
from methods.reduce import keep_top

LAYERS = (1, 8, 16)
HEADS = 8


class CrossAttention(nn.Module):
    """One block: visual tokens attend to the text (Eqs. 2–3), then a feed-forward network of twice the width.

    Where the paper is silent: an output projection, which its Appendix B's cost of 0.71 TFLOPs implies.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.ffn = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, width),
            nn.LayerNorm(width),
        )

    def forward(self, visual: Tensor, text: Tensor) -> Tensor:
        """Return [B, N, D] of visual [B, N, D] and text [B, T, D]."""
        q, k, v = self.q(visual), self.k(text), self.v(text)
        attended = F.scaled_dot_product_attention(*(x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v)))
        out: Tensor = self.ffn(self.o(attended.transpose(1, 2).flatten(2)) + q)
        return out


class DecisionModule(nn.Module):
    """Two blocks and a linear layer to two scores: of keeping a visual token, and of removing it (Eq. 4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CrossAttention(width) for _ in range(2))
        self.scores = nn.Linear(width, 2)

    def forward(self, visual: Tensor, text: Tensor) -> Tensor:
        """Return by how much keeping outweighs removing [B, N], of visual [B, N, D] and text [B, T, D]."""
        for block in self.blocks:
            visual = block(visual, text)
        keep, remove = self.scores(visual).unbind(dim=-1)
        out: Tensor = keep - remove
        return out


@dataclass(frozen=True, kw_only=True)
class LVPruning(Method):
    """After the LLM's layers 1, 8 and 16 ρ, ρ − 0.2 and ρ − 0.4 of all patches stay, by a decision module each.

    ratio: ρ. The modules have to be trained and vtbench has none, so it is counted and never run.
    """

    name: ClassVar[str] = "lvpruning"
    paper: ClassVar[str] = "LVPruning (NAACL Findings 2025)"
    trained: ClassVar[bool] = True

    ratio: Annotated[float, "above 0.4, to 1"] = 0.5

    def __post_init__(self) -> None:
        if not 0.4 < self.ratio <= 1:
            raise ValueError(f"ratio: {self.ratio} is not possible; allowed are above 0.4 to 1, since 0.4 less is kept")

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return one LLM stage. Errors: ValueError for an LLM of 16 layers or fewer, or too few patches."""
        if shape.llm_layers <= LAYERS[-1]:
            raise ValueError(f"lvpruning prunes after {LAYERS[-1]} LLM layers; this model has {shape.llm_layers}")
        kept = [math.floor(round(shape.patches * (self.ratio - 0.2 * step), 6)) for step in range(len(LAYERS))]
        if kept[-1] < 1:
            raise ValueError(f"ratio: {self.ratio} leaves no token of {shape.patches} patches")
        cuts = tuple(Cut(layer, n) for layer, n in zip(LAYERS, kept, strict=True))
        return (Stage(seam="llm", reduce=most_wanted, cuts=cuts, module=DecisionModule),)


def most_wanted(view: View, n: int) -> Reduced:
    """Keep the n tokens that the module wants most."""
    assert view.attention is not None
    return keep_top(view.attention, n)
