"""Schedules: from a token budget to the cuts that reach it, and the visual tokens that enter every layer."""

import math
from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, NamedTuple

from methods.interface import Cut, Shape, Stage

Budget = Literal["mean", "kept"]  # tokens counts the mean over all LLM layers, or what the last of them sees


class TokensPerLayer(NamedTuple):
    """Visual tokens of one image that enter every layer (CLS and text are not counted)."""

    vit: tuple[int, ...]
    llm: tuple[int, ...]


def check_budget(tokens: int, shape: Shape) -> None:
    """Refuse a budget that no method can reach on this shape. Errors: ValueError naming the possible ones."""
    if not 1 <= tokens <= shape.patches:
        raise ValueError(f"tokens: {tokens} is not possible; allowed are 1 to {shape.patches}")


def check_square(tokens: int, shape: Shape, method: str) -> int:
    """Return the side of a square grid of tokens. Errors: ValueError that names the nearest squares."""
    check_budget(tokens, shape)
    side = math.isqrt(tokens)
    if side * side != tokens:
        above = f" and {(side + 1) ** 2}" if (side + 1) ** 2 <= shape.patches else ""
        raise ValueError(f"tokens: {tokens} is not possible, {method} needs a square; the nearest are {side**2}{above}")
    return side


def even_cuts(layers: Iterable[int], before: int, after: int) -> tuple[Cut, ...]:
    """Spread before → after tokens over cuts at these layers, the same number a cut but for rounding.

    The running total is rounded, not each step, so that the last cut leaves exactly `after`
    (IVTP supplement, Section 2: "the same number of visual tokens" in each layer; 512 over 23 is 22, 23, 22, …).
    """
    layers = tuple(layers)
    return tuple(
        Cut(layer, before - round((before - after) * step / len(layers))) for step, layer in enumerate(layers, start=1)
    )


def check_llm_layers(llm_layers: int) -> None:
    """Refuse a number of LLM layers to cut in that is none. Errors: ValueError naming the possible ones."""
    if llm_layers < 1:
        raise ValueError(f"llm_layers: {llm_layers} is not possible; allowed are 1 or more layers")


def first_llm_cuts(llm_layers: int, before: int, after: int, shape: Shape) -> tuple[Cut, ...]:
    """Spread before → after tokens over cuts before the LLM's layers 1 to `llm_layers`, or to its last."""
    return even_cuts(range(1, min(llm_layers, shape.llm_layers - 1) + 1), before, after)


def geometric_cuts(layers: tuple[int, ...], tokens: int, budget: Budget, shape: Shape) -> tuple[Cut, ...]:
    """Drop the same share of what is left before each of these LLM layers.

    Errors: ValueError that names the mean budgets that can be reached.
    """
    check_budget(tokens, shape)
    spans = [above - below for below, above in pairwise((0, *layers, shape.llm_layers))]

    def counts(ratio: float) -> list[int]:
        return [shape.patches, *(max(1, round(shape.patches * ratio**step)) for step in range(1, len(layers) + 1))]

    def mean(ratio: float) -> float:
        return sum(n * span for n, span in zip(counts(ratio), spans, strict=True)) / shape.llm_layers

    if budget == "kept":
        ratio = (tokens / shape.patches) ** (1 / len(layers))
    else:
        smallest = math.ceil(mean(0))
        if tokens < smallest:
            raise ValueError(
                f"tokens: a mean of {tokens} is not possible with all tokens in {layers[0]} of {shape.llm_layers} "
                f"layers; allowed are {smallest} to {shape.patches}, or set budget: kept"
            )
        steps = 4096
        above = bisect_left(range(steps), float(tokens), key=lambda step: mean(step / steps))
        ratio = min((max(above - 1, 0) / steps, above / steps), key=lambda each: abs(mean(each) - tokens))
    return tuple(Cut(layer, n) for layer, n in zip(layers, counts(ratio)[1:], strict=True))


def group_ends(layers: int, group: int, start: int) -> tuple[int, ...]:
    """Return the layers before which group-wise pruning cuts: one past the end of every group.

    `layers // group` groups, and at least one, end at layers start, start + group, … (IVTP supplement, Algorithm 2 with
    start 0; its loop would cut once more after layer 21 of 23, which its token counts and TFLOPs contradict).
    """
    ends = tuple(start + group * index for index in range(max(1, layers // group)))
    return tuple(end + 1 for end in ends if end < layers)


def merge_cuts(layers: int, before: int, after: int) -> tuple[Cut, ...]:
    """Spread before → after tokens over bipartite merges, each of which can at most halve the tokens (ToMe).

    The same number r merges in every layer where that can reach the budget; else r is the smallest that does when
    the layers near the top, where half the tokens are fewer than r, merge what they can.
    Errors: ValueError that names the smallest reachable budget.
    """
    even = even_cuts(range(layers), before, after)
    left = before
    for cut in even:
        if left - cut.tokens > left // 2:
            break
        left = cut.tokens
    else:
        return even
    for r in range((before - after) // layers, before // 2 + 1):
        lengths, left = [], before
        for _ in range(layers):
            left -= min(r, left // 2, left - after)
            lengths.append(left)
        if left == after:
            return tuple(Cut(layer, tokens) for layer, tokens in enumerate(lengths))
    smallest = fewest_merged(layers, before)
    raise ValueError(f"tokens: {after} is not possible in {layers} merging layers; allowed are {smallest} to {before}")


def fewest_merged(layers: int, before: int) -> int:
    """Return how many tokens are left at the least after a bipartite merge in each of these layers."""
    for _ in range(layers):
        before -= before // 2
    return before


def tokens_per_layer(stages: Iterable[Stage], shape: Shape) -> TokensPerLayer:
    """Return the visual tokens that enter every ViT layer and every LLM layer under a schedule."""
    left = shape.patches
    towers: dict[str, list[int]] = {}
    stages = tuple(stages)
    seams_of = {"vit": ({"image", "vit"}, shape.vit_layers), "llm": ({"input", "llm"}, shape.llm_layers)}
    for tower, (seams, layers) in seams_of.items():
        cuts = [(cut.layer + stage.inside, cut.tokens) for stage in stages if stage.seam in seams for cut in stage.cuts]
        entering = []
        for layer in range(layers + 1):
            left = min([left, *(tokens for at, tokens in cuts if at == layer)])
            entering.append(left)
        towers[tower] = entering[:layers]
    return TokensPerLayer(vit=tuple(towers["vit"]), llm=tuple(towers["llm"]))
