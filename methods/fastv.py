"""FastV (Chen et al., ECCV 2024): after two LLM layers, keep what the last prompt token attends to."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from methods.interface import Cut, Method, Reduced, Shape, Stage, Tokens, View
from methods.reduce import keep_top
from methods.schedule import Budget, check_budget


@dataclass(frozen=True, kw_only=True)
class FastV(Method):
    """Before LLM layer `layer`, rank by the attention of the last prompt token in the layer below, head mean.

    `budget` says what `tokens` counts: `mean`, as papers that compare with FastV count, the visual tokens averaged over
    all LLM layers, the unpruned first ones included; `kept`, the tokens that stay after the cut.
    """

    name: ClassVar[str] = "fastv"
    paper: ClassVar[str] = "FastV (ECCV 2024)"

    tokens: Tokens
    layer: Annotated[int, "1 to the LLM's last but one"] = 2
    budget: Budget = "mean"

    def __post_init__(self) -> None:
        if self.layer < 1:
            raise ValueError(f"layer: {self.layer} is not possible; the cut needs a layer below it, so 1 or more")

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return one LLM stage. Errors: ValueError that names the mean budgets that can be reached."""
        check_budget(self.tokens, shape)
        if self.layer >= shape.llm_layers:
            raise ValueError(f"layer: {self.layer} is not possible; allowed are 1 to {shape.llm_layers - 1}")
        kept = self.tokens
        if self.budget == "mean":
            below, above = self.layer * shape.patches, shape.llm_layers - self.layer
            kept = round((shape.llm_layers * self.tokens - below) / above)
            if kept < 1:
                smallest = -(-(below + above) // shape.llm_layers)
                raise ValueError(
                    f"tokens: a mean of {self.tokens} is not possible after {self.layer} of {shape.llm_layers} layers "
                    f"with all tokens; allowed are {smallest} to {shape.patches}, or set budget: kept"
                )
        return (Stage(seam="llm", reduce=most_attended, cuts=(Cut(self.layer, kept),), needs=frozenset({"last_row"})),)


def most_attended(view: View, n: int) -> Reduced:
    """Keep the n tokens with the highest attention."""
    assert view.attention is not None
    return keep_top(view.attention, n)
