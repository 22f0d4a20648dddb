"""Reads a sweep's folder into rows: one a configuration, the tasks of its trials side by side."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from harness.errors import VtbenchError
from harness.report.checked import BESIDE, Failure, UnreadableError, read_trial

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
    def alone(self) -> bool:
        """Whether its times were taken with the device to itself, as far as its trials could tell."""
        return all(dig(record, "latency", "exclusive") is not False for record in self.records)

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


def rank(value: object) -> tuple[bool, float, str]:
    """Return a value's place among others: numbers by size, then words and nothing."""
    return (False, float(value), "") if isinstance(value, int | float) else (True, 0.0, str(value))


class State(NamedTuple):
    """How many trials a sweep asks for, done, failed and not run; others: done and not asked for."""

    asked: int
    done: int
    failed: int
    not_run: int
    others: int


@dataclass(frozen=True, eq=False)  # so that what is derived from it can be kept
class Results:
    """All rows of a sweep, the trials that failed with their reasons, its folder, and what cannot be read in it."""

    name: str
    rows: list[Row]
    failures: list[tuple[dict[str, Any], str]]
    folder: Path = Path()
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    @cached_property
    def tasks(self) -> list[str]:
        """The leaf tasks, in the order of the records."""
        return list(dict.fromkeys(task for row in self.rows for task in row.scores))

    @cached_property
    def off_scale(self) -> set[str]:
        """The tasks with samples scored outside 0 to 1: nothing tells how much they would weigh in an average."""
        found: set[str] = set()
        for row in self.rows:
            if len(row.samples):
                score = row.samples["score"].to_numpy(float)
                found |= set(row.samples["task"][(score < 0) | (score > 1)])
        return found

    def scored(self, row: Row) -> pd.DataFrame:
        """Return the samples that count in a row's average."""
        found = row.samples.dropna(subset="score") if len(row.samples) else row.samples
        return found[~found["task"].isin(self.off_scale)] if self.off_scale and len(found) else found

    def state(self, asked: Collection[str]) -> State:
        """Return how far the sweep is. asked: ids of its trials; of an older run, which left none, those that ended.

        What ended and cannot be read is in none of the counts, for a run would not run it: `unreadable` names it.
        """
        done = {record["id"] for row in self.rows for record in row.records}
        failed = {trial.get("id", "") for trial, _ in self.failures}
        wanted = set(asked) or done | failed
        ended = len(wanted & done), len(wanted & failed)
        files = ("record.json", "failure.json")
        unreadable = [self.folder / name for name, _ in self.unreadable if name in wanted]
        spoilt = sum(any((trial / file).exists() for file in files) for trial in unreadable)
        return State(len(wanted), *ended, len(wanted) - sum(ended) - spoilt, len(done - wanted))

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
    done: list[tuple[dict[str, Any], pd.DataFrame]] = []
    failures: list[tuple[dict[str, Any], str]] = []
    unreadable: list[tuple[str, str]] = []
    if not folder.is_dir():
        others = sorted(path.parent.name for path in folder.parent.glob("*/sweep.json"))
        there = f"; there are {', '.join(others)}" if others else ""
        raise VtbenchError(f"{folder}: no results to report; run the sweep first{there}")
    for path in sorted(folder.iterdir()):
        if path.name in BESIDE or path.name.startswith(".") or (trials is not None and path.name not in trials):
            continue
        try:
            found = read_trial(path)
        except UnreadableError as error:
            unreadable.append((os.fsencode(path.name).decode(errors="replace"), str(error)))
        else:
            failures.append(found) if isinstance(found, Failure) else done.append(found)
    if not done and not failures:
        why = "; ".join(f"{name} {reason}" for name, reason in unreadable[:3])
        raise VtbenchError(f"{folder}: no results to report; {why or 'run the sweep first'}")
    rows: dict[str, Row] = {}
    asked: dict[str, list[pd.DataFrame]] = defaultdict(list)
    versions = _task_versions([record for record, _ in done])
    for (record, samples), version in zip(done, versions, strict=True):
        trial = record["trial"]
        setting = {key: trial.get(key) for key in SETTING}
        setting |= {"weights": (trial.get("content") or {}).get("model"), "task files": version}
        key = json.dumps([trial["model"], trial["method"], trial["parameters"], setting], sort_keys=True)
        row = rows.setdefault(key, Row(trial["model"], trial["method"], trial["parameters"], setting))
        row.records.append(record)
        asked[key].append(samples)
    for key, several in asked.items():
        together = several[0]
        if len(several) > 1 and len(together := pd.concat(several)):
            # a group and one of its tasks in the same sweep ask the same questions
            together = together.drop_duplicates(["task", "doc_id"])
        rows[key] = replace(rows[key], samples=together)
    order = _alike(list(rows.values()))
    order.sort(
        key=lambda row: (
            row.model,
            (row.method != "full") + row.adaptive,
            -(row.tokens or 0),
            row.method,
            [(key, rank(value)) for key, value in sorted(row.parameters.items())],
            row.setting["text_tokens"] or 0,
            str(row.setting),
        )
    )
    return Results(folder.resolve().name, order, failures, folder, unreadable)


def _alike(rows: list[Row]) -> list[Row]:
    """Give all rows of a method the same parameters: None for one that an older trial did not know."""
    known: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        known[row.method] |= dict.fromkeys(key for key in row.parameters if key != "tokens")
    return [
        replace(row, parameters=row.parameters | {k: None for k in known[row.method] if k not in row.parameters})
        for row in rows
    ]


def _task_versions(records: list[dict[str, Any]]) -> list[str | None]:
    """Return the fingerprint of each trial's task files; a task without files goes with the only version there is."""
    found = [(record["trial"].get("content") or {}).get("task") for record in records]
    known = {version for version in found if version}
    only = next(iter(known)) if len(known) == 1 else None
    return [version or only for version in found]
