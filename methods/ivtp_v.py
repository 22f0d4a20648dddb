"""IVTP-V: IVTP's stage in the ViT alone (Huang et al., ECCV 2024, Section 3.2 and Table 7)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from methods.interface import Method, Need, Reduced, Shape, Stage, Tokens, View
from methods.reduce import keep_top
from methods.schedule import check_budget, even_cuts, group_ends
from methods.score import activation_weighted, logarithm


@dataclass(frozen=True, kw_only=True)
class IVTPV(Method):
    """Group-wise token pruning by attention rollout, Eqs. 3–4, with the ViT's CLS.

    group: layers in a group, or all of them, which is one cut behind the last; start: the layer that ends the first
    group (0 is the supplement's Algorithm 2, group − 1 the main text's reading). There are as many cuts as whole groups
    and at least one, so with start 0 a group as large as the tower is cut once, behind its first layer. scope (Table
    4): rollout; group-wise, the attention of the group's last layer alone; layer-wise, that with a cut behind every
    layer, whatever group and start say. aggregation (Table 5): residual, the rollout; or the mean, maximum or product
    of the group's attention, element by element. identity: the rollout's product begins with A + I at the group's first
    layer (Algorithm 1) instead of A (Eq. 3).
    """

    name: ClassVar[str] = "ivtp-v"
    paper: ClassVar[str] = "IVTP (ECCV 2024), Table 7"

    tokens: Tokens
    group: Annotated[int, "1 or more"] | Literal["all"] = 3
    aggregation: Literal["residual", "mean", "max", "multiply"] = "residual"
    scope: Literal["rollout", "group-wise", "layer-wise"] = "rollout"
    start: Annotated[int, "0 or more"] = 0
    identity: bool = False

    def __post_init__(self) -> None:
        if self.group != "all" and not (isinstance(self.group, int) and self.group >= 1):
            raise ValueError(f"group: {self.group} is not possible; allowed are 1 or more layers, and all")
        if self.start < 0:
            raise ValueError(f"start: {self.start} is not possible; allowed are 0 or more")
        if self.aggregation != "residual" and self.scope != "rollout":
            raise ValueError(f"aggregation: {self.aggregation} is over a group's layers; scope: {self.scope} has one")
        if self.identity and (self.aggregation, self.scope) != ("residual", "rollout"):
            raise ValueError("identity: it begins a rollout; allowed with aggregation: residual and scope: rollout")

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return the ViT stage. Errors: ValueError for a start that ends no group."""
        check_budget(self.tokens, shape)
        ends = self._ends(shape.vit_layers, shape.vit_layers)
        return (self._stage("vit", ends, shape.patches, self.tokens),)

    def _ends(self, layers: int, highest: int) -> tuple[int, ...]:
        """Return the layers before which the first `layers` are cut, none above `highest`."""
        if self.scope == "layer-wise":
            ends = tuple(range(1, layers + 1))
        elif self.group == "all":
            ends = (min(layers, highest),)
        else:
            ends = group_ends(layers, self.group, self.start)
        ends = tuple(end for end in ends if end <= highest)
        if not ends:
            raise ValueError(
                f"start: {self.start} with group: {self.group} ends no group within {min(layers, highest)} layers"
            )
        return ends

    def _stage(self, seam: Literal["vit", "llm"], ends: tuple[int, ...], before: int, after: int) -> Stage:
        kind = "row" if self.scope != "rollout" else "rollout" if self.aggregation == "residual" else "rows"
        needed: Need = NEEDS[seam, kind]
        return Stage(
            seam=seam,
            reduce=REDUCE[self.aggregation],
            cuts=even_cuts(ends, before, after),
            needs=frozenset({needed, "value_norm"}),
            identity=self.identity,
        )


NEEDS: dict[tuple[str, str], Need] = {
    ("vit", "row"): "cls_row",
    ("vit", "rows"): "cls_rows",
    ("vit", "rollout"): "cls_rollout",
    ("llm", "row"): "rider_row",
    ("llm", "rows"): "rider_rows",
    ("llm", "rollout"): "rider_rollout",
}


def most_important(view: View, n: int) -> Reduced:
    """Keep the n tokens of highest importance (Eq. 4)."""
    assert view.attention is not None and view.value_norm is not None
    return keep_top(activation_weighted(view.attention, view.value_norm), n)


def most_important_by_mean(view: View, n: int) -> Reduced:
    """Keep the n tokens of highest importance by the mean of a group's attention."""
    assert view.rows is not None
    return most_important(view._replace(attention=view.rows.mean(dim=1)), n)


def most_important_by_maximum(view: View, n: int) -> Reduced:
    """Keep the n tokens of highest importance by the maximum of a group's attention."""
    assert view.rows is not None
    return most_important(view._replace(attention=view.rows.amax(dim=1)), n)


def most_important_by_product(view: View, n: int) -> Reduced:
    """Keep the n tokens of highest importance by the product of a group's attention.

    In logarithms, since a product over many layers is smaller than a float; they rank alike.
    """
    assert view.rows is not None and view.value_norm is not None
    return keep_top(logarithm(view.rows).sum(dim=1) + logarithm(view.value_norm), n)


REDUCE = {
    "residual": most_important,
    "mean": most_important_by_mean,
    "max": most_important_by_maximum,
    "multiply": most_important_by_product,
}
