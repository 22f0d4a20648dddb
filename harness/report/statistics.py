"""Which differences are real: intervals and paired tests from per-sample scores.

Samples of one image are not independent, so whatever is drawn is drawn by image. Scores are paired by task and
document: every trial of a table answered the same questions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap, norm
from statsmodels.stats.multitest import multipletests

RESAMPLES = 2000
# A share of resamples cannot fall below 1 / their number: with these, Holm can still tell 250 comparisons apart.
TEST_RESAMPLES = 10_000
SEED = 0


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def clusters(samples: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return per image [C, T] the sum of its scores and the number of its samples in each of T tasks.

    samples has the columns task, image_id and score.
    """
    grouped = samples.groupby(["image_id", "task"], sort=True)["score"].agg(["sum", "count"]).unstack().fillna(0.0)
    return grouped["sum"].to_numpy(float), grouped["count"].to_numpy(float)


def average(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over tasks of each task's mean, from sums and counts [..., T].

    A task that a resample misses altogether is left out of its mean.
    """
    means: NDArray[np.float64] = np.nanmean(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), axis=-1)
    return means


def resample(sums: NDArray[np.float64], counts: NDArray[np.float64], draws: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the average of every draw [..., C] of images."""
    return average(sums[draws].sum(axis=-2), counts[draws].sum(axis=-2))


def interval(samples: pd.DataFrame) -> Interval:
    """Return the average over tasks with its bootstrap interval, images resampled (percentile method, scipy)."""
    sums, counts = clusters(samples)
    mean = float(average(sums.sum(axis=0), counts.sum(axis=0)))
    if len(sums) < 2:
        return Interval(mean, float("nan"), float("nan"))
    result = bootstrap(
        (np.arange(len(sums)),),
        lambda draws, axis: resample(sums, counts, np.moveaxis(draws, axis, -1)),
        n_resamples=RESAMPLES,
        batch=200,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Interval(mean, float(result.low), float(result.high))


class Difference(NamedTuple):
    """How a trial differs from another on the same samples: mean difference, interval, p of no difference.

    lost, gained: samples on which it scores less, and more.
    """

    mean: float
    low: float
    high: float
    p: float
    lost: int
    gained: int


def paired(trial: pd.DataFrame, full: pd.DataFrame) -> Difference:
    """Compare a trial with another, such as the full model, on the samples that both answered.

    The interval is the bootstrap of the paired difference by image. p: for scores that are all 0 or 1 McNemar's exact
    test on the samples that one got right and the other did not; for graded scores, the share of resamples on the other
    side of zero, doubled.
    """
    keys = ["task", "doc_id"]
    both = trial.merge(full, on=keys, suffixes=("", "_full"), validate="one_to_one")
    change = both["score"] - both["score_full"]
    difference = both[["task", "image_id"]].assign(score=change)
    mean, low, high = interval(difference)
    lost, gained = int((change < 0).sum()), int((change > 0).sum())
    if both["score"].isin((0, 1)).all() and both["score_full"].isin((0, 1)).all():
        return Difference(mean, low, high, mcnemar(gained, lost), lost, gained)
    sums, counts = clusters(difference)
    rng = np.random.default_rng(SEED)
    size = len(sums)
    means = []
    for _ in range(TEST_RESAMPLES // 500):  # in batches, for memory
        drawn = rng.multinomial(size, np.full(size, 1 / size), size=500)
        means.append(average(drawn @ sums, drawn @ counts))
    resampled = np.concatenate(means)
    beyond = min((resampled <= 0).mean(), (resampled >= 0).mean())
    return Difference(mean, low, high, float(min(1.0, 2 * max(beyond, 1 / TEST_RESAMPLES))), lost, gained)


def detectable(difference: Difference) -> float:
    """Return the smallest true difference that such a comparison finds at 5 % with a power of 80 %.

    By the normal approximation, its standard error taken from the bootstrap interval, so that images are accounted for;
    where few samples disagree, McNemar's exact test needs more than that.
    """
    error = (difference.high - difference.low) / (2 * norm.ppf(0.975))
    return float((norm.ppf(0.975) + norm.ppf(0.8)) * error)


def mcnemar(gained: int, lost: int) -> float:
    """Return McNemar's exact p: under no difference, gains and losses are as likely as heads and tails."""
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def distinguishable(p_values: Sequence[float]) -> list[bool]:
    """Return which differences are real at 5 % over the whole table (Holm's correction)."""
    return [bool(reject) for reject in multipletests(p_values, alpha=0.05, method="holm")[0]] if len(p_values) else []
