"""Accuracy: lmms-eval's scores, and every sample's answer and score."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
from lmms_eval.evaluator import simple_evaluate
from loguru import logger

from harness.lmms.model import VtBench
from harness.lmms.tasks import manager_for


@dataclass(frozen=True)
class Accuracy:
    """Scores by leaf task and metric, and the samples behind them."""

    scores: dict[str, dict[str, float | None]]
    samples: pd.DataFrame

    def record(self) -> dict[str, dict[str, float | None]]:
        """Return the record's `scores`."""
        return self.scores


def evaluate(lm: VtBench, task: str, *, limit: int | None = None, seed: int = 0) -> Accuracy:
    """Run one lmms-eval task or group; a group gives its leaf tasks.

    A metric that lmms-eval could not compute (a judge without a key) is None. Errors: whatever a task raises.
    """
    manager = manager_for(task)
    with _quiet(), _elsewhere():
        results = simple_evaluate(
            model=lm,
            tasks=[task],
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            verbosity="ERROR",
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    samples = results["samples"]
    scores: dict[str, dict[str, float | None]] = {}
    rows: list[dict[str, Any]] = []
    for leaf, documents in samples.items():
        scores[leaf] = {
            name.split(",")[0]: _number(value)
            for name, value in results["results"][leaf].items()
            if "," in name and "stderr" not in name and "clt" not in name
        }
        scores[leaf]["n"] = float(len(documents))
        metric = next(name for name in scores[leaf] if name != "n")
        rows += [_sample(lm, leaf, metric, document) for document in documents]
    return Accuracy(scores, pd.DataFrame(rows).sort_values(["task", "doc_id"], ignore_index=True))


def _sample(lm: VtBench, task: str, metric: str, document: dict[str, Any]) -> dict[str, Any]:
    doc = document.get("doc") or {}
    answer = document["filtered_resps"][0]
    seen = lm.observations[task, document["doc_id"]]
    value = document.get(metric)
    return {
        "task": task,
        "doc_id": int(document["doc_id"]),
        "image_id": str(doc.get("image_id", doc.get("question_id", document["doc_id"]))),
        "question": seen["question"],
        "target": str(document["target"]),
        "answer": str(answer),
        "metric": metric,
        "score": _number(value.get("score") if isinstance(value, dict) else value),
        "visual_tokens": seen["visual_tokens"],
    }


def _number(value: Any) -> float | None:
    return (
        float(value)
        if isinstance(value, int | float) and not isinstance(value, bool)
        else (float(value) if isinstance(value, bool) else None)
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lmms-eval's log lines off the terminal: our own progress is there."""
    logger.disable("lmms_eval")
    try:
        yield
    finally:
        logger.enable("lmms_eval")


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    """Run in a throw-away folder: some tasks write submissions to the working directory."""
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)
