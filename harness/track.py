"""W&B: a run per trial, grouped by sweep, offline unless WANDB_MODE says otherwise."""

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import pandas as pd
import wandb

log_ = logging.getLogger(__name__)


def log(
    record: dict[str, Any], samples: pd.DataFrame, *, sweep: str, directory: Path, project: str = "vtbench"
) -> None:
    """Log one trial: config, scores, token counts, costs and the per-sample table, under `<directory>/wandb`.

    W&B must never cost a trial: whatever it raises becomes one warning.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _silenced():
            run = wandb.init(
                project=project,
                group=sweep,
                name=record["id"],
                dir=directory,
                mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
                config={**record["trial"], "provenance": record["provenance"]},
                settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True),
                reinit="finish_previous",
            )
            try:
                run.log({"samples": wandb.Table(dataframe=samples.astype(object).where(samples.notna(), None))})
                run.summary.update(summary(record))
            finally:
                run.finish()
    except Exception as error:
        log_.warning("W&B did not take trial %s: %s", record["id"], error)


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record's numbers with flat names: scores/…, tokens/…, flops/…, latency/…, memory/…."""
    flat = pd.json_normalize(
        {key: record[key] or {} for key in ("scores", "tokens", "flops", "latency", "memory")}, sep="/"
    )
    return {} if flat.empty else {str(name): value for name, value in flat.iloc[0].items() if value is not None}


@contextlib.contextmanager
def _silenced() -> Any:
    level = logging.getLogger("wandb").level
    logging.getLogger("wandb").setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger("wandb").setLevel(level)
