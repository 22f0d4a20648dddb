import numpy as np
import pandas as pd
import pytest
from scipy.stats import permutation_test

from harness.report import statistics
from harness.report.statistics import Panel, holm, interval, mcnemar, paired, sign_flip


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
    panel = Panel([frame])
    assert panel.tasks == ["a", "b"]
    assert panel.means(panel.scores).tolist() == [[0.75], [0.0], [(0.75 + 0.0) / 2]]
    assert interval(frame).mean == 0.375


def test_a_constant_score_has_an_interval_of_no_width():
    assert interval(samples([1.0] * 20)) == (1.0, 1.0, 1.0)


def test_one_image_gives_no_interval():
    mean, low, high = interval(samples([1, 0], images=["x", "x"]))
    assert mean == 0.5 and np.isnan(low) and np.isnan(high)


def test_every_score_of_every_row_has_its_interval_and_the_average_its_own():
    tasks, images = ["a"] * 60 + ["b"] * 40, [str(i % 60) for i in range(60)] + [str(i % 40) for i in range(40)]
    rng = np.random.default_rng(2)
    frames = [samples(list((rng.random(100) < right).astype(float)), tasks, images) for right in (0.6, 0.9)]
    panel = Panel(frames)
    for frame, (a, b, both) in zip(frames, panel.intervals(panel.scores), strict=True):
        for task, found in (("a", a), ("b", b)):
            scores = frame.score[frame.task == task].to_numpy()
            spread = 1.96 * scores.std() / len(scores) ** 0.5
            assert found.mean == pytest.approx(scores.mean())
            assert (found.high - found.low) / (2 * spread) == pytest.approx(1, abs=0.12)
        assert both == interval(frame) and both.mean == pytest.approx((a.mean + b.mean) / 2)


def test_rows_are_resampled_together_as_they_are_alone(monkeypatch):
    rng = np.random.default_rng(5)
    frames = [samples(list(rng.random(30)), ["a"] * 15 + ["b"] * 15) for _ in range(5)]
    alone = [interval(frame) for frame in frames]
    panel = Panel(frames)
    assert [found[-1] for found in panel.intervals(panel.scores)] == [pytest.approx(each) for each in alone]
    monkeypatch.setattr(statistics, "WIDTH", 6)  # two rows of two tasks and their average at a time
    assert [found[-1] for found in panel.intervals(panel.scores)] == [pytest.approx(each) for each in alone]


def test_a_task_of_one_image_and_a_task_that_a_row_has_not_get_no_interval():
    one, two = samples([1, 0, 1, 0], list("aaab"), list("wxyz")), samples([1, 0, 1], list("aaa"), list("wxy"))
    panel = Panel([one, two])
    (a, b, both), (alone, none, average) = panel.intervals(panel.scores)
    assert b.mean == 0.0 and np.isnan(b[1:]).all() and not np.isnan(a).any()
    assert both.mean == pytest.approx(1 / 3) and np.isnan(both[1:]).all()  # no draw would vary half of it
    assert alone.mean == a.mean == pytest.approx(2 / 3) and np.isnan(none).all()
    assert average == alone and not np.isnan(alone).any()


def test_each_scores_interval_covers_the_truth_with_questions_sharing_an_image():
    rng = np.random.default_rng(4)
    images = [str(i) for i in range(80) for _ in range(5)]
    tasks = ["a", "a", "a", "b", "b"] * 80

    def reality() -> list[float]:
        mood = rng.random((80, 1))  # an image's questions go well or badly together; each is right half the time
        return list((rng.random((80, 5)) < mood).ravel() * 1.0)

    panel = Panel([samples(reality(), tasks, images) for _ in range(1000)])
    found = np.array(panel.intervals(panel.scores))
    hits = ((found[..., 1] <= 0.5) & (found[..., 2] >= 0.5)).mean(axis=0)
    assert hits == pytest.approx([0.95] * 3, abs=0.02)


def test_the_interval_of_a_paired_difference_covers_the_truth():
    rng = np.random.default_rng(6)
    images = [str(i) for i in range(100) for _ in range(2)]
    ease = [np.repeat(rng.random(100), 2) for _ in range(1000)]
    frames = [samples(list((rng.random(200) < 0.8 * each + 0.2) * 1.0), images=images) for each in ease]
    frames += [samples(list((rng.random(200) < 0.8 * each + 0.1) * 1.0), images=images) for each in ease]
    found = Panel(frames).differences([(1000 + i, i) for i in range(1000)])
    assert np.mean([low <= -0.1 <= high for _, low, high, *_ in found]) == pytest.approx(0.95, abs=0.02)


def test_a_difference_is_of_the_samples_that_both_answered():
    full = samples([1.0, 1.0, 0.0, 1.0])
    found = paired(samples([0.0, 1.0, 1.0, None]).dropna(), full)
    assert (found.mean, found.lost, found.gained, found.p) == (0.0, 1, 1, 1.0)


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
    assert holm([0.04, 0.01, 0.03, 0.015]) == pytest.approx([0.06, 0.04, 0.06, 0.045])
    assert holm([]) == []


def test_right_and_wrong_are_compared_by_mcnemar():
    full, pruned = samples([1, 1, 1, 1, 1, 0]), samples([0, 0, 0, 0, 0, 1])
    difference = paired(pruned, full)
    assert difference.mean == pytest.approx(-4 / 6)
    assert difference.p == pytest.approx(mcnemar(1, 5)) and difference.exact


def test_several_questions_of_an_image_are_flipped_together():
    # three images that each change all of five answers: 2 of 8 signs are as extreme, whatever McNemar says of 15
    full, pruned = (
        samples([1.0] * 15, images=list("aaaaabbbbbccccc")),
        samples([0.0] * 15, images=list("aaaaabbbbbccccc")),
    )
    found = paired(pruned, full)
    assert found.p == pytest.approx(0.25, abs=0.02) and not found.exact
    assert mcnemar(0, 15) < 0.0001


def test_tasks_of_unequal_length_are_compared_as_their_average_weighs_them():
    """30 of 1000 lost in one task, 5 of 20 gained in the other: the average gains 11 points, the samples lose 25."""
    tasks = ["a"] * 1000 + ["b"] * 20
    full = samples([1.0] * 1000 + [0.0] * 10 + [1.0] * 10, tasks)
    pruned = samples([0.0] * 30 + [1.0] * 970 + [0.0] * 5 + [1.0] * 15, tasks)
    found = paired(pruned, full)
    assert found.mean == pytest.approx(0.11) and (found.lost, found.gained) == (30, 5)
    # 0.25 / 2 gained by five samples of 1 / 40 each against 0.03 / 2: all five must stay of a sign, 2 of 2**5
    assert found.p == pytest.approx(2 / 2**5, abs=0.01) and mcnemar(5, 30) < 0.0001


def test_each_task_is_compared_alone():
    tasks = ["a"] * 6 + ["b"] * 4
    full, pruned = samples([1.0] * 10, tasks), samples([0.0] * 6 + [1.0] * 4, tasks)
    panel = Panel([pruned, full, samples([1.0] * 6, ["a"] * 6)])
    assert panel.differences_by_task([(0, 1), (2, 1)]) == [{"a": 2 * 0.5**6, "b": 1.0}, {"a": 1.0}]


def test_the_sign_flips_are_scipys_permutation_test():
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.2, 0.4):
        changes = rng.normal(shift, 1, 40)
        exact = permutation_test(
            (changes,), np.sum, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(1)
        ).pvalue
        assert sign_flip(changes[:, None]) == pytest.approx([exact], abs=0.02)
    together = np.array([[0.0, 1], [0, 1], [0, 1], [0, 1]])
    assert sign_flip(together) == pytest.approx([1.0, 2 / 16], abs=0.01)


def test_a_fixed_reference_is_called_different_as_often_as_it_says():
    rng = np.random.default_rng(0)
    images = [str(i) for i in range(60) for _ in range(5)]
    found = 0
    for _ in range(200):
        mood = rng.random((60, 1)) * np.ones(5)  # questions of an image go well or badly together
        one, other = ((rng.random((60, 5)) < (0.5 * mood + 0.25)).ravel() for _ in range(2))
        found += paired(samples(list(one * 1.0), images=images), samples(list(other * 1.0), images=images)).p < 0.05
    assert found / 200 <= 0.08


def test_graded_scores_are_compared_by_flipping_signs():
    rng = np.random.default_rng(1)
    base = rng.random(100)
    same, worse = base + rng.normal(0, 0.1, 100), base - 0.3 + rng.normal(0, 0.1, 100)
    assert paired(samples(list(same)), samples(list(base))).p > 0.05
    assert paired(samples(list(worse)), samples(list(base))).p < 1e-10


def test_graded_losses_stay_distinguishable_among_many_comparisons():
    # The smallest share of resamples must survive Holm's correction, or a large table calls every loss "the same".
    full, worse = samples([0.9] * 100), samples([0.5] * 100)
    assert max(holm([paired(worse, full).p] * 200)) <= 0.05
