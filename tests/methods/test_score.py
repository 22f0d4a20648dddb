import pytest
import torch

from methods import method
from methods.interface import Reading, Words
from methods.score import activation_weighted, cls_similarity, map_relevance, relevance, rollout_row


def row_stochastic(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64).softmax(dim=-1)


def full_rollout(layers: list[torch.Tensor], *, renormalise: bool) -> torch.Tensor:
    """Eq. 3 as written: N×N matrices, the later layer on the left."""
    rolled = layers[0]
    for attention in layers[1:]:
        step = attention + torch.eye(attention.shape[-1], dtype=attention.dtype)
        rolled = (step / 2 if renormalise else step) @ rolled
    return rolled


def test_rollout_on_paper():
    first = torch.tensor([[[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.0, 0.5, 0.5]]])
    top = torch.tensor([[0.0, 0.5, 0.5]])  # CLS's row of the second layer
    source = torch.tensor([[1.0, 0.0, 0.0]])
    # (row + e_cls)·first = 1·[.5 .25 .25] + .5·[0 1 0] + .5·[0 .5 .5]
    assert rollout_row(top, [first], source).tolist() == [[0.5, 1.0, 0.5]]
    assert rollout_row(top, [], source).tolist() == top.tolist()


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_one_row_of_the_rollout_equals_the_row_of_the_full_product(layers):
    torch.manual_seed(0)
    stack = [row_stochastic(2, 7, 7) for _ in range(layers)]
    source = torch.zeros(2, 7, dtype=torch.float64)
    source[:, 3] = 1
    row = rollout_row(stack[-1][:, 3], stack[:-1], source)
    for sample in range(2):
        whole = full_rollout([attention[sample] for attention in stack], renormalise=False)
        torch.testing.assert_close(row[sample], whole[3])


def test_renormalising_the_rollout_cannot_change_the_score():
    torch.manual_seed(1)
    stack = [row_stochastic(9, 9) for _ in range(4)]
    norm = torch.rand(1, 8, dtype=torch.float64)
    plain, renormalised = (
        activation_weighted(full_rollout(stack, renormalise=flag)[None, 0, 1:], norm) for flag in (False, True)
    )
    torch.testing.assert_close(plain, renormalised)


def test_activation_weighted_is_eq_4():
    score = activation_weighted(torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[1.0, 4.0, 2.0]]))
    assert score.tolist() == [[0.25, 0.5, 0.25]]


def test_cls_similarity_by_loops():
    torch.manual_seed(2)
    x, cls = torch.randn(2, 5, 4), torch.randn(2, 4)
    score = cls_similarity(x, cls)
    for b in range(2):
        for i in range(5):
            expected = (x[b, i] @ cls[b]) / (x[b, i].norm() * cls[b].norm())
            torch.testing.assert_close(score[b, i], expected)


def test_relevance_maps_by_character_overlap_where_the_tokenizers_split_differently():
    # "a skateboard"; the LLM: a | skate | board, CLIP: a | sk | ateboard
    llm = [(0, 1), (2, 7), (7, 12)]
    clip = [(0, 1), (2, 4), (4, 12)]
    mapped = map_relevance(torch.tensor([0.1, 0.2, 0.6]), clip, llm)
    torch.testing.assert_close(mapped, torch.tensor([0.1, 0.4, 0.6]))


def test_relevance_beyond_clips_context_is_minus_infinity():
    assert map_relevance(torch.tensor([0.5]), [(0, 3)], [(0, 3), (4, 7)]).tolist() == [0.5, -torch.inf]
    assert map_relevance(torch.empty(0), [], [(0, 3)]).tolist() == [-torch.inf]
    assert map_relevance(torch.tensor([0.5]), [(0, 3)], []).tolist() == []


def test_relevance_is_a_cosine():
    torch.testing.assert_close(
        relevance(torch.tensor([[3.0, 4.0], [0.0, -2.0]]), torch.tensor([0.0, 5.0])), torch.tensor([0.8, -1.0])
    )


def words(cosines: list[float]) -> Words:
    """Two-dimensional CLIP features with the given cosines to the CLS; embeddings are powers of two."""
    features = torch.tensor([[c, (1 - c * c) ** 0.5] for c in cosines])
    spans = [(2 * i, 2 * i + 1) for i in range(len(cosines))]
    return Words(
        embeddings=torch.tensor([[2.0**i] for i in range(len(cosines))]),
        spans=spans,
        projected_cls=torch.tensor([-7.0]),
        clip=Reading(features=features, spans=spans, cls=torch.tensor([1.0, 0.0]), lift=lambda joint: joint[..., :1]),
    )


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.15, (2.0 + 4.0) / 2),  # the second and third word
        (0.35, 4.0),  # the third alone
        (0.5, -7.0),  # Eq. 8's fallback: none is relevant, so the visual CLS
        (-1.0, (1.0 + 2.0 + 4.0) / 3),
    ],
)
def test_pseudo_cls_is_eq_8(threshold, expected):
    ivtp = method("ivtp", tokens=64, threshold=threshold)
    assert ivtp.guide(words([0.1, 0.2, 0.4])).state.tolist() == [pytest.approx(expected)]


def test_pseudo_cls_without_a_question_is_the_visual_cls():
    empty = words([0.9])._replace(embeddings=torch.empty(0, 1), spans=[])
    assert method("ivtp", tokens=64).guide(empty).state.tolist() == [-7.0]
