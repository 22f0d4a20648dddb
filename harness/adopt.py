"""Takes over what another sweep's folder has done: the same id is the same trial, whatever its sweep is called."""

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import ArrowException

from harness.store import Result, Store

if TYPE_CHECKING:
    from harness.spec import Trial


def adopt(trials: Iterable["Trial"], store: Store) -> Counter[Path]:
    """Copy the trials that the store lacks from the folders beside its own; return how many came from which.

    What is damaged there or has no record is left. Nothing is beside the copy of a folder at a URL, so nothing is taken
    over there. Errors: OSError when nothing can be written here.
    """
    taken: Counter[Path] = Counter()
    missing = {trial.id: trial for trial in trials if not store.done(trial.id)}
    out = store.folder.parent
    for folder in sorted(out / name for name in _names(out) - {store.folder.name}) if missing else ():
        for trial_id in sorted(missing.keys() & _names(folder)):
            result = _whole(Store(folder), trial_id, without=_names(store.folder / "images"))
            if result is not None:
                with suppress(ValueError):  # no record of ours
                    store.write(missing[trial_id], result)
                    del missing[trial_id]
                    taken[folder] += 1
    return taken


def _whole(other: Store, trial_id: str, *, without: set[str]) -> Result | None:
    """Return what another sweep has of a trial, its pictures without those files, or None where it is not whole."""
    record = other.record(trial_id)
    if record is None:
        return None
    try:
        samples = other.samples(trial_id)
        if samples is None and record.get("scores"):
            return None
        shown = set() if samples is None or "pictures" not in samples else set(samples["pictures"].explode())
        files = {f"{name}.webp" for name in shown} & _names(other.folder / "images") - without
        pictures = {Path(name).stem: (other.folder / "images" / name).read_bytes() for name in files}
    except (ArrowException, ValueError, TypeError, OSError):
        return None
    return Result(record, samples, pictures)


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()
