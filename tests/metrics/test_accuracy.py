import os

import pytest

from harness.lmms.model import VtBench
from harness.metrics.accuracy import evaluate
from harness.model.load import load


@pytest.fixture(scope="module")
def accuracy():
    here = os.getcwd()
    result = evaluate(VtBench(load("pocket"), "topk", tokens=64), "pocket_tiny", limit=4)
    assert os.getcwd() == here
    return result


def test_a_group_gives_its_leaf_tasks(accuracy):
    families = ("attribute", "choice", "count", "existence", "ocr", "relation", "where")
    assert sorted(accuracy.scores) == [f"pocket_tiny_{family}" for family in families]
    assert all(scores["n"] == 4 for scores in accuracy.scores.values())


def test_scores_are_the_means_of_the_samples(accuracy):
    means = accuracy.samples.groupby("task")["score"].mean()
    for task, scores in accuracy.scores.items():
        assert scores["exact_match"] == pytest.approx(means[task])


def test_samples_hold_question_answer_and_tokens(accuracy):
    samples = accuracy.samples
    assert list(samples) == [
        "task",
        "doc_id",
        "image_id",
        "question",
        "target",
        "answer",
        "metric",
        "score",
        "visual_tokens",
    ]
    assert len(samples) == 28 and set(samples["visual_tokens"]) == {64}
    where = samples[samples["task"] == "pocket_tiny_where"]
    assert where["question"].str.startswith("where is the").all()
    assert set(samples["score"]) <= {0.0, 1.0} and samples["answer"].str.len().min() > 0


def test_existence_has_pope_metrics_too(accuracy):
    assert {"exact_match", "f1", "precision", "recall", "yes_ratio", "n"} == set(
        accuracy.scores["pocket_tiny_existence"]
    )
