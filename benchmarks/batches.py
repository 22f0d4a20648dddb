"""Samples a second of our batched evaluation against lmms-eval's own `llava_hf`, on pocket's folder and PocketVQA."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models.simple.llava_hf import LlavaHf
from loguru import logger
from PIL import Image

from benchmarks.processes import quiet
from harness.lmms.model import VtBench
from harness.lmms.tasks import manager_for
from harness.metrics.accuracy import evaluate
from harness.model.load import load
from harness.pocket import WEIGHTS

TASK = "pocketvqa"
SIZES = (1, 8, 16)
RIVAL, OWN = "llava_hf batch 1", "ours batch 8"  # what is compared: each one's default
# LlavaHf gives a template the question as one text, so that pocket's own, which takes parts, does not fit.
TEMPLATE = "{% for message in messages %}USER: {{ message['content'] }} {% endfor %}ASSISTANT:"

PICTURE = Image.new("RGB", (120, 120))
FORWARDS = 5

Answers = dict[tuple[str, int], str]


class Run(NamedTuple):
    """How long an evaluation took, of that its answering, what it answered, and about how many pictures."""

    seconds: float
    answering: float
    answers: Answers
    pictures: int = 0


class Rival(LlavaHf):
    """llava_hf that keeps its model for the next evaluation."""

    def __init__(self, batch_size: int = 1) -> None:
        super().__init__(
            pretrained=str(WEIGHTS),
            device="cpu",
            device_map="cpu",
            dtype="float32",
            attn_implementation="sdpa",
            batch_size=batch_size,
            chat_template=TEMPLATE,
        )

    def clean(self) -> None:
        """Keep the model."""


def timed(lm: Any, evaluation: Callable[[], Answers]) -> Run:
    """Time an evaluation, and in it the model's `generate_until`."""
    answering, took = lm.generate_until, []

    def noting(requests: Any) -> Any:
        began = time.perf_counter()
        answers = answering(requests)
        took.append(time.perf_counter() - began)
        return answers

    lm.generate_until = noting
    began = time.perf_counter()
    try:
        answers = evaluation()
    finally:
        del lm.generate_until
    return Run(time.perf_counter() - began, sum(took), answers)


def theirs(lm: Rival, limit: int | None) -> Run:
    """Evaluate by llava_hf."""

    def evaluation() -> Answers:
        with quiet():
            results = simple_evaluate(
                model=lm,
                tasks=[TASK],
                task_manager=manager_for(TASK),
                limit=limit,
                bootstrap_iters=0,
                verbosity="ERROR",
            )
        samples = results["samples"].items()
        return {(leaf, each["doc_id"]): each["filtered_resps"][0].strip() for leaf, docs in samples for each in docs}

    return timed(lm, evaluation)


def ours(loaded: Any, batch_size: int, limit: int | None) -> Run:
    """Evaluate by VtBench, with no image preprocessed before, nothing removed."""
    lm = VtBench(loaded, "full", batch_size=batch_size)

    def evaluation() -> Answers:
        with quiet():
            samples = evaluate(lm, TASK, limit=limit).samples
        return dict(zip(zip(samples["task"], samples["doc_id"], strict=True), samples["answer"], strict=True))

    run = timed(lm, evaluation)
    return run._replace(pictures=len({tuple(each["pictures"]) for each in lm.observations.values()}))


def bare(loaded: Any, batch_size: int) -> float:
    """Return the seconds a sample of the model's forward pass alone, which questions of one picture share mostly."""
    lm = VtBench(loaded)
    inputs = lm.inputs([lm.prompt("what color is the small ring?", 1)] * batch_size, [PICTURE] * batch_size)
    seconds = []
    with torch.inference_mode():
        for _ in range(1 + FORWARDS):
            began = time.perf_counter()
            loaded.model(**inputs, logits_to_keep=1)
            seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:])) / batch_size


def refusal(batch_size: int) -> str | None:
    """Return why llava_hf takes no batches, None if it does."""
    try:
        with quiet():
            theirs(Rival(batch_size), 1)
    except AssertionError as error:
        return str(error)
    return None


def measure(*, limit: int | None, rounds: int) -> dict[str, Any]:
    """Time every variant once a round, the other way round in every other one, after one small evaluation of each.

    limit: questions of every family, None for all of the task.
    """
    logger.disable("lmms_eval")
    try:
        with quiet():
            rival, loaded = Rival(), load("pocket")
        variants: dict[str, Callable[[int | None], Run]] = {RIVAL: partial(theirs, rival)}
        for size in SIZES:
            variants[f"ours batch {size}"] = partial(ours, loaded, size)
        runs: dict[str, list[Run]] = {name: [] for name in variants}
        for each in variants.values():
            each(1)
        for turn in range(rounds):
            for name in list(variants)[:: -1 if turn % 2 else 1]:
                runs[name].append(variants[name](limit))
        forward = {size: bare(loaded, size) for size in SIZES}
        return compared(runs, forward) | {"limit": limit, "llava_hf_refuses_batch_8": refusal(8)}
    finally:
        logger.enable("lmms_eval")


def compared(runs: dict[str, list[Run]], forward: dict[int, float]) -> dict[str, Any]:
    """Return the ratio of our default batch's samples/s to llava_hf's: the median of those within each round.

    forward: seconds a sample of the forward pass alone by batch size.
    """
    reference = runs[RIVAL]
    expected, samples = reference[0].answers, len(reference[0].answers)
    raw = {
        name: {
            "samples_per_second": samples / float(np.median([each.seconds for each in found])),
            "ratio": _ratio([each.seconds for each in reference], [each.seconds for each in found]),
            "ratio_answering": _ratio([each.answering for each in reference], [each.answering for each in found]),
            "seconds": [each.seconds for each in found],
            "answering_seconds": [each.answering for each in found],
            "different_answers": max(sum(each.answers[key] != expected[key] for key in expected) for each in found),
        }
        for name, found in runs.items()
    }
    equal = not any(each["different_answers"] for each in raw.values())
    bare_ms = ", ".join(f"{1000 * seconds:.0f} ms at batch {size}" for size, seconds in forward.items())
    speeds = ", ".join(f"{name} {each['samples_per_second']:.1f} ({each['ratio']:.2f})" for name, each in raw.items())
    return {
        "ratio": raw[OWN]["ratio"],
        "samples": samples,
        "pictures": runs[OWN][0].pictures,
        "variants": raw,
        "equal": equal,
        "forward_seconds": forward,
        "said": f"a forward pass takes {bare_ms}; "
        f"answering alone {raw[OWN]['ratio_answering']:.2f}; samples/s (ratio): {speeds}; "
        f"{samples} answers about {runs[OWN][0].pictures} pictures {'equal' if equal else 'DIFFER'}",
    }


def _ratio(of: list[float], to: list[float]) -> float:
    return float(np.median(np.array(of) / np.array(to)))
