"""Reads a sweep's folder into rows: one a configuration, the tasks of its trials side by side."""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from harness.errors import VtbenchError


@dataclass(frozen=True)
class Row:
    """One configuration of the sweep: a model with a method and its parameters, over all tasks of the sweep."""

    model: str
    method: str
    parameters: dict[str, Any]
    setting: dict[str, Any]  # seed, dtype, attention, limit
    records: list[dict[str, Any]] = field(default_factory=list)
    samples: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def tokens(self) -> int | None:
        """The nominal budget, None for the full model."""
        return self.parameters.get("tokens")

    @property
    def scores(self) -> dict[str, float | None]:
        """The main metric of every leaf task, on lmms-eval's own scale."""
        return {
            task: next((value for metric, value in metrics.items() if metric != "n"), None)
            for record in self.records
            for task, metrics in (record["scores"] or {}).items()
        }

    def mean(self, *keys: str) -> float | None:
        """The mean over the row's trials of one number of their records; None where none has it."""
        values = [value for record in self.records if (value := _dig(record, keys)) is not None]
        return sum(values) / len(values) if values else None


def _dig(value: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        if not isinstance(value, dict) or value.get(key) is None:
            return None
        value = value[key]
    return value


@dataclass(frozen=True)
class Results:
    """All rows of a sweep, and the trials that failed with their reasons."""

    name: str
    rows: list[Row]
    failures: list[tuple[dict[str, Any], str]]

    @property
    def tasks(self) -> list[str]:
        """The leaf tasks, in the order of the records."""
        return list(dict.fromkeys(task for row in self.rows for task in row.scores))


def read(folder: Path, trials: Collection[str] | None = None) -> Results:
    """Read what is done of a sweep, or of these trials of it. Errors: VtbenchError when nothing is."""
    rows: dict[str, Row] = {}
    failures = []
    for trial_folder in sorted(path for path in folder.glob("*") if (path / "trial.yaml").exists()):
        if trials is not None and trial_folder.name not in trials:
            continue
        record_path = trial_folder / "record.json"
        if record_path.exists():
            record = json.loads(record_path.read_text(encoding="utf-8"))
            samples_path = trial_folder / "samples.parquet"
            samples = pd.read_parquet(samples_path) if samples_path.exists() else pd.DataFrame()
            trial = record["trial"]
            setting = {key: trial[key] for key in ("seed", "dtype", "attention", "limit")}
            key = json.dumps([trial["model"], trial["method"], trial["parameters"], setting], sort_keys=True)
            row = rows.setdefault(key, Row(trial["model"], trial["method"], trial["parameters"], setting))
            row.records.append(record)
            rows[key] = Row(
                row.model, row.method, row.parameters, row.setting, row.records, pd.concat([row.samples, samples])
            )
        elif (trial_folder / "failure.json").exists():
            trial = yaml.safe_load((trial_folder / "trial.yaml").read_text(encoding="utf-8"))
            failure = json.loads((trial_folder / "failure.json").read_text(encoding="utf-8"))
            failures.append((trial, failure["error"]))
    if not rows and not failures:
        raise VtbenchError(f"{folder}: no results to report; run the sweep first")
    order = list(rows.values())
    order.sort(key=lambda row: (row.model, row.tokens is not None, -(row.tokens or 0), row.method, str(row.parameters)))
    return Results(folder.name, order, failures)
