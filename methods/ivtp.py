"""IVTP (Huang et al., ECCV 2024): group-wise pruning in the ViT, then in the LLM guided by the instruction."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from methods.interface import PseudoCLS, Shape, Stage, Words
from methods.ivtp_v import IVTPV
from methods.schedule import check_budget, check_llm_layers
from methods.score import map_relevance, relevance


@dataclass(frozen=True, kw_only=True)
class IVTP(IVTPV):
    """IVTP-V, whose parameters it has, and then in the LLM's first layers the same with a pseudo CLS of its words.

    threshold: τ of Eq. 8, for relevant tokens (RT) alone; llm_layers: the LLM layers in which stage 2 prunes (all,
    where the model has fewer); tokens_into_llm: what stage 1 leaves. By default that follows the supplement's Section
    2: every cut of both stages drops the same number, and below 128 tokens stage 1 leaves twice the budget.

    guidance (Table 6): OTT, the question's own tokens; RT, those of them beyond the threshold; TE, relevance by CLIP's
    text encoder rather than by the cosine of the LLM's embeddings; none, the visual CLS. pseudo_cls (supplement, Table
    7): llm, the mean of the LLM's embeddings; clip, of CLIP's text tokens; hybrid, the mean of llm's and the visual
    CLS; as_token, llm's as a true token that stays in the sequence. Ours, where the paper is silent: CLIP's tokens
    come into the LLM through the pseudo-inverse of CLIP's visual projection and LLaVA's projector; hybrid weighs both
    alike.
    """

    name: ClassVar[str] = "ivtp"
    paper: ClassVar[str] = "IVTP (ECCV 2024)"

    threshold: Annotated[float, "-1 to 1"] = 0.2
    llm_layers: Annotated[int, "1 or more"] = 12
    tokens_into_llm: Annotated[int, "tokens to all patches"] | None = None
    guidance: Literal["OTT+TE+RT", "OTT+RT", "OTT", "none"] = "OTT+TE+RT"
    pseudo_cls: Literal["llm", "clip", "hybrid", "as_token"] = "llm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold: {self.threshold} is not possible; a cosine is within -1 to 1")
        check_llm_layers(self.llm_layers)
        if self.tokens_into_llm is not None and self.tokens_into_llm < self.tokens:
            raise ValueError(
                f"tokens_into_llm: {self.tokens_into_llm} is not possible; allowed are {self.tokens} or more"
            )
        if self.pseudo_cls == "clip" and not self.reads_clip:
            raise ValueError("pseudo_cls: clip needs CLIP's text encoder; allowed with guidance: OTT+TE+RT")
        if self.pseudo_cls == "hybrid" and self.guidance == "none":
            raise ValueError("pseudo_cls: hybrid needs a textual part; allowed with a guidance other than none")

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return the ViT stage and the LLM stage (Algorithm 2). Errors: ValueError for a start that ends no group."""
        check_budget(self.tokens, shape)
        vit = self._ends(shape.vit_layers, shape.vit_layers)
        llm = self._ends(min(self.llm_layers, shape.llm_layers), shape.llm_layers - 1)
        between = self._tokens_into_llm(shape, len(vit), len(llm))
        return (
            self._stage("vit", vit, shape.patches, between),
            self._stage("llm", llm, between, self.tokens),
        )

    def _tokens_into_llm(self, shape: Shape, vit_cuts: int, llm_cuts: int) -> int:
        if self.tokens_into_llm is not None:
            if self.tokens_into_llm > shape.patches:
                raise ValueError(
                    f"tokens_into_llm: {self.tokens_into_llm} is not possible; "
                    f"allowed are {self.tokens} to {shape.patches}"
                )
            return self.tokens_into_llm
        if self.tokens < 128:
            return min(2 * self.tokens, shape.patches)
        return shape.patches - round((shape.patches - self.tokens) * vit_cuts / (vit_cuts + llm_cuts))

    @property
    def reads_question(self) -> bool:
        """Whether words guide."""
        return self.guidance != "none"

    @property
    def reads_clip(self) -> bool:
        """Whether relevance is CLIP's."""
        return self.guidance == "OTT+TE+RT"

    @property
    def inserts_pseudo_cls(self) -> bool:
        """Whether the pseudo CLS is a true token."""
        return self.pseudo_cls == "as_token"

    def guide(self, words: Words) -> PseudoCLS:
        """Return the mean embedding of the question's relevant tokens, else the projected visual CLS (Eqs. 6–8)."""
        visual = PseudoCLS(words.projected_cls, [])
        if self.guidance == "none":
            return visual
        tokens, spans, scores = words.embeddings, words.spans, self._relevance(words)
        if self.pseudo_cls == "clip":
            assert words.clip is not None
            tokens, spans = words.clip.features, words.clip.spans
            scores = relevance(tokens, words.clip.cls)
        relevant = (scores >= self.threshold).nonzero()[:, 0]
        if not len(relevant):
            return visual
        state = tokens[relevant].mean(dim=0)
        if self.pseudo_cls == "clip":
            assert words.clip is not None
            state = words.clip.lift(state)
        if self.pseudo_cls == "hybrid":
            state = (state + words.projected_cls) / 2
        return PseudoCLS(state, [spans[index] for index in relevant.tolist()])

    def _relevance(self, words: Words) -> Tensor:
        """Return how relevant each of the LLM's tokens [T] is to the image."""
        if self.guidance == "OTT":
            return words.embeddings.new_full((len(words.embeddings),), torch.inf)
        if self.guidance == "OTT+RT":
            return relevance(words.embeddings, words.projected_cls)
        assert words.clip is not None
        return map_relevance(relevance(words.clip.features, words.clip.cls), words.clip.spans, words.spans)
