import numpy as np
import pandas as pd
import pytest

from harness.report.statistics import average, clusters, distinguishable, interval, mcnemar, paired


def samples(scores: list[float], tasks: list[str] | None = None, images: list[str] | None = None) -> pd.DataFrame:
    n = len(scores)
    return pd.DataFrame(
        {
            "task": tasks or ["t"] * n,
            "doc_id": range(n),
            "image_id": images or [str(i) for i in range(n)],
            "score": scores,
        }
    )


def test_the_average_is_the_mean_over_tasks_of_each_tasks_mean():
    frame = samples([1, 1, 1, 0, 0], ["a", "a", "a", "a", "b"])
    sums, counts = clusters(frame)
    assert float(average(sums.sum(axis=0), counts.sum(axis=0))) == (0.75 + 0.0) / 2
    assert interval(frame).mean == 0.375


def test_a_constant_score_has_an_interval_of_no_width():
    assert interval(samples([1.0] * 20)) == (1.0, 1.0, 1.0)


def test_one_image_gives_no_interval():
    mean, low, high = interval(samples([1, 0], images=["x", "x"]))
    assert mean == 0.5 and np.isnan(low) and np.isnan(high)


def test_questions_about_one_image_count_as_one_draw():
    scores = [float(i % 2) for i in range(40) for _ in range(10)]
    alone = interval(samples(scores))
    shared = interval(samples(scores, images=[str(i) for i in range(40) for _ in range(10)]))
    assert shared.mean == alone.mean == 0.5
    assert (shared.high - shared.low) / (alone.high - alone.low) == pytest.approx(10**0.5, rel=0.15)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        low, high = interval(samples(list((rng.random(200) < 0.7).astype(float))))[1:]
        hits += low <= 0.7 <= high
    assert 0.92 <= hits / 300 <= 0.98


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (0, 5, 2 * 0.5**5),
        (1, 5, 2 * (1 + 6) * 0.5**6),
        (3, 3, 1.0),
    ],
)
def test_mcnemar_by_hand(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p)


def test_holm_by_hand():
    # sorted .01 .015 .03 .04 against .05/4 .05/3 .05/2 .05/1: the third fails, so the fourth does not count
    assert distinguishable([0.04, 0.01, 0.03, 0.015]) == [False, True, False, True]
    assert distinguishable([]) == []


def test_right_and_wrong_are_compared_by_mcnemar():
    full, pruned = samples([1, 1, 1, 1, 1, 0]), samples([0, 0, 0, 0, 0, 1])
    difference = paired(pruned, full)
    assert difference.mean == pytest.approx(-4 / 6)
    assert difference.p == pytest.approx(mcnemar(1, 5))


def test_graded_scores_are_compared_by_resampling():
    rng = np.random.default_rng(1)
    base = rng.random(100)
    same, worse = base + rng.normal(0, 0.1, 100), base - 0.3 + rng.normal(0, 0.1, 100)
    assert paired(samples(list(same)), samples(list(base))).p > 0.05
    assert paired(samples(list(worse)), samples(list(base))).p == 2 / 10_000


def test_graded_losses_stay_distinguishable_among_many_comparisons():
    # The smallest share of resamples must survive Holm's correction, or a large table calls every loss "the same".
    full, worse = samples([0.9] * 100), samples([0.5] * 100)
    assert all(distinguishable([paired(worse, full).p] * 200))
