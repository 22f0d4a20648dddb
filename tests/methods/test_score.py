import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from methods.reduce import keep_top
from methods.score import (
    activation_weighted,
    cls_similarity,
    logarithm,
    map_relevance,
    outliers,
    relevance,
    rollout_row,
)
from tests.methods import naive

FIRST = torch.tensor([[[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.0, 0.5, 0.5]]])
SECOND = torch.tensor([[[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [1.0, 0.0, 0.0]]])
TOP = torch.tensor([[0.0, 0.5, 0.5]])  # CLS's row of the group's last layer
CLS = torch.tensor([[1.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("lower", "identity", "expected"),
    [
        ([], False, [0.0, 0.5, 0.5]),
        ([], True, [1.0, 0.5, 0.5]),
        # (top + e)·A = 1·[.5 .25 .25] + .5·[0 1 0] + .5·[0 .5 .5]
        ([FIRST], False, [0.5, 1.0, 0.5]),
        # (top + e)·(A + I) = [.5 1 .5] + [1 .5 .5]
        ([FIRST], True, [1.5, 1.5, 1.0]),
        # row = (top + e)·(A₂ + I) = [.5 + .125 + .5, .5 + .125, .25] + [1 .5 .5] = [2.125 1.125 .75]
        # row·A₁ = [1.0625, .53125 + 1.125 + .375, .53125 + .375]
        ([FIRST, SECOND], False, [1.0625, 2.03125, 0.90625]),
        # row·(A₁ + I) = [1.0625 2.03125 .90625] + [2.125 1.125 .75]
        ([FIRST, SECOND], True, [3.1875, 3.15625, 1.65625]),
    ],
)
def test_rollout_on_paper(lower, identity, expected):
    assert rollout_row(TOP, lower, CLS, identity=identity).tolist() == [expected]


def row_stochastic(seed: int, layers: int, B: int, M: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(layers, B, M, M, generator=generator, dtype=torch.float64).softmax(dim=-1)


@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_one_row_of_the_rollout_equals_the_row_of_the_full_product(layers, identity):
    stack = row_stochastic(layers, layers, 2, 7)
    source = torch.zeros(2, 7, dtype=torch.float64)
    source[:, 3] = 1
    row = rollout_row(stack[-1][:, 3], list(stack[:-1]), source, identity=identity)
    for b in range(2):
        assert_close(row[b].tolist(), naive.rollout(stack[:, b].tolist(), 3, identity=identity))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.booleans())
@settings(max_examples=50, deadline=None)
def test_renormalising_the_rows_of_the_rollout_changes_no_score_and_no_rank(seed, layers, identity):
    stack = row_stochastic(seed, layers, 1, 9)[:, 0].tolist()
    norm = torch.rand(1, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    plain, renormalised = (
        activation_weighted(torch.tensor([naive.rollout(stack, 0, identity=identity, renormalise=flag)[1:]]), norm)
        for flag in (False, True)
    )
    assert_close(plain.float(), renormalised.float())
    for n in range(1, 9):
        assert torch.equal(keep_top(plain, n).index, keep_top(renormalised, n).index)


def test_activation_weighted_is_eq_4():
    # .5·1 = .25·2 = .5 and .25·4 = 1, which sum to 2
    score = activation_weighted(torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[1.0, 4.0, 2.0]]))
    assert score.tolist() == [[0.25, 0.5, 0.25]]


def test_the_logarithm_of_nothing_is_a_number():
    assert_close(logarithm(torch.tensor([0.5, 1.0])), torch.tensor([-math.log(2), 0.0]))
    assert logarithm(torch.tensor([0.0])).isfinite()


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # quartiles 3 and 7, so beyond 7 + 1.5·4 = 13
        ([1, 2, 3, 4, 5, 6, 7, 8, 14], [8]),
        ([1, 2, 3, 4, 5, 6, 7, 8, 13], []),
        # quartiles 4 and 8, so beyond 14
        ([14, 2, 3, 4, 5, 6, 7, 8, 15], [8]),
        # between tokens: 1 + .75·1 = 1.75 and 3 + .25·1 = 3.25, so beyond 3.25 + 2.25 = 5.5
        ([1, 2, 3, 5.4], []),
        ([0.25] * 8, []),
    ],
)
def test_outliers_are_beyond_one_and_a_half_interquartile_ranges(scores, expected):
    assert outliers(torch.tensor([scores], dtype=torch.float32))[0].nonzero().flatten().tolist() == expected


@given(st.lists(st.lists(st.integers(0, 64), min_size=9, max_size=9), min_size=1, max_size=3))
@settings(max_examples=50, deadline=None)
def test_outliers_are_those_by_numpys_percentiles(scores):
    assert outliers(torch.tensor(scores, dtype=torch.float32)).tolist() == [naive.outliers(each) for each in scores]


def test_cosines_by_loops():
    torch.manual_seed(2)
    x, cls = torch.randn(2, 5, 4), torch.randn(2, 4)
    score = cls_similarity(x, cls)
    for b in range(2):
        expected = torch.tensor(naive.relevance(x[b].tolist(), cls[b].tolist()))
        assert_close(score[b], expected)
        assert_close(relevance(x[b], cls[b]), expected)


def test_relevance_is_a_cosine():
    assert_close(relevance(torch.tensor([[3.0, 4.0], [0.0, -2.0]]), torch.tensor([0.0, 5.0])), torch.tensor([0.8, -1]))


@pytest.mark.parametrize(
    ("llm", "clip", "expected"),
    [
        # "a skateboard"; the LLM: a | skate | board, CLIP: a | sk | ateboard
        ([(0, 1), (2, 7), (7, 12)], [(0, 1), (2, 4), (4, 12)], [0.1, (0.2 + 0.6) / 2, 0.6]),
        # the LLM: a | skateboard, CLIP: a | sk | ateboard: each CLIP token counts once, whatever its length
        ([(0, 1), (2, 12)], [(0, 1), (2, 4), (4, 12)], [0.1, (0.2 + 0.6) / 2]),
        # the LLM takes the space in, CLIP does not: a␣ | skate | board; spans that only touch do not overlap
        ([(0, 2), (2, 7), (7, 12)], [(0, 1), (2, 7), (7, 12)], [0.1, 0.2, 0.6]),
        # one LLM token over all three
        ([(0, 12)], [(0, 1), (2, 4), (4, 12)], [(0.1 + 0.2 + 0.6) / 3]),
        # the last is beyond CLIP's context
        ([(0, 1), (13, 15)], [(0, 1), (2, 4), (4, 12)], [0.1, -math.inf]),
    ],
)
def test_relevance_maps_by_character_overlap_where_the_tokenizers_split_differently(llm, clip, expected):
    assert_close(map_relevance(torch.tensor([0.1, 0.2, 0.6]), clip, llm), torch.tensor(expected))


def test_relevance_without_a_token_on_either_side():
    assert map_relevance(torch.empty(0), [], [(0, 3)]).tolist() == [-math.inf]
    assert map_relevance(torch.tensor([0.5]), [(0, 3)], []).tolist() == []


@st.composite
def tokenized(draw):
    """A text of 20 characters cut at random, some of the pieces left out."""
    ends = [0, *sorted(draw(st.sets(st.integers(1, 19)))), 20]
    return [span for span in pairwise(ends) if draw(st.booleans())]


@given(tokenized(), tokenized(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_relevance_maps_as_character_by_character(llm, clip, random):
    scores = [random.uniform(-1, 1) for _ in clip]
    expected = torch.tensor(naive.map_relevance(scores, clip, llm))
    assert_close(map_relevance(torch.tensor(scores), clip, llm), expected)
