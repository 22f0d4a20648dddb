"""Which differences are real: intervals and paired tests from per-sample scores.

Samples of one image are not independent, so whatever is drawn is drawn by image. Scores are paired by task and
document: every trial of a table answered the same questions.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap, norm
from statsmodels.stats.multitest import multipletests

RESAMPLES = 2000
FLIPS = 10_000
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
    test on the samples that one got right and the other did not, unless several of these are of one image. Else, and
    for graded scores, the sign-flip permutation test by image, of which McNemar's is the case of one sample an image.
    """
    keys = ["task", "doc_id"]
    both = trial.merge(full, on=keys, suffixes=("", "_full"), validate="one_to_one")
    change = both["score"] - both["score_full"]
    difference = both[["task", "image_id"]].assign(score=change)
    mean, low, high = interval(difference)
    lost, gained = int((change < 0).sum()), int((change > 0).sum())
    right_or_wrong = both["score"].isin((0, 1)).all() and both["score_full"].isin((0, 1)).all()
    if right_or_wrong and not both["image_id"][change != 0].duplicated().any():
        p = mcnemar(gained, lost)
    else:
        sums, counts = clusters(difference)
        p = sign_flip((sums / counts.sum(axis=0)).sum(axis=1))
    return Difference(mean, low, high, p, lost, gained)


def mcnemar(gained: int, lost: int) -> float:
    """Return McNemar's exact p: under no difference, gains and losses are as likely as heads and tails."""
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def sign_flip(changes: NDArray[np.float64]) -> float:
    """Return the p of no difference from what each image [C] changes: each sign would be as likely as the other.

    By FLIPS random draws; where none is as extreme, the normal approximation's p, if it is smaller than they can tell.
    """
    moved = changes[changes != 0]
    if not len(moved):
        return 1.0
    found = abs(moved.sum())
    extreme = int((np.abs(_signs(1 << (len(moved) - 1).bit_length())[:, : len(moved)] @ moved) >= found - 1e-12).sum())
    if extreme:
        return (extreme + 1) / (FLIPS + 1)
    return min(1 / FLIPS, 2 * float(norm.sf(found / np.sqrt((moved**2).sum()))))


@lru_cache(maxsize=4)
def _signs(images: int) -> NDArray[np.float64]:
    return np.random.default_rng(SEED).choice((-1.0, 1.0), (FLIPS, images))


def detectable(difference: Difference) -> float:
    """Return the smallest true difference that such a comparison finds at 5 % with a power of 80 %.

    By the normal approximation, its standard error taken from the bootstrap interval, so that images are accounted for;
    where few samples disagree, McNemar's exact test needs more than that.
    """
    error = (difference.high - difference.low) / (2 * norm.ppf(0.975))
    return float((norm.ppf(0.975) + norm.ppf(0.8)) * error)


def distinguishable(p_values: Sequence[float]) -> list[bool]:
    """Return which differences are real at 5 % over the whole table (Holm's correction)."""
    return [bool(reject) for reject in multipletests(p_values, alpha=0.05, method="holm")[0]] if len(p_values) else []
