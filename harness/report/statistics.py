"""Which differences are real: intervals and paired tests from per-sample scores.

Samples of one image are not independent, so whatever is drawn is drawn by image. Scores are paired by task and
document: every trial of a table answered the same questions, so one drawing of images serves all of them.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import binomtest, bootstrap, norm
from statsmodels.stats.multitest import multipletests

RESAMPLES = 2000
FLIPS = 10_000
SEED = 0
BATCH = 200  # draws at a time
WIDTH = 6000  # numbers resampled at a time, times RESAMPLES in memory

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """How a trial differs from another on the same samples: mean difference, interval, p of no difference.

    lost, gained: samples on which it scores less, and more; exact: p is of McNemar's test, not of sign flips.
    """

    mean: float
    low: float
    high: float
    p: float
    lost: int
    gained: int
    exact: bool


class Panel:
    """The scores [N, K] of K rows on the same N samples, NaN where a row has none.

    Of every sample the number of its task [N] (of `tasks`) and of its image [N] (of `images`). frames: one a row, with
    the columns task, doc_id, image_id and score; a task and document once.
    """

    def __init__(self, frames: Sequence[pd.DataFrame]) -> None:
        together = pd.concat([frame[["task", "doc_id", "image_id", "score"]] for frame in frames], ignore_index=True)
        together["row"] = np.repeat(np.arange(len(frames)), [len(frame) for frame in frames])
        sample = together.groupby(["task", "doc_id"], sort=False).ngroup().to_numpy()
        first = np.unique(sample, return_index=True)[1]
        self.scores: Array = np.full((len(first), len(frames)), np.nan)
        self.scores[sample, together["row"]] = together["score"]
        self.task, names = pd.factorize(together["task"].iloc[first], sort=True)
        self.image, images = pd.factorize(together["image_id"].iloc[first].astype(str), sort=True)
        self.tasks, self.images = [str(name) for name in names], len(images)
        # the samples of one task and image are added up once
        asked, cell = np.unique(self.task * self.images + self.image, return_inverse=True)
        self._tasks = csr_array((np.ones(len(cell)), (self.task, np.arange(len(cell)))))
        self._asked_task, self._asked_image = asked // self.images, asked % self.images
        self._gather = csr_array((np.ones(len(cell)), (cell, np.arange(len(cell)))), shape=(len(asked), len(cell)))

    def means(self, scores: Array) -> Array:
        """Return every task's mean and, last, their average [T + 1, K]; NaN for a task that a row has not."""
        return _with_average((self._tasks @ np.nan_to_num(scores)) / _or_nan(self.answered(scores)))

    def answered(self, scores: Array) -> Array:
        """Return how many samples of every task each row has [T, K]."""
        return self._tasks @ ~np.isnan(scores)

    def intervals(self, scores: Array, *, by_task: bool = True) -> list[list[Interval]]:
        """Return for every row of scores [N, K] the intervals of all tasks and, last, of their average, or that alone.

        The percentile bootstrap (scipy) over images. Of fewer than two images the interval is NaN, and so is that of an
        average with such a task, which no draw would vary.
        """
        width = max(1, WIDTH // (len(self.tasks) + 1 if by_task else 1))
        return [
            intervals
            for begin in range(0, scores.shape[1], width)
            for intervals in self._intervals(scores[:, begin : begin + width], by_task)
        ]

    def _intervals(self, scores: Array, by_task: bool) -> list[list[Interval]]:
        means = self.means(scores)
        sums, counts = self._gather @ np.nan_to_num(scores), self._gather @ ~np.isnan(scores)
        tasks = [np.flatnonzero(self._asked_task == task) for task in range(len(self.tasks))]
        images = np.stack([(counts[own] > 0).sum(axis=0) for own in tasks])
        there = (images > 0).sum(axis=0)
        fewest = np.where(images > 0, images, self.images).min(axis=0)
        images = np.concatenate([images, fewest[None]])
        if (counts == counts[:, :1]).all():  # as a rule every row answered every sample
            counts = counts[:, :1]

        def resampled(draws: NDArray[np.int64], axis: int) -> Array:
            """Return [T + 1, K, draws]; a task that a draw of images misses altogether keeps its mean."""
            drawn = np.moveaxis(draws, axis, -1).reshape(-1, self.images)
            places = drawn + self.images * np.arange(len(drawn))[:, None]
            times = np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float)
            found = np.empty((len(tasks) if by_task else 0, scores.shape[1], len(drawn)))
            total = np.zeros((1, scores.shape[1], len(drawn)))
            for task, own in enumerate(tasks):
                weights = times[:, self._asked_image[own]]
                asked = weights @ counts[own]
                mean = (weights @ sums[own]) / np.maximum(asked, 1)
                if not asked.all():
                    mean = np.where(asked > 0, mean, np.nan_to_num(means[task]))
                total += mean.T
                if by_task:
                    found[task] = mean.T
            return np.concatenate([found, total / there[:, None]])

        if self.images < 2:
            low = high = np.full_like(means, np.nan)
        else:
            low, high = bootstrap(
                (np.arange(self.images),),
                resampled,
                n_resamples=RESAMPLES,
                batch=BATCH,
                method="percentile",
                vectorized=True,
                rng=np.random.default_rng(SEED),
            ).confidence_interval
        shown = slice(None) if by_task else slice(-1, None)
        low, high = (np.where(images[shown] > 1, bound[shown], np.nan) for bound in (low, high))
        return [
            [Interval(*map(float, values)) for values in zip(*row, strict=True)]
            for row in zip(means[shown].T, low.T, high.T, strict=True)
        ]

    def differences(self, pairs: Sequence[tuple[int, int]]) -> list[Difference]:
        """Compare rows with others, each on the samples that both answered.

        The interval is the bootstrap of the paired difference by image. p: for scores that are all 0 or 1 McNemar's
        exact test on the samples that one got right and the other did not, where these weigh alike and are independent:
        every task of the pair has as many samples, and no two of them are of one image. Else the sign-flip permutation
        test by image of what is shown, the difference of averages over tasks; McNemar's is its case of equal weights.
        """
        if not pairs:
            return []
        one, other = (self.scores[:, list(rows)] for rows in zip(*pairs, strict=True))
        change = one - other
        intervals, (p, exact) = self.intervals(change, by_task=False), self._tested(one, other)
        return [
            Difference(*found[-1], float(each), int(lost), int(gained), bool(mcnemars))
            for found, each, lost, gained, mcnemars in zip(intervals, p, *_lost_gained(change), exact, strict=True)
        ]

    def differences_by_task(self, pairs: Sequence[tuple[int, int]]) -> list[dict[str, float]]:
        """Return for every pair the p of no difference in each task of which both answered samples, as above."""
        if not pairs:
            return []
        one, other = (self.scores[:, list(rows)] for rows in zip(*pairs, strict=True))
        p = [
            self._tested(*(np.where((self.task == t)[:, None], rows, np.nan) for rows in (one, other)))[0]
            for t in range(len(self.tasks))
        ]
        asked = self.answered(one - other)
        return [{task: float(p[t][k]) for t, task in enumerate(self.tasks) if asked[t, k]} for k in range(len(pairs))]

    def _tested(self, one: Array, other: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Return the p [K] of no difference between rows [N, K] and others, and where it is of McNemar's test [K]."""
        change = one - other
        asked = self.answered(change)
        lost, gained = _lost_gained(change)
        by_image = csr_array((np.ones(len(self.image)), (self.image, np.arange(len(self.image)))))
        right_or_wrong = np.isin(np.where(np.isnan(change)[None], 0, (one, other)), (0, 1)).all(axis=(0, 1))
        exact = right_or_wrong & ((by_image @ (np.nan_to_num(change) != 0)).max(axis=0) <= 1)
        exact &= ((asked == 0) | (asked == asked.max(axis=0))).all(axis=0)
        p = np.array([mcnemar(int(up), int(down)) for up, down in zip(gained, lost, strict=True)])
        if not exact.all():
            weighted = np.nan_to_num(change[:, ~exact]) / np.maximum(asked[:, ~exact][self.task], 1)
            p[~exact] = sign_flip(by_image @ weighted)
        return p, exact


def _lost_gained(change: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return (change < 0).sum(axis=0), (change > 0).sum(axis=0)


def _or_nan(counts: Array) -> Array:
    return np.where(counts > 0, counts, np.nan)


def _with_average(means: Array) -> Array:
    """Put the mean over the tasks that are there [T, ...] behind them."""
    return np.concatenate([means, np.nansum(means, axis=0)[None] / _or_nan((~np.isnan(means)).sum(axis=0))[None]])


def interval(samples: pd.DataFrame) -> Interval:
    """Return the average over tasks of each task's mean, with its bootstrap interval over images."""
    panel = Panel([samples])
    return panel.intervals(panel.scores)[0][-1]


def paired(trial: pd.DataFrame, full: pd.DataFrame) -> Difference:
    """Compare a trial with another, such as the full model, as `Panel.differences` does."""
    return Panel([trial, full]).differences([(0, 1)])[0]


@cache
def mcnemar(gained: int, lost: int) -> float:
    """Return McNemar's exact p: under no difference, gains and losses are as likely as heads and tails."""
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def sign_flip(changes: Array) -> Array:
    """Return the p [K] of no difference from what each image [C, K] changes: each sign would be as likely as the other.

    By FLIPS random draws; where none is as extreme, the normal approximation's p, if it is smaller than they can tell.
    """
    found = np.abs(changes.sum(axis=0))
    draws = np.random.default_rng(SEED)
    extreme = np.zeros(changes.shape[1], int)
    for _ in range(FLIPS // BATCH):
        signs = draws.choice((-1.0, 1.0), (BATCH, len(changes)))
        extreme += (np.abs(signs @ changes) >= found - 1e-12).sum(axis=0)
    spread = np.sqrt((changes**2).sum(axis=0))
    normal = 2 * norm.sf(found / np.where(spread > 0, spread, 1))
    return np.where(extreme > 0, (extreme + 1) / (FLIPS + 1), np.minimum(1 / FLIPS, normal))


def detectable(difference: Difference, level: float) -> float | None:
    """Return the smallest true difference that such a comparison finds at this level with a power of 80 %.

    By the normal approximation, its standard error taken from the bootstrap interval, so that images are accounted for;
    where few samples disagree, McNemar's exact test needs more than that. None for an interval without a width.
    """
    error = (difference.high - difference.low) / (2 * norm.ppf(0.975))
    return float((norm.ppf(1 - level / 2) + norm.ppf(0.8)) * error) if error > 0 else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values corrected for there being so many (Holm): a difference is real where its own is ≤ 0.05."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []
