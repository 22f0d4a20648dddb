"""Random sampling: the control that a method has to beat."""

from dataclasses import dataclass
from typing import ClassVar

from methods.interface import Method, Reduced, Shape, Stage, Tokens, View
from methods.reduce import keep_top
from methods.schedule import check_budget, even_cuts


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """A random subset survives every ViT layer (IVTP supplement, Section 2).

    The draw depends on the image, the seed and the layer alone: a second run, another batch or another worker gives
    the same tokens, and two questions about one image see the same subset.
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "control"

    tokens: Tokens

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return one ViT stage that cuts before every layer."""
        check_budget(self.tokens, shape)
        cuts = even_cuts(range(shape.vit_layers), shape.patches, self.tokens)
        return (Stage(seam="vit", reduce=sample, cuts=cuts, needs=frozenset({"random"})),)


def sample(view: View, n: int) -> Reduced:
    """Keep n tokens drawn without replacement."""
    assert view.random is not None
    return keep_top(view.random, n)
