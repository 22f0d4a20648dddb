"""Reads one trial of a results folder, or says in a line what is wrong with it: others may have written there."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype, is_string_dtype
from pyarrow import ArrowException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import VtbenchError
from harness.reading import LARGEST_NUMBER, LARGEST_RECORD, plain, read_mapping

# What lies in a sweep's folder beside its trials.
LARGEST_SAMPLES = 2**32  # bytes
BESIDE = ("sweep.json", "trials.parquet", "wandb", "images")
KEYS = ["task", "doc_id", "image_id"]
COLUMNS = [*KEYS, "score"]

Amount = Annotated[float, Field(ge=0)]


class UnreadableError(Exception):
    """Why a trial cannot be reported."""


class Failure(NamedTuple):
    """A trial that failed, with its id, and why."""

    trial: dict[str, Any]
    error: str


class _Part(BaseModel):
    """Of JSON's own types, for the report takes a record as it is in the file."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Parameters(_Part):
    tokens: Annotated[int, Field(ge=1, le=LARGEST_NUMBER)] | None = None


class _Trial(_Part):
    method: str
    parameters: _Parameters
    task: str | None = None
    text_tokens: int | None = None


class _Ran(_Trial):
    model: str
    limit: int | None
    content: dict[str, str | None] | None = None
    measure: list[str] = []


class _Tokens(_Part):
    patches: Annotated[int, Field(ge=0, le=10**6)] | None = None
    into_llm: Amount | None = None
    mean_llm: Amount | None = None
    vit: list[Amount] | None = None
    llm: Annotated[list[Amount], Field(min_length=1)] | None = None


class _Flops(_Part):
    total: dict[str, float | None] = {}
    parts: dict[str, dict[str, float | None]] = {}


class _Times(_Part):
    median: float | None = None
    q25: float | None = None
    q75: float | None = None
    raw: list[float] = []


class _Latency(_Part):
    clock: str
    exclusive: bool | None = None
    prefill_ms: _Times | None = None
    vision_ms: _Times | None = None
    pruner_ms: _Times | None = None
    decode_ms: _Times | None = None


class _Memory(_Part):
    kv_visual_bytes: float | None = None
    peak_bytes: float | None = None
    reserved_bytes: float | None = None
    peak_kind: str | None = None


class _Provenance(_Part):
    started: str


class _Record(_Part):
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
            _written(trial)
        except (VtbenchError, TypeError, ValueError):
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
        found = json.loads(plain(path, LARGEST_RECORD).read_bytes().decode("utf-8"), parse_constant=refuse)
        _written(found)
        return found
    except (ValueError, OSError, RecursionError, VtbenchError) as error:
        raise UnreadableError(f"{path.name} cannot be read: {_line(error)}") from None


def _written(value: Any) -> bytes:
    """Return it as the report's JSON has it; ValueError for half a surrogate pair, which is no text, and 1e999."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


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
            plain(path, LARGEST_SAMPLES), use_threads=False, pre_buffer=False
        )  # of a small file threads are most of the time
    except (ArrowException, ValueError, OSError, VtbenchError) as error:
        raise UnreadableError(f"samples.parquet cannot be read: {_line(error)}") from None
    if not len(samples.columns) and not record["scores"]:
        return samples
    lacking = [column for column in COLUMNS if column not in samples]
    if lacking:
        raise UnreadableError(f"samples.parquet has no {', '.join(lacking)}")
    for column in KEYS:
        if samples[column].isna().any():
            raise UnreadableError(f"samples.parquet has a question without {column}")
        if not (is_string_dtype(samples[column]) or (column != "task" and is_numeric_dtype(samples[column]))):
            kind = "text" if column == "task" else "text or number"
            raise UnreadableError(f"samples.parquet has a {column} that is no {kind}")
    for column, (is_kind, kind) in OTHERS.items():
        values = samples[column].tolist() if column in samples else []
        if not all(is_kind(value) or pd.isna(value) is True for value in values):
            raise UnreadableError(f"samples.parquet has under {column} what is no {kind}")
    try:
        samples["score"] = samples["score"].astype(float)
    except (ValueError, TypeError):
        raise UnreadableError("samples.parquet has a score that is no number") from None
    if np.isinf(samples["score"]).any():
        raise UnreadableError("samples.parquet has an infinite score")
    if len(set(zip(samples["task"], samples["doc_id"], strict=True))) < len(samples):
        raise UnreadableError("samples.parquet has a question twice")
    return samples


def _is_texts(value: Any) -> bool:
    return isinstance(value, np.ndarray) and all(isinstance(each, str) for each in value)


def _is_patches(value: Any) -> bool:
    """Whether it is a list of integers a picture; one that holds nothing has no type."""
    return isinstance(value, np.ndarray) and all(
        isinstance(each, np.ndarray) and (each.dtype.kind in "iu" or not len(each)) for each in value
    )


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


# What else a report takes of a sample, where there is a value; older trials have none of them.
OTHERS = {
    "pictures": (_is_texts, "list of texts"),
    "words": (_is_texts, "list of texts"),
    "kept": (_is_patches, "list of lists of integers"),
    "merged": (_is_truth, "truth value"),
}


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]
