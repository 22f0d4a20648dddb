import os

import datasets
import pytest
from lmms_eval.api.task import ConfigurableTask
from lmms_eval.caching import cache
from lmms_eval.evaluator import simple_evaluate
from PIL import Image

from harness.errors import VtbenchError
from harness.lmms import tasks
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
        "pictures",
        "kept",
        "merged",
        "words",
    ]
    assert len(samples) == 28 and set(samples["visual_tokens"]) == {64}
    where = samples[samples["task"] == "pocket_tiny_where"]
    assert where["question"].str.startswith("where is the").all()
    assert set(samples["score"]) <= {0.0, 1.0} and samples["answer"].str.len().min() > 0


def test_existence_has_pope_metrics_too(accuracy):
    assert {"exact_match", "f1", "precision", "recall", "yes_ratio", "n"} == set(
        accuracy.scores["pocket_tiny_existence"]
    )


RED, BLUE = Image.new("RGB", (60, 60), (200, 20, 20)), Image.new("RGB", (60, 60), (20, 20, 200))
STAND_INS = {
    "pope": [
        {
            "id": i,
            "question_id": str(i),
            "question": "is there a ring?",
            "answer": "no",
            "category": "x",
            "image": image,
        }
        for i, image in enumerate((RED, RED, BLUE))
    ],
    "mme": [
        {"question_id": f"{category}.png", "category": category, "question": "q?", "answer": answer, "image": RED}
        for category in ("existence", "code_reasoning")
        for answer in ("Yes", "No")
    ],
    "seedbench": [
        {"question_id": "1", "question": "q", "answer": "A", "data_type": "image", "image": [RED]}
        | {f"choice_{letter}": letter for letter in "abcd"}
    ],
    "llava_in_the_wild": [
        {"question_id": "1", "question": "q", "gpt_answer": "a", "caption": "c", "category": "conv", "image": RED}
    ],
    "mmvet": [{"question_id": "1", "question": "q", "answer": "a", "capability": "rec", "image": RED}],
}


@pytest.fixture
def of_lmms_eval(tmp_path, monkeypatch):
    """Run one of lmms-eval's own tasks, on stand-in data, for a model that always says the same."""
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "AZURE_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(task: str, answer: str):
        rows = STAND_INS[task]
        kind = datasets.Image()
        features = datasets.Dataset.from_list([{k: v for k, v in row.items() if k != "image"} for row in rows]).features
        features["image"] = [kind] if isinstance(rows[0]["image"], list) else kind
        path = str(tmp_path / "rows.parquet")
        datasets.Dataset.from_list(rows, features=features).to_parquet(path)
        split = "train" if task == "llava_in_the_wild" else "test"
        stand_in = {"task": task, "dataset_path": "parquet", "dataset_name": None}
        stand_in["dataset_kwargs"] = {"data_files": {split: path}}
        monkeypatch.setattr(
            "harness.metrics.accuracy.simple_evaluate",
            lambda **settings: simple_evaluate(**settings | {"tasks": [stand_in]}),
        )
        monkeypatch.setattr("harness.lmms.model._stop", lambda text, until: answer)
        return evaluate(VtBench(load("pocket"), "topk", tokens=16), task)

    return run


def test_samples_of_one_picture_share_its_image_id(of_lmms_eval):
    result = of_lmms_eval("pope", "no")
    assert result.scores["pope"]["pope_accuracy"] == 1.0 and result.scores["pope"]["n"] == 3
    one, same, other = result.samples["image_id"]
    assert one == same != other
    assert [one, same, other] == ["+".join(pictures) for pictures in result.samples["pictures"]]


def test_mme_scores_every_sample_by_its_own_metric(of_lmms_eval):
    result = of_lmms_eval("mme", "yes")
    assert result.scores["mme"] == {"mme_perception_score": 50.0, "mme_cognition_score": 50.0, "n": 4.0}
    assert list(result.samples["metric"]) == ["mme_perception_score"] * 2 + ["mme_cognition_score"] * 2
    assert list(result.samples["score"]) == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(("answer", "score"), [("a", 1.0), ("B", 0.0)])
def test_seed_scores_its_samples(of_lmms_eval, answer, score):
    result = of_lmms_eval("seedbench", answer)
    assert result.scores["seedbench"]["seed_all"] == score and list(result.samples["score"]) == [score]


# lmms-eval leaves the task's rule.json open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_judge_that_does_not_answer_gives_no_score(of_lmms_eval, caplog):
    result = of_lmms_eval("llava_in_the_wild", "a dog")
    assert {value for metric, value in result.scores["llava_in_the_wild"].items() if metric != "n"} == {None}
    assert result.samples["score"].isna().all() and list(result.samples["answer"]) == ["a dog"]
    assert "llava_in_the_wild: gpt_eval_llava_all needs a judge, which did not answer" in caplog.messages


def test_a_task_that_cannot_start_without_its_judge_says_so(of_lmms_eval):
    with pytest.raises(VtbenchError, match="mmvet: it cannot start without its judge"):
        of_lmms_eval("mmvet", "a dog")


def test_tasks_stay_warm_and_give_what_fresh_ones_give(monkeypatch):
    loaded, built = load("random:pocket"), []
    real = ConfigurableTask.__init__
    monkeypatch.setattr(ConfigurableTask, "__init__", lambda self, *a, **k: built.append(1) or real(self, *a, **k))

    def run(limit: int, method: str):
        return evaluate(VtBench(loaded, method, tokens=16), "pocket_tiny", limit=limit)

    tasks._manager.cache_clear()
    run(3, "topk")
    warm = run(2, "random")
    assert len(built) == 7
    wider = run(4, "topk")
    tasks._manager.cache_clear()
    fresh, also = run(2, "random"), run(4, "topk")
    assert len(built) == 14
    assert warm.samples.equals(fresh.samples) and warm.scores == fresh.scores
    assert wider.samples.equals(also.samples) and wider.scores == also.scores
    evaluate(VtBench(loaded, "full"), "pocket_tiny_count", limit=1)
    assert len(built) == 15


def test_no_pickle_that_lmms_eval_would_take_for_its_requests_is_read(monkeypatch):
    asked: list[str] = []

    def opened(path: str, mode: str) -> None:
        asked.append(path)
        raise FileNotFoundError(path)

    monkeypatch.setattr(cache, "open", opened, raising=False)
    evaluate(VtBench(load("random:pocket")), "pocket_tiny_count", limit=1)
    assert not asked
