"""Visual tokens that really entered every layer, as means over samples."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from harness.errors import VtbenchError


@dataclass(frozen=True, kw_only=True)
class Realised:
    """Mean visual tokens of a sample: into the LLM, into each ViT layer and each LLM layer; and its other tokens."""

    nominal: int
    into_llm: float
    vit: tuple[float, ...]
    llm: tuple[float, ...]
    text: float

    @property
    def mean_llm(self) -> float:
        """Mean over the LLM's layers, which makes methods that prune inside it comparable with others."""
        return fmean(self.llm)

    def record(self) -> dict[str, Any]:
        """Return record.json's "tokens"."""
        return {
            "nominal": self.nominal,
            "into_llm": self.into_llm,
            "vit": list(self.vit),
            "llm": list(self.llm),
            "mean_llm": self.mean_llm,
        }


def realised(observations: Collection[Mapping[str, Any]], nominal: int) -> Realised:
    """Return the means over samples.

    observations: mappings with "visual_tokens", "vit", "llm", "text_tokens"; nominal: the budget that was asked for.
    Errors: VtbenchError without samples, ValueError where samples have different numbers of layers.
    """
    if not observations:
        raise VtbenchError("tokens: there are no samples to average over")

    def layers(tower: str) -> tuple[float, ...]:
        return tuple(fmean(column) for column in zip(*(sample[tower] for sample in observations), strict=True))

    return Realised(
        nominal=nominal,
        into_llm=fmean(sample["visual_tokens"] for sample in observations),
        vit=layers("vit"),
        llm=layers("llm"),
        text=fmean(sample["text_tokens"] for sample in observations),
    )
