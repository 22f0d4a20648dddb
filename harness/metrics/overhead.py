"""A method's own matrix products beside the model's, as harness/model runs them. Unit: MACs.

In: attention rows and matrices that a stage needs, their rollout, the rider's way through the LLM, products inside a
stage's `reduce`, the CLIP text encoder. Not in: element-wise work, norms, sorting, and IVTP's products of single
vectors (cosines of words with CLS, CLS's way into CLIP's joint space), which are below one part in a million.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig

from harness.metrics.counted import Counted, clip_text
from methods.interface import Stage, View


def method_cost(
    modules: Counted,
    stages: Sequence[Stage],
    vit: Sequence[Sequence[int]],
    llm: Sequence[int],
    text_tokens: int,
    *,
    leaving_vit: Sequence[int],
    before_image: int = 0,
    text_encoder: CLIPTextConfig | None = None,
) -> dict[str, int]:
    """Return the MACs of every kind of work that these stages ask for.

    vit: visual tokens that enter each layer, a row an image; llm: those of all images; leaving_vit: an image's into the
    projector; before_image: text tokens in front of the image, which the rider sees (of several images, that between
    them is left out, and they share the LLM's visual tokens evenly); text_encoder: the CLIP's text side, counted at its
    full context (an upper bound, as the engine does not pad).
    """
    cost: Counter[str] = Counter()
    images = len(vit)
    for stage in stages:
        if stage.seam == "vit":
            for image in vit:
                cost += _in_vit(modules, stage, image)
            continue
        for cut in stage.cuts:
            for index in range(images):
                N = llm[cut.layer - 1] // images if cut.layer else leaving_vit[index]
                cost["reduce"] += _reduce(stage.reduce, N, cut.tokens, modules.llm_hidden, modules.llm_head)
            if "last_row" in stage.needs and cut.layer and images:
                cost["attention"] += (llm[cut.layer - 1] + text_tokens) * modules.llm_width
        if "rider_rollout" in stage.needs:
            for index in range(images):
                seen = [before_image + n * (index + 1) // images for n in llm]
                cost += _rider(modules, stage, seen)
                cost["text encoder"] += _text_encoder(text_encoder) if text_encoder else 0
    return dict(+cost)


def _in_vit(modules: Counted, stage: Stage, entering: Sequence[int]) -> Counter[str]:
    cost: Counter[str] = Counter()
    at = {cut.layer for cut in stage.cuts}
    for cut in stage.cuts:
        N = entering[cut.layer if stage.inside else max(cut.layer - 1, 0)]
        cost["reduce"] += _reduce(stage.reduce, N, cut.tokens, modules.vision_width, modules.vision_head)
        if stage.needs & {"cls_row", "cls_rollout"} and (cut.layer or stage.inside):
            cost["attention"] += (1 + N) * modules.vision_width
    if "cls_rollout" in stage.needs:
        for layer in range(max(at, default=0)):
            if layer + 1 not in at:
                n = 1 + entering[layer]
                cost["attention"] += n * n * modules.vision_width
                cost["rollout"] += n * n
    return cost


def _rider(modules: Counted, stage: Stage, seen: Sequence[int]) -> Counter[str]:
    """Cost of one image's rider, which sees this many tokens at every LLM layer, up to the last cut."""
    cost = Counter(rider=modules.projector(1))
    at = {cut.layer for cut in stage.cuts}
    for layer, prefix in enumerate(seen[: max(at, default=0)]):
        own = modules.decoder_layer(layer, 1, prefix + 1)
        cost["rider"] += own.linear + own.attention + (prefix + 1) * modules.llm_width
        if layer + 1 not in at:
            cost["attention"] += prefix * prefix * modules.llm_width
            cost["rollout"] += (prefix + 1) ** 2
    return cost


def _text_encoder(config: CLIPTextConfig) -> int:
    return clip_text(
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_hidden_layers,
        config.projection_dim,
        config.max_position_embeddings,
    )


@lru_cache(maxsize=4096)
def _reduce(reduce: Any, entering: int, leaving: int, width: int, head: int) -> int:
    """Return the MACs inside one `reduce`, run on numbers that mean nothing."""
    view = View(
        x=torch.ones(1, 1, 1).expand(1, entering, width),
        size=torch.ones(1, entering),
        attention=torch.linspace(0, 1, entering)[None],
        value_norm=torch.ones(1, entering),
        keys=torch.ones(1, 1, 1).expand(1, entering, head),
        cls=torch.ones(1, width),
        random=torch.linspace(0, 1, entering)[None],
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        reduce(view, leaving)
    return int(counter.get_total_flops()) // 2
