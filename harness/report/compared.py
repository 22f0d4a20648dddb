"""Every row of a report held against others on the same samples: the full model, its budget's best, a small image."""

import math
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np

from harness.report.results import Results, Row
from harness.report.rows import in_main_table
from harness.report.statistics import Difference, Interval, Panel, detectable, holm

BASELINE = "downsample"
LEVEL = 0.05


class Hard(NamedTuple):
    """The score on samples that the downsampled image gets wrong, its tokens, and how many samples these are.

    Wrong: scored below the full mark, 1.
    """

    score: Interval
    tokens: int
    samples: int


class Compared:
    """Averages with intervals by row, and paired differences; Holm's correction over all comparisons of the report.

    scores (by leaf task), asked (the samples of each that have a score), average, retention (the mean over tasks of
    score / full model's score); difference (from the full model), same (not distinguishable from it); best (of each
    row's budget, by row), from_best, tied (not distinguishable from the best); corrected, corrected_best (the p values
    of these differences after the correction), least, least_best (the true difference that each would find, None for
    none); by_task (p of no difference from the full model in each task), corrected_by_task (a correction of their own),
    hard. Tasks `Results.off_scale` are in retention alone.
    """

    def __init__(self, results: Results) -> None:
        self.rows = results.rows
        self.main = set(in_main_table(results))
        self.scored = {i: found for i, row in enumerate(self.rows) if len(found := results.scored(row))}
        full = {_key(row): i for i, row in enumerate(self.rows) if row.method == "full"}
        self.full = {i: self.rows[full[_key(row)]] if _key(row) in full else None for i, row in enumerate(self.rows)}
        self.scores: dict[int, dict[str, Interval]] = {}
        self.asked: dict[int, dict[str, int]] = {}
        self.average: dict[int, Interval] = {}
        self.retention: dict[int, float] = {}
        self.difference: dict[int, Difference] = {}
        self.best: dict[int, int] = {}
        self.from_best: dict[int, Difference] = {}
        self.by_task: dict[int, dict[str, float]] = {}
        self.hard: dict[int, Hard] = {}
        panels: dict[tuple[str, str], list[int]] = defaultdict(list)
        for i in self.scored:
            panels[_key(self.rows[i])].append(i)
        for key, members in panels.items():
            self._compare(members, full.get(key))
        # The best of k is chosen on the same samples, so k(k − 1)/2 pairs stand behind its k − 1 comparisons.
        chosen_of = Counter(self.best.values())
        times = {i: chosen_of[self.best[i]] / 2 for i in self.from_best}
        against_best = [min(1.0, each.p * times[i]) for i, each in self.from_best.items()]
        corrected = holm([*(each.p for each in self.difference.values()), *against_best])
        level = LEVEL / max(1, len(corrected))  # the strictest of Holm's
        self.least = {i: detectable(each, level) for i, each in self.difference.items()}
        self.least_best = {i: detectable(each, level / times[i]) for i, each in self.from_best.items()}
        self.corrected = dict(zip(self.difference, corrected, strict=False))
        self.corrected_best = dict(zip(self.from_best, corrected[len(self.difference) :], strict=True))
        self.same = {i for i, p in self.corrected.items() if p > LEVEL}
        self.tied = {i for i, p in self.corrected_best.items() if p > LEVEL}
        places = [(i, task) for i, found in self.by_task.items() for task in found]
        self.corrected_by_task = dict(zip(places, holm([self.by_task[i][task] for i, task in places]), strict=True))

    def _compare(self, members: list[int], full: int | None) -> None:
        """Compare the rows of one model and setting; full: the full model among them."""
        panel = Panel([self.scored[i] for i in members])
        asked = panel.answered(panel.scores).astype(int)
        there = asked > 0  # [T, K]: who answered what
        column = {i: k for k, i in enumerate(members)}
        for i, (*scores, average) in zip(members, panel.intervals(panel.scores), strict=True):
            mine = asked[:, column[i]]
            self.scores[i] = {task: score for task, score, n in zip(panel.tasks, scores, mine, strict=True) if n}
            self.asked[i] = {task: int(n) for task, n in zip(panel.tasks, mine, strict=True) if n}
            self.average[i] = average
        if full in column:
            answered = there[:, column[full]]
            held = [i for i in members if answered[there[:, column[i]]].all()]  # the full model has all of its tasks
            for i in held:
                self._retain(i, self.rows[full].scores)
            pruned = [i for i in held if i != full]
            pairs = [(column[i], column[full]) for i in pruned]
            self.difference |= dict(zip(pruned, panel.differences(pairs), strict=True))
            self.by_task |= dict(zip(pruned, panel.differences_by_task(pairs), strict=True))
        best = self._best(members, {i: frozenset(np.flatnonzero(there[:, column[i]])) for i in members})
        self.best |= best
        others = [i for i in best if i != best[i]]
        pairs = [(column[i], column[best[i]]) for i in others]
        self.from_best |= dict(zip(others, panel.differences(pairs), strict=True))
        self._hard(panel, column)

    def _retain(self, i: int, full: dict[str, float | None]) -> None:
        """Hold a row's scores against the full model's as the papers do: task by task, each on the task's own scale."""
        scores = {task: score for task, score in self.rows[i].scores.items() if score is not None}
        pairs = [(score, full.get(task)) for task, score in scores.items()]
        rates = [score / whole for score, whole in pairs if whole]
        if rates and all(whole is not None for _, whole in pairs):
            self.retention[i] = sum(rates) / len(rates)

    def _best(self, members: list[int], tasks: dict[int, frozenset[int]]) -> dict[int, int]:
        """Return, for every row with a budget and all tasks of it, the best one of them, where there are several.

        Of the main table's rows: what a grid shows by itself would be a best that no reader of the table sees.
        """
        groups: dict[int, list[int]] = defaultdict(list)
        for i in self.main.intersection(members):
            if (tokens := self.rows[i].tokens) is not None:
                groups[tokens].append(i)
        found: dict[int, int] = {}
        for group in groups.values():
            every = frozenset().union(*(tasks[i] for i in group))
            whole = [i for i in group if tasks[i] == every]
            if len(whole) > 1:
                found |= dict.fromkeys(whole, max(whole, key=lambda i: self.average[i].mean))
        return found

    def _hard(self, panel: Panel, column: dict[int, int]) -> None:
        """Score every pruned row on what the image made smaller, to the nearest number of tokens, gets wrong."""
        small = {i: tokens for i in column if self.rows[i].method == BASELINE and (tokens := self.rows[i].tokens)}
        for i, k in column.items():
            row = self.rows[i]
            mine = row.tokens or row.mean("tokens", "mean_llm")
            if not small or not mine or row.method == "full":
                continue
            nearest = min(small, key=lambda j: abs(math.log(small[j]) - math.log(mine)))
            scores = np.where(panel.scores[:, column[nearest]] < 1, panel.scores[:, k], np.nan)[:, None]
            if i != nearest and (asked := int((~np.isnan(scores)).sum())):
                ((score,),) = panel.intervals(scores, by_task=False)
                self.hard[i] = Hard(score, small[nearest], asked)


def _key(row: Row) -> tuple[str, str]:
    return row.model, str(row.setting)
