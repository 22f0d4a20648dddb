"""What PocketVQA's YAML files call; lmms-eval imports this file by its path."""

import io
from typing import Any

from datasets import Dataset
from PIL import Image

from harness.lmms.pictures import pictures

TINY = 12
Doc = dict[str, Any]


def doc_to_visual(doc: Doc) -> list[Image.Image]:
    """Return the picture that the question is about."""
    return [Image.open(io.BytesIO(pictures()[doc["image_id"]])).convert("RGB")]


def first(dataset: Dataset) -> Dataset:
    """Return the questions of `pocket_tiny`."""
    return dataset.select(range(TINY))


def process_results(doc: Doc, results: list[str]) -> dict[str, float]:
    """Return 1 where the whole answer is right, up to case."""
    return {"exact_match": float(results[0].strip().lower() == doc["answer"].lower())}


def process_existence(doc: Doc, results: list[str]) -> dict[str, Any]:
    """Return the exact match and, for the metrics over all questions, the (answer, truth) pair."""
    pair = (results[0].strip().lower(), doc["answer"])
    return process_results(doc, results) | dict.fromkeys(("f1", "precision", "recall", "yes_ratio"), pair)


def precision(pairs: list[tuple[str, str]]) -> float:
    """Return the share of the answers "yes" that are right, 0 if there are none."""
    truths = [truth for answer, truth in pairs if answer == "yes"]
    return truths.count("yes") / max(len(truths), 1)


def recall(pairs: list[tuple[str, str]]) -> float:
    """Return the share of the existing things that were answered "yes", 0 if there are none."""
    answers = [answer for answer, truth in pairs if truth == "yes"]
    return answers.count("yes") / max(len(answers), 1)


def f1(pairs: list[tuple[str, str]]) -> float:
    """Return the harmonic mean of precision and recall of "yes"."""
    p, r = precision(pairs), recall(pairs)
    return 2 * p * r / max(p + r, 1e-12)


def yes_ratio(pairs: list[tuple[str, str]]) -> float:
    """Return the share of the answers that are "yes"; as in POPE's paper of the answers, not of the truth."""
    return [answer for answer, _ in pairs].count("yes") / len(pairs)
