"""The engine's invariants for what no listed method does: adaptive counts, merging and reordering at every seam, random
draws beyond the ViT, and stages of several kinds composed."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from harness.errors import VtbenchError
from harness.model.attach import attach
from harness.model.plan import RIDER
from methods.downsample import shrink
from methods.interface import Cut, Method, PseudoCLS, Reduced, Stage, View
from methods.reduce import bipartite_merge, keep_top
from tests.model.tiny import (
    IMAGES,
    PATCHES,
    PER_ROW,
    ROWS,
    TOKENIZER,
    assert_equals_masking,
    batch,
    build,
    images_of,
    run,
)


@dataclass(frozen=True, kw_only=True)
class Staged(Method):
    name: ClassVar[str] = "staged"
    paper: ClassVar[str] = "test"

    made: tuple[Stage, ...]
    inserts_pseudo_cls: bool = False

    @property
    def reads_question(self):
        return any(each.seam == "llm" and each.needs & RIDER for each in self.made)

    def stages(self, shape):
        return self.made

    def guide(self, words):
        return PseudoCLS(words.embeddings.mean(dim=0), [])


def stage(seam, reduce, cuts, *needs, **settings):
    return Stage(seam=seam, reduce=reduce, cuts=tuple(Cut(*cut) for cut in cuts), needs=frozenset(needs), **settings)


def flagged(keep):
    """Keep what is flagged [B, N]: another count for every image."""
    N = keep.shape[1]
    index = torch.where(keep, torch.arange(N), N).sort(dim=-1).values[:, : int(keep.sum(dim=1).max())]
    return Reduced(index.masked_fill(index == N, -1))


def about_mean(score, size):
    real = size > 0
    mean = (score * real).sum(dim=1) / real.sum(dim=1)
    return flagged(real & (score >= 0.7 * mean[:, None]))


def by_attention(view: View, n: int) -> Reduced:
    return keep_top(view.attention, n)


def by_random(view: View, n: int) -> Reduced:
    return keep_top(view.random, n)


def by_value(view: View, n: int) -> Reduced:
    return keep_top(view.attention * view.value_norm, n)


def by_rows(view: View, n: int) -> Reduced:
    weight = torch.arange(1.0, view.rows.shape[1] + 1)
    return keep_top(torch.einsum("bgn,g->bn", view.rows, weight), n)


def by_keys(view: View, n: int) -> Reduced:
    return keep_top(view.keys.norm(dim=-1), n)


def by_both(view: View, n: int) -> Reduced:
    return keep_top(view.attention * view.keys.norm(dim=-1), n)


def by_cls(view: View, n: int) -> Reduced:
    return keep_top((view.x * view.cls.unsqueeze(1)).sum(dim=-1), n)


def by_norm(view: View, n: int) -> Reduced:
    return keep_top(view.x.float().norm(dim=-1), n)


def attended(view: View, n: int) -> Reduced:
    return about_mean(view.attention, view.size)


def strong(view: View, n: int) -> Reduced:
    return about_mean(view.x.float().norm(dim=-1), view.size)


def reversed_order(view: View, n: int) -> Reduced:
    return Reduced(by_norm(view, n).index.flip(1))


def neighbours(view: View, n: int) -> Reduced:
    """Merge each token with the next: size-weighted mean at the first one's place; an odd last one stays."""
    x, size = view.x, view.size
    if x.shape[1] % 2:
        x = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
        size = torch.cat([size, torch.zeros_like(size[:, :1])], dim=1)
    pairs = size.unflatten(1, (-1, 2))
    joined = pairs.sum(dim=-1)
    weighted = (x * size.unsqueeze(-1)).unflatten(1, (-1, 2)).sum(dim=2)
    index = torch.arange(0, x.shape[1], 2).expand(len(x), -1)
    mean = weighted / joined.clamp(min=1).unsqueeze(-1)
    return Reduced(index=index.masked_fill(joined == 0, -1), x=mean, size=joined)


def fused(view: View, n: int) -> Reduced:
    """EViT: the most attended in falling order, the rest as one token, appended, at the place of their best."""
    order = view.attention.sort(dim=-1, descending=True, stable=True).indices
    kept, rest = order[:, : n - 1], order[:, n - 1 :]
    weight = view.attention.gather(1, rest).unsqueeze(-1)
    token = (weight * view.x.gather(1, rest.unsqueeze(-1).expand(-1, -1, view.x.shape[-1]))).sum(dim=1, keepdim=True)
    x = torch.cat([view.x.gather(1, kept.unsqueeze(-1).expand(-1, -1, view.x.shape[-1])), token], dim=1)
    size = torch.cat([view.size.gather(1, kept), view.size.gather(1, rest).sum(dim=1, keepdim=True)], dim=1)
    return Reduced(index=order[:, :n], x=x, size=size)


COMPOSED = {
    "vit adaptive": [stage("vit", attended, [(1, 0), (3, 0)], "cls_row", adaptive=True)],
    "vit adaptive inside, then rollout": [
        stage("vit", attended, [(1, 0)], "cls_row", adaptive=True, inside=True),
        stage("vit", by_value, [(5, 7)], "cls_rollout", "value_norm"),
    ],
    "vit rollout inside": [stage("vit", by_value, [(1, 20), (4, 9)], "cls_rollout", "value_norm", inside=True)],
    "vit fuses, reordered": [stage("vit", fused, [(1, 20), (3, 9)], "cls_row", inside=True)],
    "vit merges proportionally, then adaptive": [
        stage("vit", bipartite_merge, [(0, 30), (1, 20)], "keys", inside=True, proportional=True),
        stage("vit", attended, [(4, 0)], "cls_row", adaptive=True),
    ],
    "vit random, cut before the features": [stage("vit", by_random, [(0, 30), (5, 9)], "random")],
    "input adaptive": [stage("input", strong, [(0, 0)], adaptive=True)],
    "vit inside, padded": [stage("vit", attended, [(1, 0), (3, 0)], "cls_row", adaptive=True, inside=True)],
    "vit inside, proportionally": [
        stage("vit", bipartite_merge, [(1, 25)], "keys", inside=True, proportional=True),
        stage("vit", by_value, [(4, 9)], "cls_rollout", "value_norm", inside=True),
    ],
    "input merges unevenly": [stage("input", by_norm, [(0, 7)]), stage("input", neighbours, [(1, 4), (2, 2)])],
    "llm merges unevenly": [stage("llm", by_norm, [(1, 7)]), stage("llm", neighbours, [(2, 4), (3, 2)])],
    "input merges": [stage("input", neighbours, [(0, 18)])],
    "input draws, twice": [stage("input", by_random, [(0, 20), (1, 9)], "random")],
    "input reorders": [stage("input", reversed_order, [(0, 9)])],
    "llm adaptive": [stage("llm", attended, [(1, 0), (3, 0)], "last_row", adaptive=True)],
    "llm merges": [stage("llm", neighbours, [(2, 18), (4, 9)])],
    "llm reorders": [stage("llm", reversed_order, [(1, 20), (3, 9)])],
    "llm draws": [stage("llm", by_random, [(1, 20), (5, 9)], "random")],
    "llm cut before its first layer": [stage("llm", by_norm, [(0, 12), (2, 9)])],
    "llm cut twice at one layer": [
        stage("llm", by_value, [(2, 20)], "last_row", "value_norm"),
        stage("llm", neighbours, [(2, 10)]),
    ],
    "llm all kinds": [
        stage("llm", attended, [(1, 0)], "last_row", adaptive=True),
        stage("llm", by_value, [(4, 6)], "rider_rollout", "value_norm"),
        stage("llm", by_attention, [(5, 3)], "last_row"),
    ],
    "image twice, then the ViT": [
        stage("image", shrink, [(0, 25), (0, 16)]),
        stage("vit", by_value, [(3, 9)], "cls_row", "value_norm"),
    ],
    "vit rows of a group": [stage("vit", by_rows, [(3, 20), (5, 9)], "cls_rows")],
    "vit rows of a group, inside and padded": [
        stage("vit", attended, [(1, 0)], "cls_row", adaptive=True),
        stage("vit", by_rows, [(4, 7)], "cls_rows", inside=True),
    ],
    "vit rollout that begins with A + I": [
        stage("vit", by_value, [(3, 20), (4, 9)], "cls_rollout", "value_norm", identity=True)
    ],
    "vit by the layer above": [stage("vit", by_both, [(0, 25), (3, 16), (5, 9)], "next_cls_row", "next_keys")],
    "vit by the layer above, padded": [
        stage("vit", attended, [(2, 0)], "cls_row", adaptive=True),
        stage("vit", by_both, [(4, 6)], "next_cls_row", "next_keys"),
    ],
    "vit by the layer above, proportionally": [
        stage("vit", bipartite_merge, [(1, 25)], "keys", inside=True, proportional=True),
        stage("vit", by_both, [(5, 9)], "next_cls_row", "next_keys"),
    ],
    "llm raters": [stage("llm", by_value, [(1, 20), (4, 9)], "rater_row", "value_norm")],
    "llm raters, padded and reordered": [
        stage("llm", attended, [(1, 0)], "rater_row", adaptive=True),
        stage("llm", reversed_order, [(3, 6)]),
        stage("llm", by_attention, [(5, 4)], "rater_row"),
    ],
    "llm raters beside an inserted token": [
        stage("llm", by_attention, [(1, 20)], "rater_row"),
        stage("llm", by_value, [(3, 9)], "rider_rollout", "value_norm"),
    ],
    "llm by the layer at hand": [stage("llm", by_attention, [(0, 25), (2, 16), (5, 9)], "next_last_row")],
    "llm by the layer at hand, padded": [
        stage("llm", attended, [(1, 0)], "last_row", adaptive=True),
        stage("llm", by_attention, [(3, 6)], "next_last_row"),
    ],
    "llm keys": [stage("llm", by_keys, [(1, 20), (5, 9)], "keys")],
    "llm cls beside": [stage("llm", by_cls, [(0, 25), (1, 20), (5, 9)], "cls")],
    "llm rows of a group": [stage("llm", by_rows, [(1, 25), (4, 9)], "rider_rows")],
    "llm rollout that begins with A + I": [
        stage("llm", by_value, [(2, 20), (5, 9)], "rider_rollout", "value_norm", identity=True)
    ],
    "llm pseudo CLS's row": [stage("llm", by_value, [(2, 20), (3, 9)], "rider_row", "value_norm")],
    "adaptive everywhere, with a rider": [
        stage("vit", attended, [(2, 0)], "cls_row", adaptive=True),
        stage("input", neighbours, [(0, 0)]),
        stage("llm", attended, [(2, 0), (4, 0)], "rider_rollout", adaptive=True),
    ],
}


RIDDEN = [
    name for name, stages in COMPOSED.items() if any(each.seam == "llm" and each.needs & RIDER for each in stages)
]
ALL = [*COMPOSED, *(f"{name}, inserted" for name in RIDDEN)]


def staged(name, **settings):
    name, *inserted = name.split(", inserted")
    return Staged(made=tuple(COMPOSED[name]), inserts_pseudo_cls=bool(inserted), **settings)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_removal_equals_masking_and_cached_decoding_equals_teacher_forcing(name, positions, attention, encoder):
    model = build(seed=7, attention=attention)
    chosen = staged(name, positions=positions)
    ledger = assert_equals_masking(model, chosen, encoder)
    if any(each.adaptive for each in chosen.made):
        assert len({*zip(map(tuple, ledger.tokens.vit), map(tuple, ledger.tokens.llm), strict=True)}) > 1
    assert (ledger.lengths[:, -1] - ledger.text).sum() == sum(len(kept) for kept in ledger.kept)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_equals_one_by_one(name, side, encoder):
    model = build(seed=11)
    chosen = staged(name)
    together, _, both = run(model, batch(side=side), chosen, encoder)
    image = 0
    for row, ids in enumerate(ROWS):
        alone, _, ledger = run(model, batch([ids], images_of(row)), chosen, encoder)
        torch.testing.assert_close(alone[:, 0], together[:, row], atol=1e-4, rtol=0)
        assert [kept.tolist() for kept in ledger.kept] == [
            kept.tolist() for kept in both.kept[image : image + PER_ROW[row]]
        ]
        image += PER_ROW[row]


def everything(view: View, n: int) -> Reduced:
    return flagged(view.size > 0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_adaptive_method_that_keeps_all_is_the_unpatched_model_bit_for_bit(attention):
    model = build(attention=attention)
    layers = [(layer, PATCHES) for layer in range(1, 6)]
    chosen = Staged(
        made=(
            stage("vit", everything, layers, "cls_row", adaptive=True),
            stage("input", everything, [(0, PATCHES)], adaptive=True),
            stage("llm", everything, layers, "last_row", "value_norm", adaptive=True),
        )
    )
    assert torch.equal(run(model, batch(), chosen)[0], run(model, batch())[0])


def test_a_forward_that_someone_else_bound_is_put_back():
    model = build()
    layer = model.model.language_model.layers[1]
    calls = []
    plain = layer.forward

    def forward(*args, **kwargs):
        calls.append(1)
        return plain(*args, **kwargs)

    layer.forward = forward
    run(model, batch(ROWS[:1], IMAGES[:1]), staged("llm merges"), new=2)
    assert layer.forward is forward and len(calls) == 2


def test_a_prefill_with_gradients_runs(encoder):
    model = build()
    with attach(model, staged("adaptive everywhere, with a rider"), text_encoder=encoder, tokenizer=TOKENIZER):
        assert model(**batch()).logits.requires_grad


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (stage("llm", by_norm, [(6, 9)]), "llm: a cut at layer 6 is not possible; allowed are 0 to 5"),
        (stage("vit", by_norm, [(6, 9)]), "vit: a cut at layer 6 is not possible; allowed are 0 to 5"),
        (stage("vit", by_norm, [(5, 9)], inside=True), "vit: a cut at layer 5 is not possible; allowed are 0 to 4"),
        (stage("llm", by_norm, [(1, 9)], inside=True), "llm: inside and proportional are possible in the ViT only"),
        (
            stage("llm", by_norm, [(1, 9)], "cls_row"),
            "llm: a stage there cannot have cls_row; allowed are cls, keys",
        ),
        (stage("image", by_norm, [(0, 9)], "random"), "image: a stage there cannot have random; allowed are none"),
        (stage("image", by_norm, [(0, 9)], adaptive=True), "image: adaptive is not possible, since a batch's images"),
        (stage("vit", by_norm, [(1, 9)], "keys", "next_keys"), "vit: a stage has one View.keys, not keys, next_keys"),
        (stage("vit", by_norm, [(1, 9)], "next_keys", inside=True), "vit: a cut at layer 1 cannot have next_keys"),
        (stage("input", by_norm, [(0, 9)], "cls_row"), "input: a stage there cannot have cls_row; allowed are random"),
        (stage("llm", by_norm, [(0, 9)], "last_row"), "llm: a cut before layer 0 cannot have last_row"),
        (stage("vit", by_norm, [(1, 9)], "cls_row", "cls_rollout"), "vit: a stage has one View.attention"),
        (stage("llm", by_attention, [(2, 9), (2, 4)], "last_row"), "llm: a second cut behind layer 1 cannot have last"),
    ],
)
def test_stages_that_cannot_work_are_refused(made, message):
    with pytest.raises(VtbenchError, match=message), attach(build(), Staged(made=(made,))):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_cache": False}, "use_cache=False is not possible with cuts inside the LLM"),
        ({"prefill_chunk_size": 45}, "tokens follow at once; allowed is one, so no chunked prefill"),
    ],
)
def test_generation_that_would_choose_anew_is_refused(settings, message):
    model = build()
    with attach(model, staged("llm adaptive")), torch.inference_mode(), pytest.raises(VtbenchError, match=message):
        model.generate(**batch(ROWS[:1], IMAGES[:1]), max_new_tokens=3, do_sample=False, **settings)


def test_without_a_cache_cuts_in_the_vit_answer_as_with_one():
    model = build()
    answers = []
    with attach(model, staged("vit adaptive")), torch.inference_mode():
        for use_cache in (True, False):
            inputs = batch(ROWS[:1], IMAGES[:1])
            answers.append(model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=use_cache))
    assert torch.equal(*answers)
