"""What fvcore counts of one module on the meta device: multiply-adds (MACs), and 5 operations a LayerNorm element."""

import warnings
from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # fvcore scripts a loss function when it is imported
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

from harness.errors import VtbenchError

# fvcore counts what it has a handler for and calls the rest 0. These are not matrix products; any other is an error.
_FREE = {
    f"aten::{name}"
    for names in (
        "add sub rsub mul div neg pow rsqrt sqrt exp mean sum sigmoid silu gelu relu tanh softmax cos sin",
        "square erf clip hardtanh relu6 leaky_relu prelu mish hardswish softplus expm1 min gt where",
        "embedding clone repeat unflatten amax eq masked_fill",
    )
    for name in names.split()
}


class Layer(NamedTuple):
    """Cost of one layer."""

    linear: int = 0  # MACs
    attention: int = 0  # MACs of the two attention products, all N²
    norm: int = 0  # fvcore's operations
    gate: int = 0  # MACs of an LLM's gate_proj, which linear has too

    def __add__(self, other: "Layer") -> "Layer":  # type: ignore[override]
        return Layer(*(a + b for a, b in zip(self, other, strict=True)))

    def __sub__(self, other: "Layer") -> "Layer":
        return Layer(*(a - b for a, b in zip(self, other, strict=True)))


class AnyLength(NamedTuple):
    """Cost of a layer at any length: `each` of its queries, and every `pair` of a query and a key."""

    each: Layer
    pair: Layer

    def at(self, queries: int, keys: int) -> Layer:
        """Return the cost for `queries` tokens that attend to `keys`."""
        return Layer(*(queries * (a + keys * b) for a, b in zip(self.each, self.pair, strict=True)))


def fitted(trace: Callable[[int, int], Layer], *further: tuple[int, int]) -> AnyLength:
    """Return a layer's cost at any length from fvcore's counts of it with so many queries and keys.

    Linear layers and norms cost the same for every query, attention for every query and key: two counts give both,
    a third one and those at `further` must agree to the last unit. Errors: VtbenchError for a layer that costs
    otherwise; as `count_operators`.
    """
    one, two = trace(1, 1), trace(2, 2)
    pair = Layer(*((b - 2 * a) // 2 for a, b in zip(one, two, strict=True)))
    found = AnyLength(one - pair, pair)
    if two != found.at(2, 2) or any(trace(*lengths) != found.at(*lengths) for lengths in ((3, 3), *further)):
        raise VtbenchError("FLOPs: a layer's cost is not linear in its tokens but for attention's products")
    return found


def module_macs(module: nn.Module, *inputs: Tensor) -> int:
    """Return the MACs of a module's linear layers, convolutions and attention products on these inputs."""
    counts = total(module, *inputs)
    return counts.linear + counts.attention


def patch_macs(embedding: nn.Conv2d) -> int:
    """Return the MACs of embedding one patch."""
    # meta convolutions fail under jit trace; one patch is small enough to run
    one = torch.zeros(1, embedding.in_channels, *embedding.kernel_size)
    return total(embedding.to_empty(device="cpu"), one).linear


def cost(block: nn.Module, call: Callable[..., Any], *inputs: Tensor) -> Layer:
    """Return what `call(block, *inputs)` costs. Errors: VtbenchError for an operation that nothing counts."""
    counts = count_operators(Call(block, call), *inputs)
    gate = as_layer(counts.get("block.mlp.gate_proj", Counter())).linear
    return as_layer(counts[""])._replace(gate=gate)


class Call(nn.Module):
    """A module with its keyword arguments: a trace passes positional tensors only."""

    def __init__(self, block: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.block = block
        self.call = call

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the call returns."""
        return self.call(self.block, *inputs)


class Past:
    """A cache that already holds n tokens and stores nothing."""

    def __init__(self, n: int) -> None:
        self.n = n

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values behind those that it holds."""

        def longer(x: Tensor) -> Tensor:
            return torch.cat([x.new_empty(*x.shape[:2], self.n, x.shape[-1]), x], dim=2)

        return longer(keys), longer(values)

    def get_seq_length(self) -> int:
        """Return how many it holds."""
        return self.n


def alike(layers: nn.ModuleList) -> list[int]:
    """Return for every layer the first one with the same modules and sizes."""
    first: dict[str, int] = {}
    return [first.setdefault(repr(layer), index) for index, layer in enumerate(layers)]


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """MACs of `scaled_dot_product_attention`: batch · heads · Lq · Lk · (dq + dv); fvcore itself counts 0."""
    query, key, value = (get_shape(v) for v in inputs[:3])
    return Counter({"attention": prod(query[:-1]) * key[-2] * (query[-1] + value[-1])})


def _einsum(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """MACs of an attention product as einsum: every index once. fvcore's own are those that NumPy prints, rounded."""
    terms, result = inputs[0].toIValue().replace(" ", "").replace("...", "").split("->")
    sizes: dict[str, int] = {}
    for term, value in zip(terms.split(","), inputs[1].node().inputs(), strict=True):
        sizes |= zip(term, get_shape(value)[-len(term) :], strict=True)
    return Counter({"attention": prod(get_shape(outputs[0])[: -len(result)]) * prod(sizes.values())})


def count_operators(module: nn.Module, *inputs: Tensor) -> dict[str, Counter[str]]:
    """Return fvcore's counts by module and operator. Errors: VtbenchError for an operation it would call 0."""
    analysis = FlopCountAnalysis(module, inputs)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
    analysis.set_op_handle("aten::einsum", _einsum)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counts = analysis.by_module_and_operator()
    unknown = sorted(set(analysis.unsupported_ops()) - _FREE)
    if unknown:
        raise VtbenchError(f"FLOPs: cannot count {', '.join(unknown)} in {type(module).__name__}")
    return counts


def as_layer(operators: Counter[str]) -> Layer:
    """Sort fvcore's operators into ours. Eager attention's matmuls are attention, as no linear layer is a matmul."""
    kinds = {"linear": 0, "conv": 0, "layer_norm": 2, "attention": 1, "matmul": 1, "bmm": 1}
    sums = [0, 0, 0]
    for operator, macs in operators.items():
        sums[kinds[operator]] += int(macs)
    return Layer(*sums)


def total(module: nn.Module, *inputs: Tensor) -> Layer:
    """Return what a module costs on these inputs. Errors: as `count_operators`."""
    return as_layer(count_operators(module, *inputs)[""])
