"""Every row of a report held against others on the same samples: the full model, its budget's best, a small image."""

import math
from collections import Counter
from typing import NamedTuple

import pandas as pd

from harness.report.results import Results, Row
from harness.report.statistics import Difference, Interval, distinguishable, interval, paired

BASELINE = "downsample"


class Hard(NamedTuple):
    """The mean score on samples that the downsampled image gets wrong, its tokens, and how many samples these are."""

    mean: float
    tokens: int
    samples: int


class Compared:
    """Averages with intervals by row, and paired differences; Holm's correction over all comparisons of the report.

    average, retention (of the full model's average); difference (from the full model), same (not distinguishable from
    it); best (of each row's budget, by row), from_best, tied (not distinguishable from the best); hard.
    """

    def __init__(self, results: Results) -> None:
        self.rows = results.rows
        self.scored = {i: row.samples.dropna(subset="score") for i, row in enumerate(self.rows) if len(row.samples)}
        self.scored = {i: samples for i, samples in self.scored.items() if len(samples)}
        full = {self._key(row): i for i, row in enumerate(self.rows) if row.method == "full"}
        self.full = {i: self.rows[full[self._key(row)]] if self._key(row) in full else None for i, row in self._all()}
        self.average: dict[int, Interval] = {i: interval(samples) for i, samples in self.scored.items()}
        self.difference: dict[int, Difference] = {}
        self.retention: dict[int, float] = {}
        for i, samples in self.scored.items():
            reference = full.get(self._key(self.rows[i]))
            answers = None if reference is None else self._answers(reference, samples)
            if answers is None:
                continue
            mean = answers.groupby("task")["score"].mean().mean()
            if mean:
                self.retention[i] = self.average[i].mean / mean
            if i != reference:
                self.difference[i] = paired(samples, answers)
        self.best = self._best()
        self.from_best = {i: paired(self.scored[i], self.scored[best]) for i, best in self.best.items() if i != best}
        # The best of k is chosen on the same samples, so k(k − 1)/2 pairs stand behind its k − 1 comparisons.
        chosen_of = Counter(self.best.values())
        against_best = [min(1.0, each.p * chosen_of[self.best[i]] / 2) for i, each in self.from_best.items()]
        real = distinguishable([*(each.p for each in self.difference.values()), *against_best])
        same = [is_real is False for is_real in real]
        self.same = {i for i, is_same in zip(self.difference, same, strict=False) if is_same}
        self.tied = {i for i, is_same in zip(self.from_best, same[len(self.difference) :], strict=True) if is_same}
        self.hard = self._hard()

    def _all(self) -> list[tuple[int, Row]]:
        return list(enumerate(self.rows))

    @staticmethod
    def _key(row: Row) -> tuple[str, str]:
        return row.model, str(row.setting)

    def _answers(self, reference: int, samples: pd.DataFrame) -> pd.DataFrame | None:
        """Return a row's answers to the tasks of these samples, None where it lacks one (its trial failed)."""
        answers = self.scored.get(reference)
        if answers is None:
            return None
        same = answers[answers["task"].isin(samples["task"].unique())]
        return same if set(same["task"]) == set(samples["task"]) else None

    def _best(self) -> dict[int, int]:
        """Return, for every pruned row, the best one of its model, setting and budget, where there are several."""
        groups: dict[tuple[str, str, str], list[int]] = {}
        for i in self.scored:
            if self.rows[i].method != "full":
                groups.setdefault((*self._key(self.rows[i]), self.rows[i].budget), []).append(i)
        found: dict[int, int] = {}
        for group in groups.values():
            most = max(self.scored[i]["task"].nunique() for i in group)
            whole = [i for i in group if self.scored[i]["task"].nunique() == most]
            if len(whole) > 1:
                best = max(whole, key=lambda i: self.average[i].mean)
                found |= dict.fromkeys(whole, best)
        return found

    def _hard(self) -> dict[int, Hard]:
        """Score every pruned row on what the image made smaller, to the nearest number of tokens, gets wrong."""
        found: dict[int, Hard] = {}
        for i, samples in self.scored.items():
            row = self.rows[i]
            tokens = row.tokens or row.mean("tokens", "mean_llm")
            small = [
                j
                for j in self.scored
                if self.rows[j].method == BASELINE and self._key(self.rows[j]) == self._key(row) and self.rows[j].tokens
            ]
            if not small or not tokens or row.method == "full":
                continue
            nearest = min(small, key=lambda j: abs(math.log(self.rows[j].tokens or 1) - math.log(tokens)))
            wrong = self.scored[nearest][self.scored[nearest]["score"] < 1][["task", "doc_id"]]
            mine = samples.merge(wrong, on=["task", "doc_id"])
            if i != nearest and len(mine):
                mean = float(mine.groupby("task")["score"].mean().mean())
                found[i] = Hard(mean, self.rows[nearest].tokens or 0, len(mine))
        return found
