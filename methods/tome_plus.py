"""ToMe+: ToMe in the ViT to twice the budget, then the same in the first layers of the LLM (IVTP, Table 7)."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from methods.interface import Method, Reduced, Shape, Stage, Tokens, View
from methods.reduce import bipartite_merge, take
from methods.schedule import check_budget, check_llm_layers, fewest_merged, first_llm_cuts
from methods.tome import ToMe


@dataclass(frozen=True, kw_only=True)
class ToMePlus(Method):
    """Before each of the LLM's layers 1 to `llm_layers`, the most similar tokens merge, until n are left.

    Source: IVTP, Table 7 and Section 4.3. Ours, where the paper is silent: similarity is that of the head-mean keys of
    the layer below, before RoPE; tokens keep the order in which they came into the LLM, which is causal; attention
    there is not made proportional; a cut stands before every one of these layers.
    """

    name: ClassVar[str] = "tome+"
    paper: ClassVar[str] = "IVTP (ECCV 2024), Table 7"

    tokens: Tokens
    llm_layers: Annotated[int, "1 or more"] = 12

    def __post_init__(self) -> None:
        check_llm_layers(self.llm_layers)

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return ToMe's ViT stage at 2n and an LLM stage. Errors: ValueError that names the budgets within reach."""
        check_budget(self.tokens, shape)
        smallest = math.ceil(fewest_merged(shape.vit_layers, shape.patches) / 2)
        if self.tokens < smallest:
            raise ValueError(
                f"tokens: {self.tokens} is not possible, since twice as many have to leave {shape.vit_layers} merging "
                f"layers; allowed are {smallest} to {shape.patches}"
            )
        between = min(2 * self.tokens, shape.patches)
        cuts = first_llm_cuts(self.llm_layers, between, self.tokens, shape)
        return (
            *ToMe(tokens=between).stages(shape),
            Stage(seam="llm", reduce=merge_in_order, cuts=cuts, needs=frozenset({"keys"})),
        )


def merge_in_order(view: View, n: int) -> Reduced:
    """Merge the most similar pairs; what is left keeps its order."""
    merged = bipartite_merge(view, n)
    if merged.x is None or merged.size is None:
        return merged
    order = merged.index.argsort(dim=1)
    return Reduced(merged.index.gather(1, order), take(merged.x, order), merged.size.gather(1, order))
