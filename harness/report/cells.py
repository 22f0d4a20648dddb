"""Every number of a report with its interval, unit and trials: what tables print and `reports/<sweep>.json` holds."""

import json
from collections.abc import Collection
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from harness.report.compared import LEVEL, Compared, Hard
from harness.report.results import SETTING, Results, dig
from harness.report.statistics import Difference, Interval

BOOTSTRAP = "95 % bootstrap interval over images"
QUARTILES = "quartiles"
SCHEMA = 1


class Cell(NamedTuple):
    """A number in its column's unit, not rounded, and what is behind it.

    low, high: the column's range, None where there is none. samples: scored samples or timed repeats, None for what is
    counted. trials: ids.
    """

    value: float
    low: float | None
    high: float | None
    samples: int | None
    trials: list[str]


class Column(NamedTuple):
    """A quantity by row, without the rows of which it was not measured. digits: behind the point, as it is printed."""

    unit: str
    digits: int
    cells: dict[int, Cell]
    range: str | None = None
    metric: str | None = None  # a task's own

    def written(self, row: int) -> str | None:
        """Return a row's number as it is printed."""
        return self._round(self.cells[row].value) if row in self.cells else None

    def spread(self, row: int) -> str:
        """Return a row's range as it is printed, empty where it has none."""
        _, low, high, *_ = self.cells.get(row, Cell(0, None, None, None, []))
        return "" if low is None or high is None else f"{self._round(low)}–{self._round(high)}"

    def _round(self, value: float) -> str:
        return f"{_rounded(value):z.{self.digits}f}".replace("-", "−")


def points(mean: float, low: float, high: float, *, signed: bool = False) -> str:
    """Return a score of 0 to 1, or signed a difference, in points as printed, with its interval if it has one."""
    mean, low, high = (_rounded(100 * value) for value in (mean, low, high))
    form, between = ("+z.1f", " to ") if signed else ("z.1f", "–")
    spread = "" if low != low or high != high else f" ({low:{form}}{between}{high:{form}})"
    return f"{mean:{form}}{spread}".replace("-", "−")


@lru_cache(maxsize=1)
def columns(results: Results, compared: Compared, convention: str) -> dict[str, Column]:
    """Return what was measured, by name.

    score/<task> is the task's own metric, with the interval of the samples' mean score where that is the same; where it
    is not (F1, say, or a sum), mean/<task> is that mean. average, retention, flops, flops_change (against the full
    model), prefill, vision, pruner, decode, kv, peak, reserved, tokens_into_llm, tokens_mean.
    """
    found: dict[str, Column] = {}
    for task in results.tasks:
        found |= _scores(results, compared, task)
    ids = {i: [record["id"] for record in results.rows[i].records if record["scores"]] for i in compared.average}
    found["average"] = Column(
        "%",
        1,
        {i: _scored(mean, len(compared.scored[i]), ids[i]) for i, mean in compared.average.items()},
        BOOTSTRAP,
    )
    rates = {i: Cell(100 * rate, None, None, len(compared.scored[i]), ids[i]) for i, rate in compared.retention.items()}
    found["retention"] = Column("%", 1, rates)
    unit, divisor = flops_unit(results, convention)
    found["flops"] = Column(unit, 3, _measured(results, "flops", "total", convention, divisor=divisor))
    found["flops_change"] = Column("%", 1, _changes(results, compared, found["flops"].cells, convention))
    for name in ("prefill", "vision", "pruner", "decode"):
        cells = _measured(results, "latency", f"{name}_ms", "median", bounds=("q25", "q75"))
        found[name] = Column("ms", 1, cells, QUARTILES)
    found["kv"] = Column("MB", 3, _measured(results, "memory", "kv_visual_bytes", divisor=1e6))
    for name in ("peak", "reserved"):
        found[name] = Column("GB", 2, _measured(results, "memory", f"{name}_bytes", divisor=1e9))
    for name, key in (("tokens_into_llm", "into_llm"), ("tokens_mean", "mean_llm")):
        found[name] = Column("tokens", 0, _measured(results, "tokens", key))
    return {name: column for name, column in found.items() if column.cells}


def flops_unit(results: Results, convention: str) -> tuple[str, float]:
    """Return TFLOPs, or GFLOPs where the largest is below 0.1 TFLOPs, and what to divide by."""
    largest = max((row.mean("flops", "total", convention) or 0.0 for row in results.rows), default=0.0)
    return ("TFLOPs", 1e12) if largest >= 1e11 else ("GFLOPs", 1e9)


def _scores(results: Results, compared: Compared, task: str) -> dict[str, Column]:
    values = {i: value for i, row in enumerate(results.rows) if (value := row.scores.get(task)) is not None}
    scale = 1 if any(value > 1 for value in values.values()) else 100
    means = {i: scores[task] for i, scores in compared.scores.items() if task in scores}
    own, plain = {}, {}
    for i in values.keys() | means.keys():
        row = results.rows[i]
        ids = [record["id"] for record in row.records if task in (record["scores"] or {})]
        samples = compared.asked[i][task] if i in means else None
        if i in means:
            plain[i] = _scored(means[i], samples, ids)
        if i in values:
            same = i in means and np.isclose(scale * values[i], plain[i].value)
            own[i] = Cell(scale * values[i], *(plain[i][1:3] if same else (None, None)), samples, ids)
    metric = next((name for row in results.rows if (name := row.metrics.get(task))), None)
    found = {f"score/{task}": Column("%" if scale == 100 else "points", 1, own, BOOTSTRAP, metric)}
    if any(i not in own or not np.isclose(own[i].value, cell.value) for i, cell in plain.items()):
        found[f"mean/{task}"] = Column("%", 1, plain, BOOTSTRAP)
    return found


def _scored(found: Interval, samples: int | None, ids: list[str]) -> Cell:
    mean, low, high = (None if value != value else 100 * value for value in found)
    return Cell(mean or 0.0, low, high, samples, ids)


def _measured(results: Results, *keys: str, divisor: float = 1, bounds: tuple[str, ...] = ()) -> dict[int, Cell]:
    """Return the means over each row's trials of one number of their records; bounds: the names of two beside it."""
    found = {}
    for i, row in enumerate(results.rows):
        value = row.mean(*keys)
        if value is None:
            continue
        ids = [record["id"] for record in row.records if dig(record, *keys) is not None]
        beside = [row.mean(*keys[:-1], bound) for bound in bounds] or [None, None]
        low, high = (None if bound is None else bound / divisor for bound in beside)
        repeats = [len(raw) for record in row.records if bounds and (raw := dig(record, *keys[:-1], "raw"))]
        found[i] = Cell(value / divisor, low, high, sum(repeats) or None, ids)
    return found


def _changes(results: Results, compared: Compared, costs: dict[int, Cell], convention: str) -> dict[int, Cell]:
    found = {}
    for i, cost in costs.items():
        full = compared.full[i]
        whole = full.mean("flops", "total", convention) if full and full is not results.rows[i] else None
        if full and whole:
            own = results.rows[i].mean("flops", "total", convention) or 0.0
            ids = [record["id"] for record in full.records if dig(record, "flops", "total", convention) is not None]
            found[i] = Cell(100 * (own / whole - 1), None, None, None, [*cost.trials, *ids])
    return found


def document(results: Results, compared: Compared, convention: str, asked: Collection[str]) -> str:
    """Return the report's numbers as JSON, one row, trial and column a line.

    - `schema`, `sweep`, `convention`; `level`: of Holm's correction, over `comparisons` of them; `state`: trials asked
      for, done, failed, not_run, others (done in an earlier run).
    - `columns`, by name as in `columns`: unit, digits that the markdown prints, what a cell's range is, the metric.
    - `rows`, in the report's order: `row` (its number), model, method, parameters, setting (what else its numbers
      depend on), budget, `lacks` (tasks that other rows have), `cells` by column: value (in the unit, not rounded),
      low, high, samples, trials. A cell that is not there was not measured.
      `full` and `best`: the paired difference from the full model and from the best row of its budget: `of` (that
      row's number), difference, low, high in points; p, `corrected` p, `distinguishable`; lost, gained (samples);
      `detectable` (points, at the strictest level of the correction). `by_task`: p of no difference from the full model
      in each task, `corrected` over all rows and tasks, `distinguishable`. `hard`: the score on so many
      samples that an image made smaller, to so many tokens, gets wrong.
    - `trials`: by id: what ran, and its provenance: versions, device, commit, seed, protocol, start, seconds; of its
      times the `clock` and whether the device was it alone (`exclusive`).
    - `failed`: trials that failed, with the reason; `unreadable`: what else lies in the folder, by name, and why.
    Numbers have 12 significant digits. asked: ids of the sweep's trials.
    """
    measured = columns(results, compared, convention)
    rows = {id(row): i for i, row in enumerate(results.rows)}
    full = {i: rows[id(row)] for i, row in compared.full.items() if row is not None}
    records = [record for row in results.rows for record in row.records]
    return _lines(
        {
            "schema": SCHEMA,
            "sweep": results.name,
            "convention": convention,
            "level": LEVEL,
            "comparisons": len(compared.difference) + len(compared.from_best),
            "state": results.state(asked)._asdict(),
            "columns": {
                name: {key: value for key, value in column._asdict().items() if key != "cells" and value is not None}
                for name, column in measured.items()
            },
            "rows": [
                {
                    "row": i,
                    "model": row.model,
                    "method": row.method,
                    "parameters": row.parameters,
                    "setting": row.setting,
                    "budget": row.budget,
                    "lacks": results.lacks(row),
                    "cells": {
                        name: column.cells[i]._asdict() for name, column in measured.items() if i in column.cells
                    },
                    "full": _difference(
                        compared.difference.get(i), full.get(i), compared.corrected.get(i), compared.least.get(i)
                    ),
                    "best": _difference(
                        compared.from_best.get(i),
                        compared.best.get(i),
                        compared.corrected_best.get(i),
                        compared.least_best.get(i),
                    ),
                    "by_task": {
                        task: {"p": p, "corrected": corrected, "distinguishable": corrected <= LEVEL}
                        for task, p in compared.by_task.get(i, {}).items()
                        for corrected in [compared.corrected_by_task[i, task]]
                    },
                    "hard": _hard(compared.hard.get(i)),
                }
                for i, row in enumerate(results.rows)
            ],
            "trials": {record["id"]: _provenance(record, convention) for record in records},
            "failed": [{"trial": trial, "error": error} for trial, error in results.failures],
            "unreadable": dict(results.unreadable),
        }
    )


def _hard(found: Hard | None) -> dict[str, Any] | None:
    if found is None:
        return None
    mean, low, high = (None if value != value else 100 * value for value in found.score)
    return {"score": mean, "low": low, "high": high, "tokens": found.tokens, "samples": found.samples}


def _difference(
    found: Difference | None, other: int | None, corrected: float | None, least: float | None
) -> dict[str, Any] | None:
    if found is None:
        return None
    mean, low, high = (None if value != value else 100 * value for value in found[:3])
    return {
        "of": other,
        "difference": mean,
        "low": low,
        "high": high,
        "p": found.p,
        "corrected": corrected,
        "distinguishable": corrected is not None and corrected <= LEVEL,
        "lost": found.lost,
        "gained": found.gained,
        "detectable": None if least is None else 100 * least,
    }


def _provenance(record: dict[str, Any], convention: str) -> dict[str, Any]:
    trial = record["trial"]
    ran = {key: trial.get(key) for key in ("model", "task", "text_tokens", "method", "parameters", *SETTING, "content")}
    counted = (
        {"convention": convention, "tokens_basis": dig(record, "flops", "tokens_basis")} if record["flops"] else {}
    )
    timed = {key: record["latency"].get(key) for key in ("clock", "exclusive")} if record["latency"] else {}
    return ran | counted | timed | record["provenance"]


def _lines(document: dict[str, Any]) -> str:
    """Return JSON with every entry of its lists and objects in one line, so that it can be compared and searched."""

    def line(value: Any) -> str:
        return json.dumps(_rounded(value), ensure_ascii=False, allow_nan=False)

    def block(value: Any) -> str:
        if isinstance(value, dict) and value:
            return "{\n" + ",\n".join(f"  {line(str(key))}: {line(each)}" for key, each in value.items()) + "\n }"
        if isinstance(value, list) and value:
            return "[\n" + ",\n".join(f"  {line(each)}" for each in value) + "\n ]"
        return line(value)

    return "{\n" + ",\n".join(f" {line(key)}: {block(value)}" for key, value in document.items()) + "\n}\n"


def _rounded(value: Any) -> Any:
    """Leave out what differs from one processor to another."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
