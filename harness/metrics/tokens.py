"""Visual tokens that really entered every layer, as means over samples."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from harness.errors import VtbenchError


@dataclass(frozen=True, kw_only=True)
class Realised:
    """Mean visual tokens of a sample: into the LLM, into each ViT layer and each LLM layer; and its other tokens."""

    patches: int
    nominal: int | None
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
            "patches": self.patches,
            "nominal": self.nominal,
            "into_llm": self.into_llm,
            "vit": list(self.vit),
            "llm": list(self.llm),
            "mean_llm": self.mean_llm,
        }


def realised(observations: Collection[Mapping[str, Any]], nominal: int | None, patches: int) -> Realised:
    """Return the means over samples.

    observations: mappings with "visual_tokens", "vit" (a list per image, which are summed), "llm", "text_tokens";
    nominal: the budget that was asked for, None where the method adapts to each image; patches: an image's, uncut.
    Errors: VtbenchError without samples, ValueError where samples have different numbers of layers.
    """
    if not observations:
        raise VtbenchError("tokens: there are no samples to average over")

    def layers(samples: Iterable[Sequence[int]]) -> tuple[float, ...]:
        return tuple(fmean(column) for column in zip(*samples, strict=True))

    depth = next((len(image) for sample in observations for image in sample["vit"]), 0)
    none = [0] * depth
    images = ([sum(layer) for layer in zip(none, *sample["vit"], strict=True)] for sample in observations)

    return Realised(
        patches=patches,
        nominal=nominal,
        into_llm=fmean(sample["visual_tokens"] for sample in observations),
        vit=layers(images),
        llm=layers(sample["llm"] for sample in observations),
        text=fmean(sample["text_tokens"] for sample in observations),
    )
