"""Reductions worked by hand; test_naive.py has them at random."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods import method
from methods.interface import Shape, View
from methods.pooling import pool
from methods.prumerge import merge_around
from methods.reduce import bipartite_merge, cell_centres, density_peaks, flags, keep_top, keep_where, take
from tests.methods import naive


def view(x: list[float] | torch.Tensor, size: list[float] | None = None, **fields: list) -> View:
    """One image, of numbers or of vectors."""
    x = torch.tensor([[[value] for value in x]]) if isinstance(x, list) else x
    size = torch.ones(x.shape[:2]) if size is None else torch.tensor([size])
    return View(x=x, size=size, **{name: torch.tensor([value]) for name, value in fields.items()})


def reduce_by(name: str, view: View, tokens: int | None, **parameters: object) -> tuple[list, list, list]:
    """Index, states (of width 1) and sizes after the only stage of a method."""
    (stage,) = method(name, tokens=tokens, **parameters).stages(Shape(view.x.shape[1], 1, 6))
    reduced = stage.reduce(view, tokens or view.x.shape[1])
    return reduced.index[0].tolist(), reduced.x[0, :, 0].tolist(), reduced.size[0].tolist()


def test_keep_top_keeps_the_order_and_the_earlier_token_wins_a_tie():
    score = torch.tensor([[0.1, 0.9, 0.5, 0.5, 0.5]])
    assert keep_top(score, 3).index.tolist() == [[1, 2, 3]]


@given(st.lists(st.floats(-3, 3, width=16), min_size=1, max_size=12), st.data())
def test_keep_top_is_sorted_unique_and_holds_the_best(scores, data):
    n = data.draw(st.integers(1, len(scores)))
    assert keep_top(torch.tensor([scores]), n).index[0].tolist() == sorted(naive.best(scores, n))


def test_keep_where_pads_at_the_end():
    keep = torch.tensor([[True, False, True, True], [False, False, True, False]])
    assert keep_where(keep).index.tolist() == [[0, 2, 3], [2, -1, -1]]
    assert keep_where(keep & False).index.tolist() == [[], []]


def test_flags_and_take_read_an_index_both_ways():
    assert flags(torch.tensor([[2, 0]]), 4).tolist() == [[True, False, True, False]]
    assert take(torch.tensor([[[5.0], [6.0], [7.0]]]), torch.tensor([[2, 0, -1]])).tolist() == [[[7.0], [5.0], [5.0]]]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (4, 2, [5, 7, 13, 15]),  # the middles of rows 0–1 and 2–3 are 1 and 3
        (3, 1, [4]),
        (5, 2, [6, 8, 16, 18]),  # cells of 2.5: middles 1.25 and 3.75
        (3, 3, list(range(9))),
    ],
)
def test_cell_centres(before, after, expected):
    assert cell_centres(before, after, torch.device("cpu")).tolist() == expected


# EViT


def test_evit_fuses_by_attention_without_normalising():
    # 1 and 3 stay, by falling attention; ⅛·30 + ⅛·10 = 5 stands where the better of 2 and 0 stood: on a tie the earlier
    index, x, size = reduce_by("evit", view([10, 20, 30, 40], [1, 2, 3, 4], attention=[0.125, 0.5, 0.125, 0.25]), 3)
    assert (index, x, size) == ([1, 3, 0], [20, 40, 5], [2, 4, 4])


# ToMe


def test_tome_merges_the_most_similar_pair_by_size():
    keys = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.5]]
    # A = tokens 1 and 3, B = tokens 0 and 2; 1 and 0 are most alike: (1·1 + 3·10)/4
    index, x, size = reduce_by("tome", view([1.0, 10.0, 3.0, 20.0], [1.0, 3.0, 1.0, 1.0], keys=keys), 3)
    assert (index, x, size) == ([3, 0, 2], [20.0, 7.75, 3.0], [1.0, 4.0, 1.0])


def test_tome_prefers_the_earlier_pair_and_partner_on_a_tie():
    same = view([1.0, 2.0, 4.0, 8.0, 16.0], keys=[[1.0, 0.0]] * 5)
    assert bipartite_merge(same, 4).index.tolist() == [[3, 0, 2, 4]]
    assert bipartite_merge(same, 4).x.flatten().tolist() == [8.0, 1.5, 4.0, 16.0]
    # both of A join the first of B: (1 + 2 + 8)/3
    assert bipartite_merge(same, 3).x.flatten().tolist() == [pytest.approx(11 / 3), 4.0, 16.0]


def test_tome_in_the_llm_puts_what_is_left_in_the_order_of_its_places():
    stage = method("tome+", tokens=3).stages(Shape(4, 4, 2))[1]
    keys = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.5]]
    reduced = stage.reduce(view([1.0, 10.0, 3.0, 20.0], keys=keys), 3)
    assert reduced.index.tolist() == [[0, 2, 3]]
    assert reduced.x.flatten().tolist() == [5.5, 3.0, 20.0]
    assert reduced.size.tolist() == [[2.0, 1.0, 1.0]]


# pooling


def test_pooling_averages_cells_and_stands_at_their_centres():
    reduced = pool(view([float(i) for i in range(16)]), 4)
    assert reduced.x.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert reduced.index.tolist() == [[5, 7, 13, 15]]
    assert reduced.size.tolist() == [[4.0] * 4]


def test_pooling_to_the_same_grid_changes_nothing():
    x = torch.randn(2, 9, 3)
    reduced = pool(view(x), 9)
    assert torch.equal(reduced.x, x)
    assert reduced.index.tolist() == [list(range(9))] * 2


# PruMerge


def test_prumerge_merges_around_the_outlier():
    # quartiles ⅛ and ⅛, so 9/16 alone is beyond; all others are among its 32 nearest, and all others are the last token
    attention = [0.0625, 0.125, 0.125, 0.125, 0.5625]
    image = view([16.0, 8.0, 8.0, 8.0, 2.0], [1.0, 2.0, 1.0, 1.0, 1.0], attention=attention, keys=[[1.0]] * 5)
    assert reduce_by("prumerge", image, None) == ([4, 1], [2 + 1 + 1 + 1 + 1, 1 + 1 + 1 + 1], [1, 5])


def test_prumerge_without_an_outlier_merges_around_the_first_of_the_most_attended():
    image = view([4.0, 8.0, 12.0, 16.0], attention=[0.25] * 4, keys=[[1.0]] * 4)
    assert reduce_by("prumerge", image, None) == ([0, 1], [4 + 2 + 3 + 4, 2 + 3 + 4], [1, 3])


def test_prumerge_takes_the_32_most_similar_keys_and_never_the_centre_itself():
    angle = torch.arange(40) / 40  # token 0 is the centre; similarity to it falls with the number
    keys = torch.stack([angle.cos(), angle.sin()], dim=1).tolist()
    image = view([100.0] + [1.0] * 32 + [1000.0] * 7, attention=[0.5] + [2.0**-6] * 39, keys=keys)
    index, x, size = reduce_by("prumerge", image, 2)
    assert (index, x, size) == ([0, 1], [100 + 32 / 64, (32 + 7000) / 64], [1, 39])


def test_prumerge_plus_samples_evenly_three_times_as_often_as_there_are_outliers():
    # one outlier of 12: every int(12/3) = 4th of the first 11 besides it
    image = view([0.0] * 12, attention=[0.0] * 5 + [1.0] + [0.0] * 6, keys=[[1.0]] * 12)
    index, _, size = reduce_by("prumerge+", image, None)
    assert (index, size) == ([0, 4, 5, 8, 1], [1, 1, 1, 1, 8])


def test_prumerge_plus_with_a_budget_samples_what_attention_left():
    # of 9 tokens 8 are centres, 2 by attention: 3 and 7; of the 10 left every 10/6-th: numbers 0, 1, 3, 5, 6, 8
    image = view([0.0] * 12, attention=[0.0] * 3 + [1.0] + [0.0] * 3 + [2.0] + [0.0] * 4, keys=[[1.0]] * 12)
    index, _, size = reduce_by("prumerge+", image, 9)
    left = [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert index == sorted([3, 7] + [left[i] for i in (0, 1, 3, 5, 6, 8)]) + [2]
    assert size == [1] * 8 + [4]


def test_prumerge_has_no_slot_for_an_extra_token_where_every_patch_is_a_centre():
    shown = View(x=torch.randn(2, 4, 3), size=torch.ones(2, 4), attention=torch.rand(2, 4), keys=torch.randn(2, 4, 3))
    every = torch.ones(2, 4, dtype=torch.bool)
    assert merge_around(shown, every).index.tolist() == [[0, 1, 2, 3]] * 2
    every[1, 2:] = False
    index = merge_around(shown, every).index
    assert index[0].tolist() == [0, 1, 2, 3] and index[1, :2].tolist() == [0, 1]
    assert index[1, 2] in (2, 3) and index[1, 3] == -1


# VisionZip


def test_visionzip_adds_the_mean_of_what_joins_a_contextual_token():
    # 2 is dominant; of 0, 1, 3, 4, 5 every 5 // 2 = 2nd is a target: 0 and 3; 1 is like 3, 4 and 5 are like 0
    image = view(
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        attention=[0.1, 0.1, 0.4, 0.1, 0.2, 0.1],
        keys=[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 1.0], [3.0, 0.0], [5.0, 1.0]],
        cls=[70.0],
    )
    index, x, size = reduce_by("visionzip", image, 4, contextual=2)
    # CLS, which has no place, stands at 1; 1 + (5 + 6)/2 and 4 + 2
    assert (index, x, size) == ([1, 2, 0, 3], [70.0, 3.0, 6.5, 6.0], [1.0, 3.0, 1 + 5 + 6, 4 + 2])


def test_visionzip_leaves_a_contextual_token_that_none_joins():
    keys = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    image = view([1.0, 2.0, 4.0, 8.0], attention=[0.25] * 4, keys=keys, cls=[70.0])
    # targets 0 and 2; 1 and 3 join 0
    assert reduce_by("visionzip", image, 3, contextual=2) == ([1, 0, 2], [70.0, 6.0, 4.0], [1.0, 3.0, 1.0])


@pytest.mark.parametrize(("tokens", "dominant", "contextual"), [(192, 161, 30), (128, 107, 20), (64, 53, 10)])
def test_visionzip_splits_its_budget_as_published(tokens, dominant, contextual):
    # 162 + 30, 108 + 20 and 54 + 10, of which one is CLS
    (stage,) = method("visionzip", tokens=tokens).stages(Shape(576, 23, 32))
    generator = torch.Generator().manual_seed(0)
    x, attention, keys = (torch.rand(1, 576, *width, generator=generator) for width in ((1,), (), (4,)))
    cls = torch.tensor([[-1.0]])
    reduced = stage.reduce(View(x=x, size=torch.ones(1, 576), attention=attention, keys=keys, cls=cls), tokens)
    assert reduced.x[0, 0].tolist() == [-1.0]
    best = keep_top(attention, dominant).index
    assert torch.equal(reduced.index[:, 1 : 1 + dominant], best)
    assert torch.equal(reduced.x[:, 1 : 1 + dominant], take(x, best))
    rest = [slot for slot in range(576) if slot not in best[0].tolist()]
    assert reduced.index[0, 1 + dominant :].tolist() == rest[:: len(rest) // contextual][:contextual]
    assert reduced.size[0, 1 + dominant :].sum() == 576 - dominant


# DivPrune


@pytest.mark.parametrize(("n", "expected"), [(1, [3]), (2, [1, 3]), (3, [1, 2, 3]), (4, [0, 1, 2, 3])])
def test_divprune_picks_the_farthest_from_what_is_picked(n, expected):
    # at 0°, 10°, 90° and 200°. Nearest others: 10°, 10°, 80°, 110°, so 3 is first. From 3: 160°, 170°, 110°, so 1.
    # From 3 or 1: 10°, –, 80°, so 2
    angle = torch.tensor([0.0, 10.0, 90.0, 200.0]).deg2rad()
    x = torch.stack([angle.cos(), angle.sin()], dim=1) * torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    (stage,) = method("divprune", tokens=n).stages(Shape(4, 1, 6))
    assert stage.reduce(view(x[None]), n).index.tolist() == [expected]


# SparseVLM


def test_density_peaks_of_six_points_on_a_line():
    # Width 4, so distances are halved: points at 0, 1, 3, 10, 11, 15. Mean squared distance to the three nearest:
    # 0: (0+1+9)/3 = 10/3, 1: (0+1+4)/3 = 5/3, 3: (0+4+9)/3 = 13/3, 10: (0+1+25)/3 = 26/3, 11: (0+1+16)/3 = 17/3,
    # 15: (0+16+25)/3 = 41/3. Nearest denser: 0→1: 1, 1→(the largest distance) 15, 3→1: 2, 10→11: 1, 11→3: 8, 15→11: 4.
    # Scores: e^−10/3 = .036, 15e^−5/3 = 2.8, 2e^−13/3 = .026, e^−26/3 = .0002, 8e^−17/3 = .028, 4e^−41/3 = .000005
    points = [0.0, 1.0, 3.0, 10.0, 11.0, 15.0]
    x = torch.tensor([[[2 * point, 0.0, 0.0, 0.0] for point in points]])
    centres, cluster = density_peaks(x, 3)
    assert centres.tolist() == [[1, 0, 4]]
    assert cluster.tolist() == [[1, 0, 0, 2, 2, 2]]


def test_density_peaks_of_equal_points_are_the_first():
    centres, cluster = density_peaks(torch.ones(1, 4, 2), 2)
    assert centres.tolist() == [[0, 1]]
    assert cluster.tolist() == [[0, 1, 0, 0]]  # a centre is in its own cluster


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.data())
@settings(max_examples=50, deadline=None)
def test_density_peaks_equal_the_naive_ones(seed, points, data):
    clusters = data.draw(st.integers(1, points))
    x = torch.randn(2, points, 3, generator=torch.Generator().manual_seed(seed))
    centres, cluster = density_peaks(x, clusters)
    for b in range(2):
        assert (centres[b].tolist(), cluster[b].tolist()) == naive.density_peaks(x[b].double().tolist(), clusters)


def test_sparsevlm_recycles_the_best_of_the_dropped_as_one_mean():
    # 3 stay of 10; of the 7 dropped int(.3·7) + 1 = 3 are recycled, to 3 // 10 + 1 = 1 token: (1 + 4 + 64)/3
    attention = [0.7, 0.1, 0.6, 0.2, 1.0, 0.0, 0.5, 0.9, 0.8, 0.3]
    image = view([2.0**i for i in range(10)], attention=attention)
    index, x, size = reduce_by("sparsevlm", image, 4, budget="kept")
    assert (index, x, size) == ([4, 7, 8, 0], [16, 128, 256, pytest.approx((1 + 4 + 64) / 3)], [1, 1, 1, 3])


def test_sparsevlm_below_the_number_of_clusters_makes_as_many_as_asked_for():
    # of 36 dropped int(.3·36) + 1 = 11 are recycled, to 2 tokens; here to 1
    image = view([float(i) for i in range(36)], attention=[float(-i) for i in range(36)])
    assert reduce_by("sparsevlm", image, 1, budget="kept") == ([0], [sum(range(11)) / 11], [11])


@pytest.mark.parametrize(("tokens", "kept"), [(192, [300, 200, 110]), (128, [303, 110, 36]), (64, [66, 30, 17])])
def test_sparsevlm_keeps_as_many_by_rating_as_the_published_lists_say(tokens, kept):
    (stage,) = method("sparsevlm", tokens=tokens).stages(Shape(576, 23, 32))
    generator = torch.Generator().manual_seed(0)
    before = 576
    for (_, after), stay in zip(stage.cuts, kept, strict=True):
        attention = torch.rand(1, before, generator=generator)
        x = torch.randn(1, before, 2, generator=generator)
        reduced = stage.reduce(View(x=x, size=torch.ones(1, before), attention=attention), after)
        assert reduced.index[0, :stay].tolist() == keep_top(attention, stay).index[0].tolist()
        assert torch.equal(reduced.size[0, :stay], torch.ones(stay))
        assert reduced.size[0, stay:].sum() == math.floor(0.3 * (before - stay)) + 1  # what is recycled, all of it
        before = after
