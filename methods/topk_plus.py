"""TopK+: TopK in the ViT to twice the budget, then the same in the first layers of the LLM (IVTP, Table 7)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from methods.interface import Method, PseudoCLS, Shape, Stage, Tokens, Words
from methods.schedule import check_budget, check_llm_layers, first_llm_cuts
from methods.topk import TopK, most_like_cls


@dataclass(frozen=True, kw_only=True)
class TopKPlus(Method):
    """Before each of the LLM's layers 1 to `llm_layers`, the tokens least similar to CLS go, until n are left.

    Source: IVTP, Table 7 and Section 4.3. Ours, where the paper is silent: in the LLM, which has no CLS, the ViT's goes
    through the projector and rides beside the sequence as IVTP's pseudo CLS does; the same number goes at every cut,
    and a cut stands before every one of these layers.
    """

    name: ClassVar[str] = "topk+"
    paper: ClassVar[str] = "IVTP (ECCV 2024), Table 7"

    tokens: Tokens
    llm_layers: Annotated[int, "1 or more"] = 12

    def __post_init__(self) -> None:
        check_llm_layers(self.llm_layers)

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return TopK's ViT stage at 2n and an LLM stage."""
        check_budget(self.tokens, shape)
        between = min(2 * self.tokens, shape.patches)
        cuts = first_llm_cuts(self.llm_layers, between, self.tokens, shape)
        in_llm = Stage(seam="llm", reduce=most_like_cls, cuts=cuts, needs=frozenset({"cls"}))
        return (*TopK(tokens=between).stages(shape), in_llm)

    def guide(self, words: Words) -> PseudoCLS:
        """Return the ViT's CLS, projected."""
        return PseudoCLS(words.projected_cls, [])
