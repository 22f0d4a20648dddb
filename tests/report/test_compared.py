from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from harness.report.compared import Compared
from harness.report.differences import differences
from harness.report.footer import off_scale
from harness.report.results import SETTING, Results, Row
from harness.report.statistics import Difference, detectable, interval, mcnemar, paired

SAME_SETTING = dict.fromkeys((*SETTING, "weights", "task files"))


def row(method: str, scores: list[float], tokens: int | None = 64, **setting: object) -> Row:
    samples = pd.DataFrame(
        {
            "task": ["t"] * len(scores),
            "doc_id": range(len(scores)),
            "image_id": [str(i) for i in range(len(scores))],
            "score": scores,
        }
    )
    parameters = {} if method == "full" else {"tokens": tokens}
    record = {"trial": {}, "scores": {"t": {"exact_match": sum(scores) / len(scores), "n": len(scores)}}}
    return Row("pocket", method, parameters, SAME_SETTING | setting, [record], samples)


FULL = row("full", [1.0] * 30 + [0.0] * 10)
GOOD = row("ivtp", [1.0] * 27 + [0.0] * 10 + [1.0] * 3)
POOR = row("topk", [1.0] * 15 + [0.0] * 25)
NEAR = row("evit", [1.0] * 26 + [0.0] * 11 + [1.0] * 3)
SMALL = row("downsample", [0.0] * 20 + [1.0] * 5 + [0.0] * 15, tokens=49)


def compared(*rows: Row) -> Compared:
    return Compared(Results("mine", list(rows), []))


def test_every_row_is_held_against_the_full_model_and_the_best_of_its_budget():
    found = compared(FULL, GOOD, POOR, NEAR)
    assert found.retention == {0: 1.0, 1: 1.0, 2: 0.5, 3: pytest.approx(29 / 30)}
    assert [found.difference[i][4:6] for i in (1, 2, 3)] == [(3, 3), (15, 0), (4, 3)]
    assert found.best == {1: 1, 2: 1, 3: 1}
    assert {i: found.from_best[i].mean for i in found.from_best} == {
        2: pytest.approx(-15 / 40),
        3: pytest.approx(-1 / 40),
    }
    assert found.same == {1, 3} and found.tied == {3}


def test_every_row_has_its_scores_by_task():
    found = compared(FULL, GOOD)
    assert found.scores.keys() == {0, 1} and found.scores[1].keys() == {"t"}
    assert found.scores[1]["t"] == found.average[1] == pytest.approx(interval(GOOD.samples))


def test_a_best_has_all_tasks_of_its_budget():
    """Two rows that lack one task each are no better or worse than each other, nor than what has both."""
    a, b = (row("topk", [1.0] * 40).samples.assign(task=task) for task in "ab")
    both = pd.concat([a, b.assign(score=0.0)])
    rows = [
        Row("pocket", name, {"tokens": 64}, SAME_SETTING, [], s)
        for name, s in zip("xyzw", (a, b, both, both), strict=True)
    ]
    found = compared(*rows)
    assert found.best == {2: 2, 3: 2} and found.from_best.keys() == {3}
    assert found.scores[0].keys() == {"a"} and found.scores[2].keys() == {"a", "b"}


def test_holms_correction_is_over_both_kinds_of_comparison():
    # 14 lost against 3 gained: p = 0.0127, real alone and not as the least of six
    lossy = row("pooling", [1.0] * 16 + [0.0] * 14 + [1.0] * 3 + [0.0] * 7)
    assert paired(lossy.samples, FULL.samples).p == pytest.approx(2 * sum((1, 17, 136, 680)) / 2**17)
    assert compared(FULL, lossy).same == set()
    assert 1 in compared(FULL, lossy, GOOD, NEAR, row("tome", list(GOOD.samples.score))).same


def test_equal_methods_are_rarely_called_worse_than_the_best_of_them():
    rng = np.random.default_rng(0)
    reports = 0
    for _ in range(60):
        rows = [row(f"m{i}", list((rng.random(120) < 0.6).astype(float))) for i in range(8)]
        found = compared(*rows)
        reports += len(found.tied) < len(found.from_best)
    assert reports / 60 <= 0.1


def test_budgets_models_and_settings_have_a_best_of_their_own():
    small, other = row("topk", [1.0] * 40, tokens=16), row("topk", [1.0] * 40, seed=1)
    found = compared(FULL, GOOD, POOR, small, other)
    assert found.best == {1: 1, 2: 1} and 4 not in found.difference


def test_the_best_of_a_budget_is_a_row_of_the_main_table():
    """Of a full grid the table shows one cell; another, though better, would be a best that no reader sees."""
    grid = [row("ivtp", [right] * 30 + [0.0] * 10) for right in (0.7, 0.7, 0.7, 1.0)]
    for each, (group, threshold) in zip(grid, ((2, 0.1), (2, 0.2), (3, 0.1), (3, 0.2)), strict=True):
        each.parameters.update(group=group, threshold=threshold)
    found = compared(FULL, POOR, *grid)
    assert found.main == {0, 1, 2} and found.best == {1: 2, 2: 2} and found.from_best.keys() == {1}
    assert found.average[5].mean > found.average[2].mean and 5 in found.difference


def test_rows_without_a_budget_have_no_best():
    assert compared(FULL, row("ats", [1.0] * 40, tokens=None), row("dyn", [0.0] * 40, tokens=None)).best == {}


def tasked(method: str, **scores: list[float]) -> Row:
    frames = [row(method, found).samples.assign(task=task) for task, found in scores.items()]
    record = {"trial": {}, "scores": {task: {"em": sum(found) / len(found)} for task, found in scores.items()}}
    each = row(method, [1.0])
    return Row(each.model, method, each.parameters, each.setting, [record], pd.concat(frames))


def test_the_average_rate_is_the_mean_of_the_tasks_rates_and_leaves_out_what_full_fails():
    full = tasked("full", a=[1.0] * 12 + [0.0] * 8, b=[1.0] * 2 + [0.0] * 18, c=[0.0] * 20)
    pruned = tasked("topk", a=[1.0] * 9 + [0.0] * 11, b=[1.0] + [0.0] * 19, c=[1.0] * 20)
    assert compared(full, pruned).retention == {0: 1.0, 1: pytest.approx((0.75 + 0.5) / 2)}


def test_scores_that_are_no_share_of_a_full_mark_are_in_no_average():
    full, pruned = tasked("full", a=[1.0] * 20, b=[5.0] * 20), tasked("topk", a=[0.0] * 20, b=[1.0] * 20)
    results = Results("mine", [full, pruned], [])
    found = Compared(results)
    assert results.off_scale == {"b"} and found.scores[1].keys() == {"a"} and found.difference[1].mean == -1.0
    assert found.retention[1] == pytest.approx((0 + 1 / 5) / 2)
    assert off_scale(results).startswith("Avg. and the comparisons leave out b: ") and "350" not in off_scale(results)
    assert off_scale(Results("mine", [FULL], [])) == ""


def test_each_tasks_difference_is_corrected_over_all_rows_and_tasks():
    full = tasked("full", a=[1.0] * 20, b=[1.0] * 20)
    found = compared(full, tasked("topk", a=[0.0] * 20, b=[1.0] * 20))
    assert found.by_task == {1: {"a": 2 * 0.5**20, "b": 1.0}}
    assert found.corrected_by_task == {(1, "a"): pytest.approx(4 * 0.5**20), (1, "b"): 1.0}


def test_the_hard_samples_are_those_that_a_smaller_image_gets_wrong():
    found = compared(FULL, GOOD, POOR, SMALL)
    assert found.hard.keys() == {1, 2}
    wrong = [i for i, score in enumerate(SMALL.samples.score) if not score]
    for i, each, mean in ((1, GOOD, (20 + 2 + 3) / 35), (2, POOR, 15 / 35)):
        assert found.hard[i] == (pytest.approx(interval(each.samples.iloc[wrong]), abs=0.02), 49, 35)
        assert found.hard[i].score.mean == pytest.approx(mean)


def test_the_nearest_smaller_image_is_taken():
    tiny = row("downsample", [0.0] * 40, tokens=16)
    found = compared(FULL, row("topk", [1.0] * 40, tokens=25), SMALL, tiny)
    assert found.hard[1].tokens == 16
    assert compared(FULL, row("topk", [1.0] * 40, tokens=36), SMALL, tiny).hard[1].tokens == 49


def test_the_detectable_difference_by_hand():
    width = 2 * norm.ppf(0.975) * 0.02
    found = Difference(0.0, -width / 2, width / 2, 1.0, 0, 0, True)
    assert detectable(found, 0.05) == pytest.approx(0.02 * (1.959964 + 0.841621))
    assert detectable(found, 0.05 / 10) == pytest.approx(0.02 * (2.807034 + 0.841621))
    assert detectable(Difference(0.0, 0.0, 0.0, 1.0, 0, 0, True), 0.05) is None
    assert detectable(Difference(0.0, np.nan, np.nan, 1.0, 0, 0, True), 0.05) is None


def test_a_true_difference_of_that_size_is_found_four_times_in_five():
    rng = np.random.default_rng(0)

    def discordant(lost: float, gained: float) -> tuple[int, int]:
        return tuple(rng.multinomial(400, (lost, gained, 1 - lost - gained))[:2])

    def scores(lost: int, gained: int) -> tuple[Row, Row]:
        same = [1.0] * (400 - lost - gained)
        return row("topk", [0.0] * lost + [1.0] * gained + same), row("full", [1.0] * lost + [0.0] * gained + same)

    pairs = [[r.samples for r in scores(*discordant(0.1, 0.1))] for _ in range(5)]
    least = float(np.mean([detectable(paired(*pair), 0.05) for pair in pairs]))
    # the same share of samples disagrees, and the difference between the two is the true one
    lost, gained = 0.1 + least / 2, 0.1 - least / 2
    found = [mcnemar(*reversed(discordant(lost, gained))) < 0.05 for _ in range(2000)]
    assert 0.7 <= np.mean(found) <= 0.85


def test_the_table_says_what_is_best_tied_and_hard():
    results = Results("mine", [FULL, GOOD, POOR, NEAR, SMALL], [])
    lines = {
        line.split("|")[1].strip(): line for line in differences(results, Compared(results)).splitlines() if "|" in line
    }
    assert "| 3 / 3 | **best** | 71.4 (55.6–85.7), n 35, downsample 49 |" in lines["ivtp"]
    assert lines["topk"].split("|")[2].startswith(" −37.5 (−52.5 to −22.5)") and "≈" not in lines["topk"]
    assert lines["evit"].count("≈") == 1 and "| −2.5 (−7.5 to +0.0) = |" in lines["evit"]
    text = differences(results, Compared(results))
    assert "With 40 samples on 40 images a comparison finds a true difference of " in text and "power of 80 %" in text
    assert "(a score below 1)" in text and "yardstick" not in text
    least = [100 * each for found in (Compared(results).least, Compared(results).least_best) for each in found.values()]
    assert f"difference of {min(least):.1f} to {max(least):.1f} points, median {float(np.median(least)):.1f}," in text
    with_random = Results("mine", [FULL, GOOD, row("random", [1.0] * 40), SMALL], [])
    assert "; random is the yardstick." in differences(with_random, Compared(with_random))


def test_a_row_that_was_compared_with_nothing_is_no_heading_and_no_interval_is_no_nan():
    results = Results("mine", [row("topk", [1.0]), row("tome", [0.0]), row("topk", [1.0], tokens=16)], [])
    text = differences(results, Compared(results))
    assert "| topk | – | – | – |" in text and "| tome | – | – | −100.0 = |" in text
    assert "nan" not in text and "power" not in text


def test_without_anything_to_compare_there_is_no_table(tmp_path: Path):
    results = Results("mine", [FULL], [])
    assert differences(results, Compared(results)) == ""
