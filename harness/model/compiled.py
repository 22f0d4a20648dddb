"""torch.compile where `attach` leaves a layer as it is: its norms and its MLP, in both towers.

A whole layer cannot be compiled: `attach` binds its forward, hooks listen to its projections, and the cache's lengths
differ from layer to layer, so that every one would be compiled anew until torch gives up. Numbers of tokens are
dynamic, so that a part is compiled once for all cuts, and layers of one shape share it.
"""

from torch import nn
from transformers import PreTrainedModel

from harness.errors import VtbenchError
from harness.model.anatomy import anatomy

PARTS = ("mlp", "layer_norm1", "layer_norm2", "input_layernorm", "post_attention_layernorm")


def compiled(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model, whose layers' norms and MLPs torch.compile compiles when they first run.

    Errors: VtbenchError for an architecture that is not known; torch's own, then, where there is no C++ compiler.
    """
    parts = anatomy(model)
    for layer in (*parts.vit_layers, *parts.llm_layers):
        for name, module in layer.named_children():
            if name in PARTS:
                module.compile(dynamic=True)
    return model


def check_compiled(model: PreTrainedModel) -> None:
    """Refuse what is compiled as a whole or where attach reaches into it. Errors: VtbenchError naming what may be."""
    whole = getattr(model, "_orig_mod", None)
    if whole is not None:
        raise _impossible(whole)
    parts = anatomy(model)
    layers = {*parts.vit_layers, *parts.llm_layers}
    reached = layers | {layer.self_attn for layer in layers}
    for module in model.modules():
        if module._compiled_call_impl is not None and not reached.isdisjoint(module.modules()):
            raise _impossible(module)


def _impossible(module: nn.Module) -> VtbenchError:
    return VtbenchError(
        f"torch.compile: of {type(module).__name__} is not possible under attach; allowed are the norms and the MLP of "
        "a layer, as harness.model.compiled does it"
    )
