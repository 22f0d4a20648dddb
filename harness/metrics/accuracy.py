"""Accuracy: lmms-eval's scores, and every sample's answer and score."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from lmms_eval.api import task as requests
from lmms_eval.evaluator import simple_evaluate
from loguru import logger
from openai import OpenAIError
from tenacity import RetryError

from harness.errors import VtbenchError
from harness.lmms.model import VtBench
from harness.lmms.tasks import manager_for

log = logging.getLogger(__name__)

requests.load_from_cache = lambda file_name: None  # lmms-eval would unpickle a file of a task's name, asked to or not


@dataclass(frozen=True)
class Accuracy:
    """Scores by leaf task and metric, the samples behind them, and the pictures of some as webp files by content."""

    scores: dict[str, dict[str, float | None]]
    samples: pd.DataFrame
    pictures: dict[str, bytes] = field(default_factory=dict)

    def record(self) -> dict[str, dict[str, float | None]]:
        """Return the record's `scores`."""
        return self.scores


def evaluate(lm: VtBench, task: str, *, limit: int | None = None, seed: int = 0) -> Accuracy:
    """Run one lmms-eval task or group; a group gives its leaf tasks.

    A metric whose judge did not answer (it has no key, say) is None, and a warning says so: lmms-eval itself would give
    100 for LLaVA-in-the-wild. Errors: VtbenchError for a task that cannot start without its judge or its data set, else
    what it raises.
    """
    manager = manager_for(task)
    with _quiet(), _elsewhere(), _start_said(task):
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
        for metric in scores[leaf]:
            if any(_unjudged(document.get(metric)) for document in documents):
                scores[leaf][metric] = None
                log.warning("%s: %s needs a judge, which did not answer", leaf, metric)
        metrics = list(scores[leaf])
        rows += [_sample(lm, leaf, metrics, document) for document in documents]
        scores[leaf]["n"] = float(len(documents))
    return Accuracy(scores, pd.DataFrame(rows).sort_values(["task", "doc_id"], ignore_index=True), lm.pictures)


def _sample(lm: VtBench, task: str, metrics: list[str], document: dict[str, Any]) -> dict[str, Any]:
    answer = document["filtered_resps"][0]
    seen = lm.observations[task, document["doc_id"]]
    # MME scores a question by perception or by cognition, so a document has not every metric
    metric = next((name for name in metrics if name in document), metrics[0])
    return {
        "task": task,
        "doc_id": int(document["doc_id"]),
        "image_id": "+".join(seen["pictures"]) or f"{task}/{document['doc_id']}",
        "question": seen["question"],
        "target": str(document["target"]),
        "answer": str(answer),
        "metric": metric,
        "score": _score(document.get(metric)),
        **{key: seen[key] for key in ("visual_tokens", "pictures", "kept", "merged", "words")},
    }


def _score(value: Any) -> float | None:
    """Return a sample's score from what a task's `process_results` says of it, None if that is no score."""
    if not isinstance(value, dict):
        return _number(value)
    if _unjudged(value):
        return None
    if "score" not in value and {"pred", "answer"} <= value.keys():  # SEED
        return float(str(value["pred"]).strip().lower() == str(value["answer"]).strip().lower())
    return _number(value.get("score"))


def _unjudged(value: Any) -> bool:
    """Tell whether a judge was asked and gave nothing: how LLaVA-in-the-wild and MM-Vet of lmms-eval say so."""
    return isinstance(value, dict) and value.get("eval_model", "a model") in ("", None, "Failed Request")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


@contextlib.contextmanager
def _start_said(task: str) -> Iterator[None]:
    try:
        yield
    except OpenAIError as error:
        raise VtbenchError(f"{task}: it cannot start without its judge: {str(error).splitlines()[0]}") from None
    except RetryError as error:  # lmms-eval tries a data set several times
        cause = error.last_attempt.exception()
        raise VtbenchError(f"{task}: its data set cannot be read: {type(cause).__name__}: {cause}") from cause


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
