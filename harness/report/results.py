"""Reads a sweep's folder into rows: one a configuration, the tasks of its trials side by side."""

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from harness.errors import VtbenchError

# Rows that differ in one of these answered other questions or with another model: they are never merged or compared.
SETTING = ("text_tokens", "seed", "dtype", "attention", "compile", "limit", "batch_size", "text_encoder", "protocol")


@dataclass(frozen=True)
class Row:
    """One configuration of the sweep: a model with a method and its parameters, over all tasks of the sweep."""

    model: str
    method: str
    parameters: dict[str, Any]
    setting: dict[str, Any]  # what else its numbers depend on: SETTING and the fingerprints of weights and task files
    records: list[dict[str, Any]] = field(default_factory=list)
    samples: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def tokens(self) -> int | None:
        """The nominal budget, None for the full model and a method that adapts to each image."""
        return self.parameters.get("tokens")

    @property
    def adaptive(self) -> bool:
        """Whether the method has a budget and was given none."""
        return "tokens" in self.parameters and self.tokens is None

    @property
    def budget(self) -> str:
        """The nominal budget in words."""
        if self.tokens is not None:
            return f"{self.tokens} tokens"
        return "adaptive" if self.adaptive else "all tokens" if self.method == "full" else "the method's own schedule"

    @property
    def scores(self) -> dict[str, float | None]:
        """The main metric of every leaf task, on lmms-eval's own scale."""
        return {
            task: next((value for metric, value in metrics.items() if metric != "n"), None)
            for record in self.records
            for task, metrics in (record["scores"] or {}).items()
        }

    @property
    def metrics(self) -> dict[str, str]:
        """The main metric's name of every leaf task."""
        found = [scores for record in self.records for scores in (record["scores"] or {}).items()]
        return {task: name for task, metrics in found if (name := next((m for m in metrics if m != "n"), None))}

    def mean(self, *keys: str) -> float | None:
        """The mean over the row's trials of one number of their records; None where none has it."""
        values = [value for record in self.records if (value := dig(record, *keys)) is not None]
        return sum(values) / len(values) if values else None


def dig(value: Any, *keys: str) -> Any:
    """Return what stands at these keys of nested mappings, None where there is nothing."""
    for key in keys:
        if not isinstance(value, dict) or value.get(key) is None:
            return None
        value = value[key]
    return value


@dataclass(frozen=True, eq=False)  # so that what is derived from it can be kept
class Results:
    """All rows of a sweep, the trials that failed with their reasons, and the sweep's folder."""

    name: str
    rows: list[Row]
    failures: list[tuple[dict[str, Any], str]]
    folder: Path = Path()

    @cached_property
    def tasks(self) -> list[str]:
        """The leaf tasks, in the order of the records."""
        return list(dict.fromkeys(task for row in self.rows for task in row.scores))

    def lacks(self, row: Row) -> list[str]:
        """Return the tasks that have a score elsewhere and none in this row."""
        scores = row.scores
        return [task for task in self.tasks if scores.get(task) is None]

    @property
    def asked(self) -> bool:
        """Whether its prompts were of so many text tokens instead of a task's."""
        return any(row.setting["text_tokens"] for row in self.rows)

    def asks(self, measure: str) -> bool:
        """Whether the sweep wanted this measured of anything."""
        return any(measure in record["trial"].get("measure", [measure]) for row in self.rows for record in row.records)

    @cached_property
    def differing(self) -> list[str]:
        """The settings that take several values for one model."""
        models = {row.model for row in self.rows}
        found = {(row.model, key, str(value)) for row in self.rows for key, value in row.setting.items()}
        taken = Counter((model, key) for model, key, _ in found)
        return [key for key in self.rows[0].setting if max(taken[model, key] for model in models) > 1]


def read(folder: Path, trials: Collection[str] | None = None) -> Results:
    """Read what is done of a sweep, or of these trials of it. Errors: VtbenchError when nothing is."""
    rows: dict[str, Row] = {}
    done = []
    failures = []
    for trial_folder in sorted(path for path in folder.glob("*") if (path / "trial.yaml").exists()):
        if trials is not None and trial_folder.name not in trials:
            continue
        record_path = trial_folder / "record.json"
        if record_path.exists():
            record = json.loads(record_path.read_text(encoding="utf-8"))
            samples_path = trial_folder / "samples.parquet"
            samples = pd.read_parquet(samples_path) if samples_path.exists() else pd.DataFrame()
            done.append((record, samples))
        elif (trial_folder / "failure.json").exists():
            trial = yaml.safe_load((trial_folder / "trial.yaml").read_text(encoding="utf-8"))
            failure = json.loads((trial_folder / "failure.json").read_text(encoding="utf-8"))
            failures.append((trial, failure["error"]))
    if not done and not failures:
        raise VtbenchError(f"{folder}: no results to report; run the sweep first")
    versions = _task_versions([record for record, _ in done])
    for (record, samples), version in zip(done, versions, strict=True):
        trial = record["trial"]
        setting = {key: trial.get(key) for key in SETTING}
        setting |= {"weights": (trial.get("content") or {}).get("model"), "task files": version}
        key = json.dumps([trial["model"], trial["method"], trial["parameters"], setting], sort_keys=True)
        row = rows.setdefault(key, Row(trial["model"], trial["method"], trial["parameters"], setting))
        row.records.append(record)
        together = pd.concat([row.samples, samples])
        if len(together):  # a group and one of its tasks in the same sweep ask the same questions
            together = together.drop_duplicates(["task", "doc_id"])
        rows[key] = replace(row, samples=together)
    order = list(rows.values())
    order.sort(
        key=lambda row: (
            row.model,
            (row.method != "full") + row.adaptive,
            -(row.tokens or 0),
            row.method,
            str(row.parameters),
            row.setting["text_tokens"] or 0,
            str(row.setting),
        )
    )
    return Results(folder.resolve().name, order, failures, folder)


def _task_versions(records: list[dict[str, Any]]) -> list[str | None]:
    """Return the fingerprint of each trial's task files; a task without files goes with the only version there is."""
    found = [(record["trial"].get("content") or {}).get("task") for record in records]
    known = {version for version in found if version}
    only = next(iter(known)) if len(known) == 1 else None
    return [version or only for version in found]
