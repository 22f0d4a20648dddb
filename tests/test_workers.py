import sys
from pathlib import Path

import pytest
import ray

from harness.shards import Job
from harness.spec import Trial, load_sweep
from harness.workers import Queue, Worker


def trials(tmp_path: Path, models: str) -> list[Trial]:
    path = tmp_path / "x.yaml"
    path.write_text(f"model: {models}\ntokens: 16\ntasks: t\nmethods: [full, random, topk, pooling, tome]\n")
    return load_sweep(path).trials()


def test_a_trial_that_exits_is_told_as_one_that_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "get_gpu_ids", list)

    def prepare(device: str):
        def execute(trial: Trial):
            sys.exit(f"video path: clip.mp4 does not exist on {device}")

        return execute

    told = Worker(prepare).run(trials(tmp_path, "a")[0], None)
    assert told.error == "exited: video path: clip.mp4 does not exist on cpu" and "in execute" in told.traceback


def test_what_ray_makes_of_a_sigterm_still_ends_the_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "get_gpu_ids", list)

    def prepare(device: str):
        def execute(trial: Trial):
            error = SystemExit(1)
            error.ray_terminate_msg = "The process receives a SIGTERM."
            raise error

        return execute

    with pytest.raises(SystemExit):
        Worker(prepare).run(trials(tmp_path, "a")[0], None)


def test_a_worker_goes_on_with_its_model_then_takes_the_longest_that_nobody_has(tmp_path):
    cells = trials(tmp_path, "[a, b, c]")
    queue = Queue(map(Job, cells[:5] + cells[5:8] + cells[10:14]))
    keys = {trial.model: trial.warm_key for trial in cells}
    assert len(queue) == 12 and queue.take(None, set()).trial.model == "a"
    assert queue.take(None, {keys["a"]}).trial.model == "c"
    assert queue.take(keys["b"], {keys["a"], keys["c"]}).trial.model == "b"
    assert [queue.take(keys["b"], {keys["a"], keys["c"]}).trial.model for _ in range(2)] == ["b", "b"]
    assert queue.take(keys["b"], {keys["a"], keys["c"]}).trial.model == "a"
    first = queue.take(keys["c"], set())
    queue.back(first)
    assert queue.take(keys["c"], set()) is first
    left = [queue.take(keys["c"], set()).trial.model for _ in range(5)]
    assert left == ["c", "c", "a", "a", "a"] and not queue
