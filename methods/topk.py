"""TopK: keep the patches most like CLS."""

from dataclasses import dataclass
from typing import ClassVar

from methods.interface import Method, Reduced, Shape, Stage, Tokens, View
from methods.reduce import keep_top
from methods.schedule import check_budget, even_cuts
from methods.score import cls_similarity


@dataclass(frozen=True, kw_only=True)
class TopK(Method):
    """Before every ViT layer the patches least similar to CLS (cosine of hidden states) go.

    Source: IVTP supplement, Section 2. The budget counts patches; the papers' TFLOPs count CLS among the 64.
    """

    name: ClassVar[str] = "topk"
    paper: ClassVar[str] = "IVTP (ECCV 2024), baseline"

    tokens: Tokens

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return one ViT stage that cuts before every layer."""
        check_budget(self.tokens, shape)
        cuts = even_cuts(range(shape.vit_layers), shape.patches, self.tokens)
        return (Stage(seam="vit", reduce=most_like_cls, cuts=cuts, needs=frozenset({"cls"})),)


def most_like_cls(view: View, n: int) -> Reduced:
    """Keep the n tokens most similar to CLS."""
    assert view.cls is not None
    return keep_top(cls_similarity(view.x, view.cls), n)
