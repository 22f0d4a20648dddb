import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from methods.interface import View
from methods.pooling import pool
from methods.reduce import bipartite_merge, keep_top


def test_keep_top_keeps_the_order_and_the_earlier_token_wins_a_tie():
    score = torch.tensor([[0.1, 0.9, 0.5, 0.5, 0.5]])
    assert keep_top(score, 3).index.tolist() == [[1, 2, 3]]


@given(st.lists(st.floats(-3, 3, width=16), min_size=1, max_size=12), st.data())
def test_keep_top_is_sorted_unique_and_holds_the_best(scores, data):
    n = data.draw(st.integers(1, len(scores)))
    index = keep_top(torch.tensor([scores]), n).index[0].tolist()
    expected = sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:n])
    assert index == expected


def view(x: torch.Tensor, keys: torch.Tensor | None = None, size: torch.Tensor | None = None) -> View:
    return View(x=x, size=torch.ones(x.shape[:2]) if size is None else size, keys=keys)


def test_tome_merges_the_most_similar_pair_by_size():
    x = torch.tensor([[[1.0], [10.0], [3.0], [20.0]]])
    keys = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.5]]])
    size = torch.tensor([[1.0, 3.0, 1.0, 1.0]])
    # A = tokens 1 and 3, B = tokens 0 and 2; 1 and 0 are most alike: (1·1 + 3·10)/4
    reduced = bipartite_merge(view(x, keys, size), 3)
    assert reduced.index.tolist() == [[3, 0, 2]]
    assert reduced.x.tolist() == [[[20.0], [7.75], [3.0]]]
    assert reduced.size.tolist() == [[1.0, 4.0, 1.0]]


def naive_merge(x, keys, size, n):
    """ToMe as its paper tells it, token by token."""
    N = len(x)
    unit = [key / key.norm() for key in keys]
    best = {}
    for a in range(1, N, 2):
        similarity = [(float(unit[a] @ unit[b]), -b) for b in range(0, N, 2)]
        best[a] = max(similarity)
    merged = sorted(best, key=lambda a: (-best[a][0], a))[: N - n]
    out, slots, sizes = [], [], []
    for a in range(1, N, 2):
        if a not in merged:
            out.append(x[a]), slots.append(a), sizes.append(float(size[a]))
    for b in range(0, N, 2):
        members = [b] + [a for a in merged if -best[a][1] == b]
        total = sum(float(size[m]) for m in members)
        out.append(sum(x[m] * size[m] for m in members) / total), slots.append(b), sizes.append(total)
    return torch.stack(out), slots, sizes


@pytest.mark.parametrize("N", [6, 7, 12, 13])
def test_tome_equals_the_naive_merge(N):
    torch.manual_seed(N)
    x, keys = torch.randn(3, N, 5), torch.randn(3, N, 4)
    size = torch.randint(1, 5, (3, N)).float()
    for n in range(N - N // 2, N):
        reduced = bipartite_merge(view(x, keys, size), n)
        for b in range(3):
            expected, slots, sizes = naive_merge(x[b], keys[b], size[b], n)
            assert reduced.index[b].tolist() == slots
            assert reduced.size[b].tolist() == sizes
            torch.testing.assert_close(reduced.x[b], expected)


def test_tome_with_nothing_to_merge_changes_nothing():
    reduced = bipartite_merge(view(torch.randn(2, 5, 3), torch.randn(2, 5, 3)), 5)
    assert reduced.index.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert reduced.x is None and reduced.size is None


def test_merging_keeps_the_patch_count():
    torch.manual_seed(3)
    size = torch.rand(2, 10)
    merged = bipartite_merge(view(torch.randn(2, 10, 3), torch.randn(2, 10, 3), size), 6)
    torch.testing.assert_close(merged.size.sum(dim=1), size.sum(dim=1))


def test_pooling_averages_cells_and_stands_at_their_centres():
    x = torch.arange(16.0).reshape(1, 16, 1)
    reduced = pool(view(x), 4)
    assert reduced.x.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert reduced.index.tolist() == [[5, 7, 13, 15]]
    assert reduced.size.tolist() == [[4.0] * 4]


def test_pooling_to_the_same_grid_changes_nothing():
    x = torch.randn(2, 9, 3)
    reduced = pool(view(x), 9)
    assert torch.equal(reduced.x, x)
    assert reduced.index.tolist() == [list(range(9))] * 2
