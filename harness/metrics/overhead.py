"""A method's own matrix products beside the model's, as harness/model runs them. Unit: MACs.

In: attention rows and matrices that a stage needs, their rollout, the projections of a layer that has not run yet, the
likeness that chooses SparseVLM's raters, trained modules, the pseudo CLS's way through projector and LLM, products
inside a stage's `reduce`, the CLIP text encoder. Not in: element-wise work, norms, sorting, resizing, distances that
are no product, and IVTP's products of single vectors with CLIP's (cosines of words with CLS, CLS's way into CLIP's
joint space and a pseudo CLS's way back), which are below one part in a million.

Exact for a prompt with one image but for two upper bounds, since the lengths do not tell: every text token behind the
image is taken for a rater, and the text encoder reads its full context.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig

from harness.metrics.counted import Counted, clip_text
from harness.metrics.tracing import module_macs
from harness.model.plan import NEXT, Plan, Planned, plan
from methods.interface import Method, Reading, Seam, View, Words


def method_cost(
    modules: Counted,
    method: Method,
    vit: Sequence[Sequence[int]],
    llm: Sequence[int],
    text_tokens: int,
    *,
    into_vit: int,
    leaving_vit: Sequence[int],
    before_image: int = 0,
    text_encoder: CLIPTextConfig | None = None,
) -> dict[str, int]:
    """Return the MACs of every kind of work that the method's stages ask for.

    vit: visual tokens that enter each layer, a row an image; llm: those of all images; into_vit: an image's patches
    that the ViT gets; leaving_vit: an image's into the projector; before_image: text tokens in front of the image,
    which the pseudo CLS sees (of several images, that between them is left out, and they share the LLM's visual tokens
    evenly); text_encoder: the CLIP's text side.
    """
    stages, shape = method.stages(modules.shape), modules.shape

    def seam(name: Seam, layers: int) -> Plan:
        return plan(stages, name, shape, layers)

    tower, decoder = seam("vit", modules.all_layers), seam("llm", shape.llm_layers)
    cost: Counter[str] = Counter()
    for each, before, after in _gap(_in_order(seam("image", 1)), shape.patches, into_vit):
        cost["reduce"] += len(vit) * _reduce(each, before, after, modules.patch_values, 1)
    for entering, leaving in zip(vit, leaving_vit, strict=True):
        cost += _vision(modules, tower, [into_vit, *entering, leaving])
    for each, before, after in _gap(_in_order(seam("input", shape.llm_layers)), sum(leaving_vit), llm[0]):
        cost["reduce"] += _of_each(len(vit), each, before, after, modules.llm_hidden, modules.llm_head)
    cost += _language(modules, decoder, len(vit), llm, text_tokens, before_image)
    if decoder.rider >= 0:
        for image in range(1, len(vit) + 1):
            seen = [before_image + n * image // len(vit) for n in llm]
            cost += _pseudo_cls(modules, decoder, seen, inserted=method.inserts_pseudo_cls)
        cost["rider"] += len(vit) * modules.projector(1 + _lifts(method))
        cost["text encoder"] += _text_encoder(text_encoder) if text_encoder else 0
    return dict(+cost)


def _vision(modules: Counted, tower: Plan, lengths: Sequence[int]) -> Counter[str]:
    """Cost of one image in the ViT; lengths: patches before the first layer's cuts, into every layer, and out."""
    cost: Counter[str] = Counter()
    width = modules.vision_width
    for layer in tower.rows:
        cost["attention"] += (modules.cls + lengths[layer + 1]) * width
    for layer in tower.matrix:
        n = modules.cls + lengths[layer + 1]
        cost["attention"] += n * n * width
        cost["rollout"] += n * n
    for each, before, after in _cuts(tower, lengths):
        needs, n = each.stage.needs, modules.cls + before
        if needs & NEXT:
            cost["projections"] += n * width * width
        if "next_cls_row" in needs:
            cost["projections"] += width * width
            cost["attention"] += n * width
        keys = width if "next_keys" in needs else modules.vision_head
        cost["reduce"] += _reduce(each, before, after, width, keys)
    return cost


def _language(
    modules: Counted, decoder: Plan, images: int, llm: Sequence[int], text_tokens: int, before_image: int
) -> Counter[str]:
    """Cost of the LLM's cuts, without the pseudo CLS."""
    cost: Counter[str] = Counter()
    hidden, width = modules.llm_hidden, modules.llm_width
    raters = max(1, text_tokens - before_image)
    for each, before, after in _cuts(decoder, [llm[0], *llm]):
        needs, n = each.stage.needs, before + text_tokens
        if "last_row" in needs:
            cost["attention"] += n * width
        if "next_last_row" in needs:
            cost["projections"] += hidden * (n * modules.llm_key_width + width)
            cost["attention"] += n * width
        if "rater_row" in needs:
            cost["attention"] += images * raters * n * width
        if each.stage.module is not None:
            cost["decision module"] += images * _module(each.stage.module, before // images, text_tokens, hidden)
        cost["reduce"] += _of_each(images, each, before, after, hidden, modules.llm_head)
    if any("rater_row" in each.stage.needs for each in _in_order(decoder)):
        cost["raters"] += llm[0] * text_tokens * hidden
    return cost


def _pseudo_cls(modules: Counted, decoder: Plan, seen: Sequence[int], *, inserted: bool) -> Counter[str]:
    """Cost of one image's pseudo CLS; seen: tokens before it at every LLM layer.

    inserted: it is one of the model's own tokens, so only its attention is extra.
    """
    cost: Counter[str] = Counter()
    for layer, before in enumerate(seen[: decoder.rider]):
        if not inserted:
            own = modules.decoder_layer(layer, 1, before + 1)
            cost["rider"] += own.linear + own.attention
        if layer in decoder.rows | decoder.matrix:
            cost["attention"] += (before + 1) * modules.llm_width
        if layer in decoder.matrix:
            cost["attention"] += (before + inserted) ** 2 * modules.llm_width
            cost["rollout"] += (before + 1) ** 2
    return cost


def _lifts(method: Method) -> int:
    """Return how many of CLIP's vectors the guidance of an image brings into the LLM, if its words are relevant."""
    lifted = []

    def lift(joint: Tensor) -> Tensor:
        lifted.append(joint)
        return joint

    one, span = torch.ones(1, 1), [(0, 1)]
    method.guide(Words(one, span, one[0], Reading(one, span, one[0], lift)))
    return len(lifted)


def _text_encoder(config: CLIPTextConfig) -> int:
    return clip_text(
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_hidden_layers,
        config.projection_dim,
        config.max_position_embeddings,
    )


def _in_order(plan: Plan) -> list[Planned]:
    cuts = [each for place in (plan.inside, plan.before) for planned in place.values() for each in planned]
    return sorted(cuts, key=lambda each: each.above)


def _cuts(tower: Plan, lengths: Sequence[int]) -> Iterator[tuple[Planned, int, int]]:
    """Yield every cut with the tokens before and behind it."""
    for above, planned in groupby(_in_order(tower), key=lambda each: each.above):
        yield from _gap(list(planned), lengths[above + 1], lengths[above + 2])


def _gap(planned: Sequence[Planned], before: int, after: int) -> Iterator[tuple[Planned, int, int]]:
    """Yield the cuts between two layers, in their order, with the tokens before and behind each."""
    for each in planned[:-1]:
        left = min(before, each.cut.tokens)
        yield each, before, left
        before = left
    for each in planned[-1:]:
        yield each, before, after


def _of_each(images: int, planned: Planned, before: int, after: int, width: int, keys: int) -> int:
    return images * _reduce(planned, before // images, after // images, width, keys)


def _reduce(planned: Planned, before: int, after: int, width: int, keys: int) -> int:
    """Return the MACs inside one `reduce`.

    Those of an adaptive stage depend on how many tokens it leaves; they are taken to be affine in them.
    """
    stage, cut = planned
    macs, left = _run(stage.reduce, before, cut.tokens, width, keys, 1)
    if stage.adaptive:
        more, most = _run(stage.reduce, before, cut.tokens, width, keys, max(2, before // 8))
        macs += (after - left) * (more - macs) // max(1, most - left)
    return macs


@lru_cache(maxsize=4096)
def _module(make: Callable[[int], nn.Module], tokens: int, text_tokens: int, width: int) -> int:
    """Return the MACs of a cut's trained module on so many tokens of an image and of text."""
    with torch.device("meta"):
        return module_macs(make(width).eval(), torch.empty(1, tokens, width), torch.empty(1, text_tokens, width))


@lru_cache(maxsize=4096)
def _run(reduce: Any, before: int, tokens: int, width: int, keys: int, attended: int) -> tuple[int, int]:
    """Run a `reduce` on numbers that mean nothing, attention to so many tokens: its MACs, and what it leaves."""
    one = torch.ones(1, 1, 1)
    attention = (torch.arange(before) < attended).float()[None]
    view = View(
        x=one.expand(1, before, width),
        size=torch.ones(1, before),
        attention=attention,
        rows=attention[:, None],
        value_norm=torch.ones(1, before),
        keys=one.expand(1, before, keys),
        cls=torch.ones(1, width),
        random=torch.linspace(0, 1, before)[None],
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        reduced = reduce(view, tokens)
    return int(counter.get_total_flops()) // 2, reduced.index.shape[1]
