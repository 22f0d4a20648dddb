"""W&B: a run per trial and one for the report, grouped by sweep, offline unless WANDB_MODE says otherwise."""

import contextlib
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at import: no errors of ours to others
import wandb
from PIL import Image
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

from harness.panels import kept_grid, overlay

log_ = logging.getLogger(__name__)

PICTURED = 8  # samples whose pictures go along
REACH = 30.0  # seconds to reach W&B
TAKE = 120.0  # seconds for it to take all of a trial, or of the report
LEAVE = 3.0  # seconds for it to end
GONE = (ConnectionError, TimeoutError, HandleAbandonedError, MailboxClosedError, wandb.Error)  # raised where it is away


def log(
    record: dict[str, Any], samples: pd.DataFrame, *, sweep: str, directory: Path, project: str = "vtbench"
) -> None:
    """Log one trial: config, scores, token counts, costs, times as histograms, samples and the first ones' pictures.

    directory: the sweep's folder, which has its pictures; the run goes under its `wandb`.
    W&B must never cost a trial: whatever it raises becomes one warning.
    """

    def fill(run: wandb.Run) -> None:
        run.log(
            {"samples": wandb.Table(dataframe=_plain(samples))}
            | _histograms(record["latency"] or {})
            | _pictures(record, samples, directory / "images")
        )
        run.summary.update(summary(record))

    config = {**record["trial"], "provenance": record["provenance"]}
    _send(f"trial {record['id']}", fill, directory, project=project, group=sweep, name=record["id"], config=config)


def log_report(report: Path, *, sweep: str, directory: Path, project: str = "vtbench") -> None:
    """Log a report's markdown, page, numbers and figures as an artifact, by a run of its own; never at its cost.

    report: the markdown; what lies beside it under its name goes along.
    """

    def fill(run: wandb.Run) -> None:
        artifact = wandb.Artifact(f"report-{sweep}", type="report")
        beside = [report.with_suffix(suffix) for suffix in (".md", ".html", ".json")]
        for path in [*beside, *sorted(report.with_suffix("").rglob("*"))]:
            if path.is_file():
                artifact.add_file(str(path), name=str(path.relative_to(report.parent)), skip_cache=True)
        run.log_artifact(artifact)

    _send("the report", fill, directory, project=project, group=sweep, name="report", config={})


def _send(what: str, fill: Callable[[wandb.Run], None], directory: Path, **described: Any) -> None:
    """Make a run of what `fill` logs, unless W&B is disabled. Errors: none, a warning instead.

    Where W&B itself is gone (unreachable, too slow, its process killed), what follows goes offline, or nowhere if it
    already did: one wait and one warning, not one a trial.
    """
    mode = os.environ.get("WANDB_MODE", "offline")
    if mode == "disabled":
        return
    quiet = {
        "init_timeout": REACH,
        "console": "off",
        "silent": True,
        "disable_git": True,
        "x_disable_stats": True,
        "x_disable_meta": True,
    }
    late = threading.Event()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _silenced(), _staged(directory / "wandb"), _within(TAKE, late):
            run = wandb.init(
                **described,
                dir=directory,
                mode=mode,  # type: ignore[arg-type]
                settings=wandb.Settings(**quiet),  # type: ignore[arg-type]
                reinit="finish_previous",
            )
            try:
                fill(run)
            finally:
                run.finish()
    except Exception as error:
        gone = late.is_set() or isinstance(error, GONE)
        why = f"it took more than {TAKE:g} s" if late.is_set() else str(error) or type(error).__name__
        after = ("disabled" if mode == "offline" else "offline") if gone else mode
        log_.warning("W&B did not take %s: %s%s", what, why, f"; from here on it is {after}" if gone else "")
        if gone:
            os.environ["WANDB_MODE"] = after
            with _within(LEAVE, late), contextlib.suppress(Exception, SystemExit):  # which tells how its process ended
                wandb.teardown()  # it would be missed at the end again


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record's numbers with flat names: scores/…, tokens/…, flops/…, latency/…, memory/…."""
    flat = pd.json_normalize(
        {key: record[key] or {} for key in ("scores", "tokens", "flops", "latency", "memory")}, sep="/"
    )
    return {} if flat.empty else {str(name): value for name, value in flat.iloc[0].items() if value is not None}


def _plain(samples: pd.DataFrame) -> pd.DataFrame:
    """Return the samples as a table can hold them: lists as JSON, nothing for what is not there."""

    def plain(value: Any) -> Any:
        if isinstance(value, list | np.ndarray):
            return json.dumps(value, default=lambda array: array.tolist())
        return None if pd.isna(value) else value

    return pd.DataFrame({name: pd.Series(map(plain, samples[name]), dtype=object) for name in samples})


def _histograms(latency: dict[str, Any]) -> dict[str, wandb.Histogram]:
    """Return the raw times of each part, in milliseconds."""
    return {
        f"histogram/{part}": wandb.Histogram(times["raw"])
        for part, times in latency.items()
        if isinstance(times, dict) and times.get("raw")
    }


def _pictures(record: dict[str, Any], samples: pd.DataFrame, folder: Path) -> dict[str, list[wandb.Image]]:
    """Return the pictures of the first PICTURED samples that have some, pale where no token stands."""
    patches = (record["tokens"] or {}).get("patches") or 0
    side = math.isqrt(patches)
    if not patches or side * side != patches or "pictures" not in samples:
        return {}

    def of(sample: dict[Hashable, Any]) -> list[wandb.Image]:
        everything = repeat(range(patches))
        kept = sample["kept"] if isinstance(sample["kept"], list | np.ndarray) else everything
        caption = f"{sample['question']} → {sample['answer']} (score {sample['score']})"
        paths = [(folder / f"{name}.webp", places) for name, places in zip(sample["pictures"], kept, strict=False)]
        drawn = [
            overlay(np.asarray(Image.open(path).convert("RGB")), kept_grid(list(places), side))
            for path, places in paths
            if path.exists()
        ]
        return [wandb.Image(picture, caption=caption, file_type="jpg") for picture in drawn]

    pictured = filter(None, map(of, samples.to_dict(orient="records")))
    shown = [image for images in islice(pictured, PICTURED) for image in images]
    return {"kept": shown} if shown else {}


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[None]:
    """Have W&B keep an artifact's files beside its runs, where `wandb sync` finds them, not in the home folder."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = before or str(folder.absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]


@contextlib.contextmanager
def _within(seconds: float, late: threading.Event) -> Iterator[None]:
    """Kill W&B's process after so long and set `late`: what waits for it then goes on. By itself it tries for hours."""

    def end() -> None:
        late.set()
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "wandb-core":
                    process.kill()

    clock = threading.Timer(seconds, end)
    clock.daemon = True
    clock.start()
    try:
        yield
    finally:
        clock.cancel()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    level = logging.getLogger("wandb").level
    logging.getLogger("wandb").setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger("wandb").setLevel(level)
