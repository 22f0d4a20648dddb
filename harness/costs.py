"""What a prompt with one image costs by a method's schedule. No weights, nothing runs: `vtbench flops`."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import AutoConfig, CLIPConfig, CLIPTextConfig

from harness.asked import method_of
from harness.errors import VtbenchError
from harness.metrics.conventions import convention_of
from harness.metrics.counted import counted
from harness.metrics.flops import Flops, count
from harness.model.load import RANDOM, config_of
from harness.model.look import BEFORE_IMAGE, check_text
from harness.model.shapes import LLAVA, OTHERS, clip_large
from harness.model.text import LLAVA_CLIP, RANDOM_CLIP, default_text_encoder
from harness.reading import suggest
from methods import METHODS
from methods.interface import Method, Shape
from methods.schedule import TokensPerLayer, tokens_per_layer


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of a prompt under a convention, those of the same model unpruned beside them.

    tokens: the method's budget, all patches for one that has none, None for one that adapts to each image; then
    entering (visual tokens into every layer) and flops are upper bounds.
    """

    model: str
    method: Method
    shape: Shape
    tokens: int | None
    text_tokens: int
    convention: str
    entering: TokensPerLayer
    flops: Flops
    full: Flops

    @property
    def adaptive(self) -> bool:
        """Whether the numbers are upper bounds."""
        return any(stage.adaptive for stage in self.method.stages(self.shape))

    def rows(self) -> list[tuple[str, int, int]]:
        """Return every part with what it costs in the full model and here, `extra` by name behind its sum."""
        full, here = summed(self.full, self.convention), summed(self.flops, self.convention)
        rows = [(part, full[part], here[part]) for part in here]
        at = list(here).index("extra") + 1
        return rows[:at] + [(f"extra: {name}", 0, flops) for name, flops in self.extra.items()] + rows[at:]

    @property
    def extra(self) -> dict[str, int]:
        """The method's own cost by name, in the convention's unit; together the part `extra`."""
        rule = convention_of(self.convention)
        return {} if rule.decoder_alone else {name: rule.per_mac * macs for name, macs in self.flops.extra.items()}

    def record(self) -> dict[str, Any]:
        """Return what `vtbench flops --json` prints."""
        return {
            "model": self.model,
            "method": self.method.name,
            "tokens": self.tokens,
            "text_tokens": self.text_tokens,
            "convention": self.convention,
            "tflops": {part: flops / 1e12 for part, flops in summed(self.flops, self.convention).items()},
            "visual_tokens": {"vision": list(self.entering.vit), "llm": list(self.entering.llm)},
        }


def summed(flops: Flops, convention: str) -> dict[str, int]:
    """Return a count's parts with the sums `llm` and `total` among them."""
    parts = flops.parts(convention)
    extra = parts.pop("extra")
    llm = parts["decoder_linear"] + parts["decoder_attention"] + parts["lm_head"]
    return parts | {"llm": llm, "extra": extra, "total": flops.total(convention)}


def costs(
    model: str,
    *,
    method: str = "full",
    tokens: int | None = None,
    text_tokens: int = 64,
    convention: str = "flops",
    given: Iterable[str] = (),
) -> Costs:
    """Count a prompt with one image and so many other tokens.

    model: a known shape's name or the folder or hub id of a LLaVA config; given: the method's parameters, as key=value.
    Errors: VtbenchError for what is unknown or impossible.
    """
    convention_of(convention)
    if model in OTHERS:
        return _other(model, method, tokens, text_tokens, convention, given)
    known = ["pocket", *LLAVA, *OTHERS]
    if model not in known and model not in RANDOM and "/" not in model and not Path(model).is_dir():
        raise VtbenchError(f"{model!r} is not a model; {suggest(model, known)}, or the folder of a config")
    config: Any = config_of(model)
    shape = counted(config).shape
    check_text(model, text_tokens, config.text_config.max_position_embeddings - shape.patches)
    asked = _asked(method, given, tokens, shape)
    entering = tokens_per_layer(asked.stages(shape), shape)
    return Costs(
        model=model,
        method=asked,
        shape=shape,
        tokens=getattr(asked, "tokens", shape.patches),
        text_tokens=text_tokens,
        convention=convention,
        entering=entering,
        flops=count(
            config,
            entering,
            text_tokens + asked.inserts_pseudo_cls,
            method=asked,
            before_image=BEFORE_IMAGE,
            text_encoder=text_side(model) if asked.reads_clip else None,
        ),
        full=count(config, tokens_per_layer((), shape), text_tokens),
    )


def _asked(name: str, given: Iterable[str], tokens: int | None, shape: Shape) -> Method:
    if tokens is not None and not 1 <= tokens <= shape.patches:
        raise VtbenchError(f"--tokens: {tokens} is not possible; allowed are 1 to {shape.patches}")
    pairs = tuple(given)
    if tokens is not None and name in METHODS and "tokens" not in {field.name for field in fields(METHODS[name])}:
        raise VtbenchError(f"--tokens: {name} has no budget; leave it out")
    if tokens is not None and any(pair.partition("=")[0] == "tokens" for pair in pairs):
        raise VtbenchError("--tokens: is there beside --set tokens; allowed is one of the two")
    wrong = f"--set: {', '.join(pairs)} is not possible; it should be key=value, each key once"
    return method_of(name, pairs, tokens, shape, not_pairs=wrong)


def text_side(model: str) -> CLIPTextConfig:
    """Return the text side of the CLIP that belongs to a model. Errors: VtbenchError when it cannot be read."""
    name = default_text_encoder(model)
    if name in (LLAVA_CLIP, RANDOM_CLIP):
        config: Any = clip_large()
    else:
        try:
            config = AutoConfig.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise VtbenchError(f"{name}: has no config that can be read: {str(error).splitlines()[0]}") from None
        if not isinstance(config, CLIPConfig):
            raise VtbenchError(f"{name}: is a {config.model_type}; allowed is clip")
    text: CLIPTextConfig = config.text_config
    return text


def _other(
    model: str, method: str, tokens: int | None, text_tokens: int, convention: str, given: Iterable[str]
) -> Costs:
    from harness.metrics.others import count_other, longest_text  # four more architectures, slow to import

    if method in METHODS and method != "full":
        raise VtbenchError(
            f"--method: {method} cannot run on {model}; allowed is full, or a LLaVA: {', '.join(['pocket', *LLAVA])}"
        )
    config = OTHERS[model]()
    check_text(model, text_tokens, longest_text(config))
    other = count_other(config, text_tokens)
    return Costs(
        model=model,
        method=_asked(method, given, tokens, other.shape),
        shape=other.shape,
        tokens=other.shape.patches,
        text_tokens=text_tokens,
        convention=convention,
        entering=other.entering,
        flops=other.flops,
        full=other.flops,
    )
