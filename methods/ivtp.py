"""IVTP (Huang et al., ECCV 2024): group-wise pruning in the ViT, then in the LLM guided by the instruction."""

from dataclasses import dataclass
from typing import ClassVar

from methods.interface import Method, PseudoCLS, Reduced, Shape, Stage, View, Words
from methods.reduce import keep_top
from methods.schedule import check_budget, even_cuts, group_ends
from methods.score import activation_weighted, map_relevance, relevance


@dataclass(frozen=True, kw_only=True)
class IVTP(Method):
    """Group-wise token pruning by attention rollout, Eqs. 3–4, with the ViT's CLS and then with a pseudo CLS.

    group: layers in a group; threshold: τ of Eq. 8; llm_layers: the LLM layers in which stage 2 prunes (all, where the
    model has fewer); start: the layer that ends the first group (0 is the supplement's Algorithm 2, group − 1 the
    main text's reading); tokens_into_llm: what stage 1 leaves. By default that follows the supplement's Section 2:
    every cut of both stages drops the same number, and below 128 tokens stage 1 leaves twice the budget.
    """

    name: ClassVar[str] = "ivtp"
    paper: ClassVar[str] = "IVTP (ECCV 2024)"

    tokens: int
    group: int = 3
    threshold: float = 0.2
    llm_layers: int = 12
    tokens_into_llm: int | None = None
    start: int = 0

    def __post_init__(self) -> None:
        if self.group < 1:
            raise ValueError(f"group: {self.group} is not possible; allowed are 1 or more layers")
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold: {self.threshold} is not possible; a cosine is within -1 to 1")
        if self.llm_layers < 1:
            raise ValueError(f"llm_layers: {self.llm_layers} is not possible; allowed are 1 or more layers")
        if self.start < 0:
            raise ValueError(f"start: {self.start} is not possible; allowed are 0 or more")
        if self.tokens_into_llm is not None and self.tokens_into_llm < self.tokens:
            raise ValueError(f"tokens_into_llm: {self.tokens_into_llm} is less than tokens, {self.tokens}")

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return the ViT stage and the LLM stage (Algorithm 2)."""
        check_budget(self.tokens, shape)
        vit = group_ends(shape.vit_layers, self.group, self.start)
        pruned = min(self.llm_layers, shape.llm_layers)
        llm = tuple(cut for cut in group_ends(pruned, self.group, self.start) if cut < shape.llm_layers)
        if not vit or not llm:
            raise ValueError(
                f"start: {self.start} with group {self.group} ends no group within the {shape.vit_layers} ViT layers "
                f"and below the last of the {pruned} LLM layers"
            )
        between = self._tokens_into_llm(shape, len(vit), len(llm))
        return (
            Stage(
                seam="vit",
                reduce=most_important,
                cuts=even_cuts(vit, shape.patches, between),
                needs=frozenset({"cls_rollout", "value_norm"}),
            ),
            Stage(
                seam="llm",
                reduce=most_important,
                cuts=even_cuts(llm, between, self.tokens),
                needs=frozenset({"rider_rollout", "value_norm"}),
            ),
        )

    def _tokens_into_llm(self, shape: Shape, vit_cuts: int, llm_cuts: int) -> int:
        if self.tokens_into_llm is not None:
            check_budget(self.tokens_into_llm, shape)
            return self.tokens_into_llm
        if self.tokens < 128:
            return min(2 * self.tokens, shape.patches)
        return shape.patches - round((shape.patches - self.tokens) * vit_cuts / (vit_cuts + llm_cuts))

    @property
    def reads_clip(self) -> bool:
        """True: relevance is CLIP's."""
        return True

    def pseudo_cls(self, words: Words) -> PseudoCLS:
        """Return the mean embedding of the question's relevant tokens, else the projected visual CLS (Eqs. 6–8)."""
        assert words.clip is not None
        scores = relevance(words.clip.features, words.clip.cls)
        relevant = map_relevance(scores, words.clip.spans, words.spans) >= self.threshold
        if not relevant.any():
            return PseudoCLS(words.projected_cls, [])
        return PseudoCLS(
            words.embeddings[relevant].mean(dim=0), [words.spans[i] for i in relevant.nonzero()[:, 0].tolist()]
        )


def most_important(view: View, n: int) -> Reduced:
    """Keep the n tokens of highest importance (Eq. 4)."""
    assert view.attention is not None and view.value_norm is not None
    return keep_top(activation_weighted(view.attention, view.value_norm), n, view.size)
