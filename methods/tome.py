"""ToMe (Bolya et al., ICLR 2023): merge similar tokens in every ViT layer."""

from dataclasses import dataclass
from typing import ClassVar

from methods.interface import Method, Shape, Stage, Tokens
from methods.reduce import bipartite_merge
from methods.schedule import check_budget, merge_cuts


@dataclass(frozen=True, kw_only=True)
class ToMe(Method):
    """Bipartite soft matching by head-mean keys between attention and MLP, with proportional attention.

    Source: ToMe, Section 3, and its released code; IVTP supplement, Section 2, for the budget: the same number merges
    in every layer. Ours: a merge can at most halve the tokens, so low budgets merge more in the lower layers than that.
    The budget counts patches; the papers' TFLOPs count CLS among the 64.
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
