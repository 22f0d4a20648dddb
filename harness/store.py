"""The results folder: `<sweep>/<trial id>/{trial.yaml, samples.parquet, record.json}`, `<sweep>/images/*.webp`.

`record.json` is written last and atomically, so its presence means that the trial is done. A trial that failed has
`failure.json` instead. Needs no torch: reports are made from here.
"""

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import yaml

from harness.errors import VtbenchError
from harness.faults import in_one_line
from harness.reading import read_mapping

if TYPE_CHECKING:
    from harness.spec import Trial


class Result(NamedTuple):
    """What a trial leaves: record.json's content and samples.parquet's, and the files of pictures by their ids."""

    record: dict[str, Any]
    samples: pd.DataFrame | None
    pictures: dict[str, bytes] | None = None


class Store:
    """One sweep's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shown = str(folder)  # as messages name it

    def done(self, trial_id: str) -> bool:
        """Whether the trial has its record."""
        return (self.folder / trial_id / "record.json").exists()

    def write(self, trial: "Trial", result: Result) -> None:
        """Write a finished trial, its record last. Errors: ValueError for NaN in the record, OSError."""
        folder, samples = self._begin(trial), result.samples
        if samples is not None:
            write_atomically(folder / "samples.parquet", lambda path: samples.to_parquet(path, index=False))
        self._show(result.pictures or {})
        write_json(folder / "record.json", result.record)
        (folder / "failure.json").unlink(missing_ok=True)

    def fail(self, trial: "Trial", error: str, traceback: str) -> None:
        """Note why a trial failed, until it succeeds."""
        failure = {
            "error": in_one_line(error),
            "traceback": traceback.encode("utf-8", "backslashreplace").decode(),  # of a path, say, that is no text
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(self._begin(trial) / "failure.json", failure)

    def failure(self, trial_id: str) -> str | None:
        """Return why the trial failed, None if it did not or has its record by now."""
        path = self.folder / trial_id / "failure.json"
        if self.done(trial_id) or not path.exists():
            return None
        failure = read_json(path)
        return str(failure["error"]) if failure and "error" in failure else f"{path} cannot be read"

    def tidy(self) -> None:
        """Remove what killed runs were writing. Only for who has claimed the folder."""
        for suffix in ("json", "parquet", "yaml", "webp"):
            for path in [*self.folder.glob(f".*.{suffix}.*"), *self.folder.glob(f"*/.*.{suffix}.*")]:
                path.unlink(missing_ok=True)

    def _show(self, pictures: dict[str, bytes]) -> None:
        """Write the pictures that are not there: the trials of a sweep share them."""
        folder = self.folder / "images"
        new = {name: file for name, file in pictures.items() if not (folder / f"{name}.webp").exists()}
        if new:
            folder.mkdir(parents=True, exist_ok=True)
        for name, file in new.items():
            write_atomically(folder / f"{name}.webp", partial(Path.write_bytes, data=file))

    def _begin(self, trial: "Trial") -> Path:
        folder = self.folder / trial.id
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _to_disk(folder.parent)
        text = yaml.safe_dump(trial.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_atomically(folder / "trial.yaml", lambda path: path.write_text(text, encoding="utf-8"))
        return folder

    def describe(self, shown: dict[str, Any]) -> None:
        """Leave what the report shows of the sweep besides its trials."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "sweep.json", shown)

    def begun(self) -> bool:
        """Whether a trial has been stored, as done or failed."""
        return any(self.folder.glob("*/trial.yaml"))

    def record(self, trial_id: str) -> dict[str, Any] | None:
        """Return a trial's record, None where it has none that can be read and is its own."""
        record = read_json(self.folder / trial_id / "record.json")
        return record if record and record.get("id") == trial_id else None

    def unreadable(self, trial_id: str) -> bool:
        """Whether the trial has a record that is damaged."""
        return self.done(trial_id) and self.record(trial_id) is None

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all finished trials, by id, without those that cannot be read."""
        found = (self.record(path.parent.name) for path in sorted(self.folder.glob("*/record.json")))
        return [record for record in found if record is not None]

    def samples(self, trial_id: str) -> pd.DataFrame | None:
        """Return a finished trial's samples, None where it has none."""
        path = self.folder / trial_id / "samples.parquet"
        return pd.read_parquet(path) if path.exists() else None

    def failures(self) -> list[dict[str, Any]]:
        """Return {"id", "trial", "failure": {"error", "traceback", "when"}} of all failed trials, by id.

        Those that cannot be read are left out.
        """
        found = []
        for path in sorted(self.folder.glob("*/failure.json")):
            failure = None if self.done(path.parent.name) else read_json(path)
            if failure is not None:
                with suppress(VtbenchError):
                    trial = read_mapping(path.parent / "trial.yaml")
                    found.append({"id": path.parent.name, "trial": trial, "failure": failure})
        return found

    def gather(self) -> Path:
        """Write `trials.parquet` and return its path.

        One row a trial that can be read, with its "status", done or failed; nested keys are joined by dots, lists are
        JSON.
        """
        rows = [{"status": "done", **record} for record in self.records()]
        rows += [{"status": "failed", **failure} for failure in self.failures()]
        table = pd.json_normalize(rows)
        for column in [name for name in table if table[name].dtype == object]:
            kinds = {type(value) for value in table[column] if value is not None and value == value}
            if list in kinds:
                table[column] = table[column].map(lambda value: json.dumps(value) if isinstance(value, list) else None)
            elif len(kinds) > 1:
                table[column] = table[column].map(str, na_action="ignore")
        path = self.folder / "trials.parquet"
        write_atomically(path, lambda partial: table.to_parquet(partial, index=False))
        return path


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's mapping, None where there is none that can be read."""
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else "null"  # a pipe would be waited for
        found = json.loads(text)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. Errors: ValueError for NaN and infinities, which JSON has not."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, lambda partial: partial.write_text(text + "\n", encoding="utf-8"))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have a temporary file written beside the path, flush it to disk, rename it into place and flush the folder."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    partial = Path(name)
    try:
        write(partial)
        _to_disk(partial)
        partial.chmod(0o644)  # mkstemp's files are the owner's alone
        partial.replace(path)
        _to_disk(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _to_disk(path: Path) -> None:
    """Flush a file's content, or a folder's names, so that a power cut keeps them."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
