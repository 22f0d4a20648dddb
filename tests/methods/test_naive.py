"""Every method's reduce against its naive twin, and what must hold of any reduce."""

import math

import pytest
import torch
from torch.testing import assert_close

from methods import METHODS, method
from methods.interface import Shape, Stage, View
from tests.methods import naive

ATTENTION = {"cls_row", "last_row", "rater_row", "rider_row", "next_cls_row", "next_last_row"}
ATTENTION |= {"cls_rollout", "rider_rollout"}
D, P, G = 12, 5, 3  # three colours of 2×2 pixels; key width; layers in a group

CASES = {
    "-".join([name, *map(str, variant.parameters.values()), *["adaptive"] * variant.adaptive, str(at)]): (
        name,
        variant,
        at,
    )
    for name, variants in naive.NAIVE.items()
    for variant in variants
    for at in range(len(variant.reduces))
}
each_case = pytest.mark.parametrize(("name", "variant", "at"), CASES.values(), ids=CASES)


def stage_of(name: str, variant: naive.Naive, at: int, N: int, n: int) -> Stage:
    tokens = {} if variant.adaptive else {"tokens": n}
    return method(name, **tokens, **variant.parameters).stages(Shape(N, 5, 6))[at]


def budgets(name: str, variant: naive.Naive, N: int) -> list[int]:
    """What one cut of N tokens can leave."""
    if variant.adaptive:
        return [N]
    if name in ("pooling", "downsample"):
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


def assert_equal(reduced, b, index, x, size):
    """One row of a reduction: the index exactly, the rest of the row padding."""
    K = len(index)
    assert reduced.index[b].tolist() == index + [-1] * (reduced.index.shape[1] - K)
    for field, expected in ((reduced.x, x), (reduced.size, size)):
        assert (field is None) == (expected is None)
        if expected is not None:
            assert_close(field[b, :K], torch.as_tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-5)


def test_every_method_has_a_naive_twin():
    assert [*naive.NAIVE] == [name for name in METHODS if name != "full"]


@each_case
@pytest.mark.parametrize("N", [4, 9, 36])
@pytest.mark.parametrize("tied", [False, True])
def test_a_reduce_equals_its_naive_twin(name, variant, at, N, tied):
    for n in budgets(name, variant, N):
        stage = stage_of(name, variant, at, N, n)
        assert stage.adaptive == variant.adaptive
        for B in (1, 3):
            view = view_of(stage, B, N, seed=100 * N + 10 * n + B, tied=tied)
            reduced = stage.reduce(view, n)
            assert reduced.index.shape[0] == B
            for b in range(B):
                assert_equal(reduced, b, *variant.reduces[at](naive.alone(view, b), n))
