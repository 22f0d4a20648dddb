"""Reads one trial of a results folder, or says in a line what is wrong with it: others may have written there."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pyarrow import ArrowException
from pydantic import BaseModel, Field, ValidationError

from harness.errors import VtbenchError
from harness.reading import read_mapping

# What lies in a sweep's folder beside its trials.
BESIDE = ("sweep.json", "trials.parquet", "wandb", "images")
COLUMNS = ["task", "doc_id", "image_id", "score"]


class UnreadableError(Exception):
    """Why a trial cannot be reported."""


class Failure(NamedTuple):
    """A trial that failed, with its id, and why."""

    trial: dict[str, Any]
    error: str


class _Parameters(BaseModel):
    tokens: int | None = None


class _Trial(BaseModel):
    method: str
    parameters: _Parameters
    task: str | None = None
    text_tokens: int | None = None


class _Ran(_Trial):
    model: str
    limit: int | None
    content: dict[str, str | None] | None = None
    measure: list[str] = []


class _Tokens(BaseModel):
    into_llm: float | None = None
    mean_llm: float | None = None


class _Flops(BaseModel):
    total: dict[str, float | None] = {}
    parts: dict[str, dict[str, float | None]] = {}


class _Times(BaseModel):
    median: float | None = None
    q25: float | None = None
    q75: float | None = None
    raw: list[float] = []


class _Latency(BaseModel):
    clock: str
    prefill_ms: _Times | None = None
    vision_ms: _Times | None = None
    pruner_ms: _Times | None = None
    decode_ms: _Times | None = None


class _Memory(BaseModel):
    kv_visual_bytes: float | None = None
    peak_bytes: float | None = None
    reserved_bytes: float | None = None
    peak_kind: str | None = None


class _Provenance(BaseModel):
    started: str


class _Record(BaseModel):
    """What a report takes from a record."""

    version: Literal[1] = Field(1, alias="schema")
    id: str
    trial: _Ran
    scores: dict[str, dict[str, float | None]] | None
    tokens: _Tokens | None
    flops: _Flops | None
    latency: _Latency | None
    memory: _Memory | None
    provenance: _Provenance


def read_trial(folder: Path) -> tuple[dict[str, Any], pd.DataFrame] | Failure:
    """Return a trial's record and samples, or why it failed. Errors: UnreadableError."""
    if not folder.is_dir():
        raise UnreadableError("is no trial's folder")
    if not (folder / "trial.yaml").exists():
        raise UnreadableError("has no trial.yaml, so that it is no trial's folder")
    if (folder / "record.json").exists():
        record = _json(folder / "record.json")
        _check(_Record, record, "record.json")
        if record["id"] != folder.name:
            raise UnreadableError(f"record.json is of trial {record['id']!r}")
        return record, _samples(folder / "samples.parquet", record)
    if (folder / "failure.json").exists():
        failure = _json(folder / "failure.json")
        try:
            trial = read_mapping(folder / "trial.yaml")
        except VtbenchError:
            raise UnreadableError("trial.yaml cannot be read") from None
        _check(_Trial, trial, "trial.yaml")
        if not isinstance(failure, dict) or not isinstance(failure.get("error"), str):
            raise UnreadableError("failure.json has no error")
        return Failure({"id": folder.name, **trial}, failure["error"])
    raise UnreadableError("has neither record.json nor failure.json: it is not finished")


def _json(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not possible")

    try:
        found = json.loads(path.read_bytes().decode("utf-8"), parse_constant=refuse)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no text
        return found
    except (ValueError, OSError, RecursionError) as error:
        raise UnreadableError(f"{path.name} cannot be read: {_line(error)}") from None


def _check(model: type[BaseModel], value: Any, name: str) -> None:
    try:
        model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise UnreadableError(f"{name}: {'.'.join(map(str, first['loc'])) or 'it'}: {_line(first['msg'])}") from None


def _samples(path: Path, record: dict[str, Any]) -> pd.DataFrame:
    if not path.exists():
        if record["scores"]:
            raise UnreadableError("has scores and no samples.parquet")
        return pd.DataFrame()
    try:
        samples = pd.read_parquet(
            path, use_threads=False, pre_buffer=False
        )  # of a small file threads are most of the time
    except (ArrowException, ValueError, OSError) as error:
        raise UnreadableError(f"samples.parquet cannot be read: {_line(error)}") from None
    if not len(samples.columns) and not record["scores"]:
        return samples
    lacking = [column for column in COLUMNS if column not in samples]
    if lacking:
        raise UnreadableError(f"samples.parquet has no {', '.join(lacking)}")
    try:
        samples["score"] = samples["score"].astype(float)
    except (ValueError, TypeError):
        raise UnreadableError("samples.parquet has a score that is no number") from None
    if np.isinf(samples["score"]).any():
        raise UnreadableError("samples.parquet has an infinite score")
    if len(set(zip(samples["task"], samples["doc_id"], strict=True))) < len(samples):
        raise UnreadableError("samples.parquet has a question twice")
    return samples


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]
