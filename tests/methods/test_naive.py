"""Every method's reduce against its naive twin, and what must hold of any reduce."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from methods import TRAINING_FREE, method
from methods.interface import Reduced, Shape, Stage, View
from tests.methods import naive

ATTENTION = {"cls_row", "last_row", "rater_row", "rider_row", "next_cls_row", "next_last_row"}
ATTENTION |= {"cls_rollout", "rider_rollout"}
D, P, G = 12, 5, 3  # a width of three colours of 2×2 pixels, of keys; layers in a group

SELECT = {"random", "topk", "divprune", "fastv", "pyramiddrop", "topk+", "ivtp-v", "ivtp"}  # leave tokens as they are
RESIZE = {"pooling", "downsample"}
MERGE_ALL = {"evit", "tome", "tome+", "prumerge", "prumerge+"}  # no patch is lost from the sizes
# sparsevlm loses the worst tokens; visionzip loses none but counts CLS, and without contextual tokens loses the rest

CASES = {
    f"{name} {dict(variant.parameters) or ''}{'adaptive' * variant.adaptive}, stage {at}": (name, variant, at)
    for name, variants in naive.NAIVE.items()
    for variant in variants
    for at in range(len(variant.reduces))
}
each_case = pytest.mark.parametrize(("name", "variant", "at"), CASES.values(), ids=CASES)


def stage_of(name: str, variant: naive.Naive, at: int, N: int, n: int) -> Stage:
    tokens = {} if variant.adaptive else {"tokens": n}
    return method(name, **tokens, **variant.parameters).stages(Shape(N, 5, 6))[at]


def budgets(name: str, variant: naive.Naive, N: int) -> list[int]:
    """What one cut of N tokens can leave; where the count adapts, the upper bound that nothing depends on."""
    if variant.adaptive:
        return [N]
    if name in RESIZE:
        return [side * side for side in range(1, math.isqrt(N) + 1)]
    return list(range(N - N // 2 if name in ("tome", "tome+") else variant.least, N + 1))


def view_of(stage: Stage, B: int, N: int, seed: int, *, tied: bool = False) -> View:
    """A random view that shows what the stage needs and nothing else; `tied` has only a few scores."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def uniform(*shape):
        return torch.randint(1, 6, shape, generator=generator) / 8 if tied else torch.rand(*shape, generator=generator)

    needs = stage.needs
    return View(
        x=normal(B, N, D),
        size=torch.randint(1, 5, (B, N), generator=generator).float(),
        attention=uniform(B, N) ** 3 if needs & ATTENTION else None,
        rows=uniform(B, G, N) if needs & {"cls_rows", "rider_rows"} else None,
        value_norm=torch.rand(B, N, generator=generator) + 0.5 if "value_norm" in needs else None,
        keys=normal(B, N, P) if needs & {"keys", "next_keys"} else None,
        cls=normal(B, D) if "cls" in needs else None,
        random=uniform(B, N) if "random" in needs else None,
    )


def images(view: View, which: list[int]) -> View:
    return View(*(None if field is None else field[which] for field in view))


def one(reduced: Reduced, b: int) -> tuple[list[int], torch.Tensor | None, torch.Tensor | None]:
    """One image's part of a reduction, without padding, which must come last and weigh nothing."""
    index = reduced.index[b].tolist()
    K = sum(slot >= 0 for slot in index)
    assert index[K:] == [-1] * (len(index) - K)
    assert reduced.size is None or not reduced.size[b, K:].any()
    return index[:K], *(None if field is None else field[b, :K] for field in (reduced.x, reduced.size))


def assert_same(actual, expected):
    """The index exactly, what is merged to rounding; new states or sizes only where they are expected."""
    assert actual[0] == expected[0]
    for mine, theirs in zip(actual[1:], expected[1:], strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert_close(mine, torch.as_tensor(theirs, dtype=torch.float32), rtol=1e-4, atol=1e-5)


def test_every_method_has_a_naive_twin():
    missing = TRAINING_FREE.keys() - naive.NAIVE.keys() - {"full"}
    assert not missing, f"no naive version of {', '.join(missing)}: add it to tests/methods/naive.py"


@each_case
@pytest.mark.parametrize("N", [4, 9, 36])  # more than PruMerge's 32 nearest
@pytest.mark.parametrize("tied", [False, True])
def test_a_reduce_equals_its_naive_twin(name, variant, at, N, tied):
    for n in budgets(name, variant, N):
        stage = stage_of(name, variant, at, N, n)
        assert stage.adaptive == variant.adaptive
        for B in (1, 3):
            view = view_of(stage, B, N, seed=100 * N + 10 * n + B, tied=tied)
            reduced = stage.reduce(view, n)
            assert len(reduced.index) == B
            for b in range(B):
                assert_same(one(reduced, b), variant.reduces[at](naive.alone(view, b), n))


def draw(data, name, variant, at):
    """A stage, a view of several images and a count."""
    N = data.draw(st.sampled_from([4, 9, 16, 25]))
    n = data.draw(st.sampled_from(budgets(name, variant, N)))
    stage = stage_of(name, variant, at, N, n)
    seed, B = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(1, 4))
    return stage, view_of(stage, B, N, seed, tied=data.draw(st.booleans())), n


@each_case
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_what_stays_is_as_many_different_tokens_as_asked_for(name, variant, at, data):
    stage, view, n = draw(data, name, variant, at)
    B, N = view.size.shape
    cls = None if view.cls is None else view.cls.bfloat16()
    reduced = stage.reduce(view._replace(x=view.x.bfloat16(), cls=cls), n)
    assert reduced.index.dtype == torch.int64
    assert reduced.x is None or (reduced.x.dtype == torch.bfloat16 and reduced.x.shape == (*reduced.index.shape, D))
    assert reduced.size is None or (reduced.size.dtype == torch.float32 and reduced.size.shape == reduced.index.shape)
    assert (reduced.x is None) == (reduced.size is None)
    assert (reduced.index >= 0).any(dim=0).all()  # no slot that every image leaves empty
    if name in SELECT:
        assert reduced.x is None
    for b in range(B):
        index, _, size = one(reduced, b)
        assert len({*index} & {*range(N)}) == len(index)
        assert 1 <= len(index) <= stage.cuts[0].tokens if variant.adaptive else len(index) == n
        if name in SELECT | RESIZE or (name, at) == ("tome+", 1):
            assert index == sorted(index)
        if name in RESIZE and size is not None:
            assert_close(size.sum(), torch.tensor(float(N)))
        if name in MERGE_ALL and size is not None:
            assert size.sum() == view.size[b].sum()
        if name == "visionzip" and size is not None and variant.parameters.get("contextual", round(5 * n / 32)):
            assert size.sum() == view.size[b].sum() + 1


@each_case
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_an_image_does_not_depend_on_the_others_of_its_batch(name, variant, at, data):
    stage, view, n = draw(data, name, variant, at)
    B = len(view.x)
    reduced = stage.reduce(view, n)
    order = data.draw(st.permutations(range(B)))
    shuffled = stage.reduce(images(view, order), n)
    flat = View(*(None if field is None else torch.cat([field, torch.ones_like(field[:1])]) for field in view))
    with_another = stage.reduce(flat, n)
    for b in range(B):
        assert_same(one(stage.reduce(images(view, [b]), n), 0), one(reduced, b))
        assert_same(one(shuffled, order.index(b)), one(reduced, b))
        assert_same(one(with_another, b), one(reduced, b))


@each_case
@given(data=st.data(), factor=st.sampled_from([2.0**-6, 2.0, 2.0**9]))
@settings(max_examples=50, deadline=None)
def test_the_scale_of_scores_keys_and_norms_does_not_matter(name, variant, at, data, factor):
    stage, view, n = draw(data, name, variant, at)
    scaled = {
        field: getattr(view, field) * factor
        for field in ("attention", "rows", "value_norm", "keys", "cls", "random")
        if getattr(view, field) is not None
    }
    index = stage.reduce(view, n).index
    for field in scaled:
        if field != "rows" or variant.parameters["aggregation"] != "multiply":  # whose logarithms round
            assert torch.equal(stage.reduce(view._replace(**{field: scaled[field]}), n).index, index)
