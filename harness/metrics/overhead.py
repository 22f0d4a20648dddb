"""A method's own matrix products beside the model's, as harness/model runs them for one image. Unit: MACs.

In: attention rows and matrices that a stage needs, their rollout, the rider's way through the LLM, products inside a
stage's `reduce`, the CLIP text encoder. Not in: element-wise work, norms, sorting, and IVTP's products of single
vectors (cosines of words with CLS, CLS's way into CLIP's joint space), which are below one part in a million.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig

from harness.metrics.counted import Counted, clip_text
from methods.interface import Stage, View
from methods.schedule import TokensPerLayer


def method_cost(
    modules: Counted,
    stages: Sequence[Stage],
    tokens: TokensPerLayer,
    text_tokens: int,
    *,
    leaving_vit: int,
    before_image: int = 0,
    text_encoder: CLIPTextConfig | None = None,
) -> dict[str, int]:
    """Return the MACs of every kind of work that these stages ask for.

    before_image: text tokens in front of the image, which the rider sees; text_encoder: the CLIP's text side, counted
    at its full context (an upper bound, as the engine does not pad).
    """
    cost = {"attention": 0, "rollout": 0, "rider": 0, "reduce": 0}
    for stage in stages:
        at = {cut.layer for cut in stage.cuts}
        for cut in stage.cuts:
            if stage.seam == "vit":
                N = tokens.vit[cut.layer if stage.inside else max(cut.layer - 1, 0)]
            else:
                N = tokens.llm[cut.layer - 1] if cut.layer else leaving_vit
            width, head = (
                (modules.vision_width, modules.vision_head)
                if stage.seam == "vit"
                else (modules.llm_hidden, modules.llm_head)
            )
            cost["reduce"] += _reduce(stage.reduce, N, cut.tokens, width, head)
            if "last_row" in stage.needs and cut.layer:
                cost["attention"] += (N + text_tokens) * modules.llm_width
            if stage.needs & {"cls_row", "cls_rollout"} and (cut.layer or stage.inside):
                cost["attention"] += (1 + N) * modules.vision_width
        last = max(at, default=0)
        if "cls_rollout" in stage.needs:
            for n in (1 + tokens.vit[layer] for layer in range(last) if layer + 1 not in at):
                cost["attention"] += n * n * modules.vision_width
                cost["rollout"] += n * n
        if "rider_rollout" in stage.needs:
            cost["rider"] += modules.projector(1)
            for layer in range(last):
                prefix = before_image + tokens.llm[layer]
                own = modules.decoder_layer(layer, 1, prefix + 1)
                cost["rider"] += own.linear + own.attention + (prefix + 1) * modules.llm_width
                if layer + 1 not in at:
                    cost["attention"] += prefix * prefix * modules.llm_width
                    cost["rollout"] += (prefix + 1) ** 2
            if text_encoder is not None:
                cost["text encoder"] = clip_text(
                    text_encoder.hidden_size,
                    text_encoder.intermediate_size,
                    text_encoder.num_attention_heads,
                    text_encoder.num_hidden_layers,
                    text_encoder.projection_dim,
                    text_encoder.max_position_embeddings,
                )
    return {name: macs for name, macs in cost.items() if macs}


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
