"""Attaches a method to an unchanged Hugging Face model: `with attach(model, method("ivtp", tokens=64)): …`.

Inside the context `model.generate(**inputs)` and `model(**inputs)` run with visual tokens removed; after it the model
is what it was, bit for bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.errors import VtbenchError
from harness.model.anatomy import anatomy
from harness.model.attached import Attached
from harness.model.attention import FLASH, check_attention, is_flash
from harness.model.compiled import check_compiled
from harness.model.text import TextEncoder, default_text_encoder, default_tokenizer, load_text_encoder
from methods.interface import Method

__all__ = ["Attached", "attach"]

_attached: WeakSet[PreTrainedModel] = WeakSet()


@contextmanager
def attach(
    model: PreTrainedModel,
    method: Method,
    *,
    text_encoder: TextEncoder | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
) -> Iterator[Attached]:
    """Run the model with this method's tokens removed while the context lasts.

    text_encoder and tokenizer are for methods that read the question (IVTP); by default they are the model's own, by
    its name. seed is for methods that draw. Errors: VtbenchError for a model, method or use that cannot work.
    """
    if method.trained:
        raise VtbenchError(f"{method.name}: needs trained modules, of which there are none; allowed is counting alone")
    check_compiled(model)
    parts = anatomy(model)
    if model in _attached:
        raise VtbenchError("attach: a method is attached to this model already; leave its context first")
    for tower in (parts.vision, parts.llm):
        check_attention(tower.config._attn_implementation)
    try:
        stages = method.stages(parts.shape)
    except ValueError as error:
        raise VtbenchError(f"{method.name}: {error}") from None
    if is_flash(parts.vision) and any(stage.proportional for stage in stages):
        raise VtbenchError(
            f"attention: {FLASH} is not possible with {method.name}, which adds log(size) to the logits of the vision "
            "tower; allowed are sdpa, eager"
        )
    name = str(model.config.name_or_path)
    if not method.reads_clip:
        text_encoder = None
    elif text_encoder is None:
        text_encoder = load_text_encoder(default_text_encoder(name), str(model.device))
    if tokenizer is None and method.reads_question:
        tokenizer = default_tokenizer(name)
    attached = Attached(parts, method, stages, text_encoder, tokenizer, seed)
    bound: dict[nn.Module, Any] = {}
    hooks = [
        model.register_forward_pre_hook(_refuse_labels, with_kwargs=True),
        parts.core.register_forward_pre_hook(attached.enter, with_kwargs=True),
        parts.vision.register_forward_pre_hook(attached.see, with_kwargs=True),
    ]
    try:
        _attached.add(model)
        for index, layer in enumerate(parts.vit_layers):
            _bind(layer, partial(attached.vision.forward, index, layer), bound)
        for index, layer in enumerate(parts.llm_layers):
            _bind(layer, partial(attached.language.forward, index, layer, layer.forward), bound)
        yield attached
    finally:
        for layer, forward in bound.items():
            del layer.forward
            if forward is not None:
                layer.forward = forward
        for hook in hooks:
            hook.remove()
        _attached.discard(model)


def _bind(layer: nn.Module, forward: Callable[..., Tensor], bound: dict[nn.Module, Any]) -> None:
    bound[layer] = vars(layer).get("forward")  # accelerate binds one of its own
    layer.forward = forward


def _refuse_labels(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if kwargs.get("labels") is not None:
        raise VtbenchError("labels: training is not possible under attach")
