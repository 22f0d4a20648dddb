"""What `vtbench run` does with a sweep: from its file to its report, with a summary and an exit code."""

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from harness.errors import VtbenchError
from harness.faults import in_one_line

if TYPE_CHECKING:
    from harness.claim import Claim
    from harness.remote_claim import RemoteClaim
    from harness.spec import Sweep
    from harness.store import Result, Store


def run_sweep(sweep: "Sweep", store: "Store", address: str, reports: Path, *, retry_failed: bool) -> None:
    """Check the sweep, then run what is missing and write its report. Errors: typer.Exit with the exit code."""
    from harness.check import check
    from harness.fresh import check_place, fresh_report
    from harness.remote_claim import claimed

    ids = [trial.id for trial in sweep.trials()]
    shown = sweep.axes.shown.model_dump(mode="json") | {"trials": ids}
    if not (finished := all(map(store.done, ids))):
        check(sweep)
    check_place(store.folder, reports)
    left = fresh_report(store.folder, shown, reports) if finished else None
    if left and not any(map(store.unreadable, ids)):
        print(f"{sweep.name}: {len(ids)} trials, 0 done now, {len(ids)} before, 0 failed")
        print(f"report: {left}")
        return
    try:
        with nothing_empty_left(store.folder), claimed(store) as claim:
            store.tidy()
            take_over(sweep, store)
            try:
                failed = run_trials(sweep, store, address, claim, shown, retry_failed=retry_failed)
            finally:
                if claim.held and store.begun():
                    with suppress(Exception):  # derived of the records, and the report tells of each that is damaged
                        store.describe(shown)
                        store.gather()
            written = write_report(sweep, store.folder, reports)
            print(f"report: {written}")
            from harness import track

            track.log_report(written, sweep=sweep.name, directory=store.folder)
    except KeyboardInterrupt:
        print("vtbench: stopped; the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    except OSError as error:
        print(f"vtbench: {cannot_write(store.shown, error)}", file=sys.stderr)
        raise typer.Exit(1) from None
    if failed:
        raise typer.Exit(1)


@contextmanager
def nothing_empty_left(folder: Path) -> Iterator[None]:
    """Remove what has come of a folder, and of those above it, if it is still empty when the context ends."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield
    finally:
        with suppress(OSError):  # one that is not empty ends it
            for each in new:
                each.rmdir()


def take_over(sweep: "Sweep", store: "Store") -> None:
    """Copy the trials that are missing and that another sweep beside has done, and say so."""
    from harness.adopt import adopt

    trials = sweep.trials()
    if taken := adopt(trials, store):
        places = in_one_line(", ".join(map(str, taken)))
        print(f"{sweep.name}: {taken.total()} of {len(trials)} trials taken over from {places}", flush=True)


def run_trials(
    sweep: "Sweep",
    store: "Store",
    address: str,
    claim: "Claim | RemoteClaim",
    shown: dict[str, Any],
    *,
    retry_failed: bool,
) -> bool:
    """Run what is missing, print a summary, and return whether a trial failed or its record is damaged.

    shown: what `Store.describe` leaves with the first trial: what cannot start leaves nothing.
    """
    import pandas as pd

    from harness import sweep as engine
    from harness import track

    describe = cache(partial(store.describe, shown))
    if store.begun():
        describe()

    def log(result: "Result") -> None:
        describe()
        samples = pd.DataFrame() if result.samples is None else result.samples
        track.log(result.record, samples, sweep=sweep.name, directory=store.folder)

    trials = sweep.trials()
    try:
        outcome = engine.run(
            trials,
            store,
            sweep.axes.resources,
            address=address,
            time_limit=sweep.axes.time_limit,
            shards=sweep.axes.shards,
            retry_failed=retry_failed,
            after=log,
            check=claim.check,
        )
    except VtbenchError as error:
        place = f"{sweep.path}:" if str(error).startswith("resources.") else ""
        raise VtbenchError(f"{place}{error}") from None
    if outcome.stopped is not None:
        left = len(trials) - outcome.done - outcome.skipped - len(outcome.failures) - len(outcome.failed_before)
        did = f"{outcome.done} trials done now, {outcome.dropped} dropped as they ran, {left} left"
        print(f"vtbench: stopped: {did}; the same command goes on", file=sys.stderr)
        raise typer.Exit(128 + outcome.stopped)
    before = f", {outcome.skipped} before" if outcome.skipped else ""
    failed = f"{len(outcome.failures)} failed"
    if outcome.failed_before:
        failed += f", {len(outcome.failed_before)} failed before (--retry-failed tries them again)"
    print(f"{sweep.name}: {len(trials)} trials, {outcome.done} done now{before}, {failed}")
    failures = outcome.failures + outcome.failed_before
    for trial, reason in failures:
        print(f"failed: {trial.label} ({store.shown}/{trial.id}/failure.json): {in_one_line(reason)}")
    unreadable = [trial for trial in trials if store.unreadable(trial.id)]
    for trial in unreadable:
        place = f"{store.shown}/{trial.id}/record.json"
        print(f"unreadable: {trial.label} ({place}): once it is removed the trial runs again")
    return bool(failures or unreadable)


def cannot_write(folder: str, error: OSError) -> str:
    """Say why nothing can be stored."""
    why = (error.strerror or str(error)).lower()
    return f"{error.filename or folder}: {why}; once that is mended the same command goes on"


def write_report(sweep: "Sweep", folder: Path, out: Path, formats: Collection[str] = ()) -> Path:
    """Write the report of the trials that the sweep asks for and return its path."""
    from harness.report import write

    return write(folder, out, sweep.axes.shown, trials={trial.id for trial in sweep.trials()}, formats=formats)
