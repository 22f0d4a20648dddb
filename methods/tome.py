"""ToMe (Bolya et al., ICLR 2023): merge similar tokens in every ViT layer."""

from dataclasses import dataclass
from typing import ClassVar

from methods.interface import Method, Shape, Stage, Tokens
from methods.reduce import bipartite_merge
from methods.schedule import check_budget, merge_cuts


@dataclass(frozen=True, kw_only=True)
class ToMe(Method):
    """Bipartite soft matching by head-mean keys between attention and MLP, with proportional attention.

    A merge can at most halve the tokens, so low budgets merge more in the lower layers than an even spread would.
    """

    name: ClassVar[str] = "tome"
    paper: ClassVar[str] = "ToMe (ICLR 2023)"

    tokens: Tokens

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return one ViT stage that merges inside every layer."""
        check_budget(self.tokens, shape)
        cuts = merge_cuts(shape.vit_layers, shape.patches, self.tokens)
        return (
            Stage(
                seam="vit",
                reduce=bipartite_merge,
                cuts=cuts,
                needs=frozenset({"keys"}),
                inside=True,
                proportional=True,
            ),
        )
