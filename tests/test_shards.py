import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
import torch
from ray.cluster_utils import Cluster

from harness.errors import VtbenchError
from harness.lmms.model import VtBench
from harness.shards import Answers, Job, Shard, jobs, merged
from harness.spec import Resources, Trial, load_sweep
from harness.store import Result, Store
from harness.sweep import run
from harness.trial import Warm, work
from tests.rays import node

torch.set_num_threads(1)


def trials(tmp_path: Path, text: str) -> list[Trial]:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return load_sweep(path).trials()


def sharded(trial: Trial, shards: int) -> Result:
    """Return what so many workers give, one after another."""
    workers = [Warm("cpu") for _ in range(shards)]
    parts = [work(warm, *job) for warm, job in zip(workers, jobs(trial, shards), strict=True)]
    return work(workers[0], trial, merged(parts))


def alike(one: Result, other: Result) -> bool:
    """Whether all that does not measure time or memory is the same, to the last bit."""
    counted = [[each.record[key] for key in ("id", "trial", "scores", "tokens", "flops")] for each in (one, other)]
    return one.samples.equals(other.samples) and one.pictures == other.pictures and counted[0] == counted[1]


@pytest.mark.parametrize(("shards", "method"), [(2, "{ivtp: {tokens: 64}}"), (3, "{prumerge: {tokens: null}}")])
def test_shards_give_what_one_worker_gives(tmp_path, shards, method):
    text = "model: pocket\ntasks: pocket_tiny\nlimit: 3\nbatch_size: 4\n"
    (trial,) = trials(tmp_path, f"{text}methods: [{method}]\nmeasure: [accuracy, tokens, flops, memory]\n")
    alone, together = work(Warm("cpu"), trial), sharded(trial, shards)
    assert alike(alone, together) and len(together.samples) == 21
    assert together.record["memory"]["kv_visual_bytes"] == alone.record["memory"]["kv_visual_bytes"]
    assert together.record["provenance"]["shards"] == shards and alone.record["provenance"]["shards"] == 1
    assert together.record["provenance"].keys() == alone.record["provenance"].keys()


def test_more_shards_than_questions_and_a_batch_that_memory_halves(tmp_path, monkeypatch):
    text = "model: pocket\ntasks: pocket_tiny_count\nmethods: {random: {tokens: 16}}\nmeasure: [accuracy, tokens]\n"
    one, few = trials(tmp_path, f"{text}limit: [1, 5]\nbatch_size: 4\n")
    assert alike(sharded(one, 3), work(Warm("cpu"), one))
    whole, answer, sizes = work(Warm("cpu"), few), VtBench._answer, []

    def small(self, attached, groups):
        if len(groups) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(groups))
        return answer(self, attached, groups)

    monkeypatch.setattr(VtBench, "_answer", small)
    halved = sharded(few, 2)
    assert alike(halved, whole) and sizes == [2, 2, 1]
    assert (halved.record["provenance"]["batch_size"], whole.record["provenance"]["batch_size"]) == (2, 4)


def test_answers_that_are_not_to_this_tasks_questions_are_refused(tmp_path):
    text = "model: pocket\ntasks: pocket_tiny_count\nmethods: {topk: {tokens: 16}}\nmeasure: accuracy\nlimit: 2\n"
    (trial,) = trials(tmp_path, text)
    warm = Warm("cpu")
    answers = merged([work(warm, *job) for job in jobs(trial, 2)])
    texts = {question: text for question, text in answers.texts.items() if question[1] != 1}
    with pytest.raises(VtbenchError, match=r"^pocket_tiny_count, document 1: the workers of the shards read other doc"):
        work(warm, trial, replace(answers, texts=texts))


def test_a_trial_is_as_many_jobs_as_shards_where_it_asks_all_its_questions(tmp_path):
    text = "model: pocket\nmethods: {topk: {tokens: 16}}\n"
    (asks,) = trials(tmp_path, text + "tasks: t\nmeasure: [flops]\n")
    (times,) = trials(tmp_path, text + "tasks: t\nmeasure: latency\n")
    (costs,) = trials(tmp_path, text + "text_tokens: 40\n")
    assert jobs(asks, 3) == [Job(asks, Shard(index, 3)) for index in range(3)]
    assert len({job.key for job in [*jobs(asks, 3), Job(asks), Job(costs)]}) == 5
    assert jobs(asks, 1) == [Job(asks)] and jobs(times, 3) == [Job(times)] and jobs(costs, 3) == [Job(costs)]


def test_shards_change_no_id_and_are_whole_numbers(tmp_path):
    text = "model: pocket\ntasks: t\nmethods: [full]\n"
    assert trials(tmp_path, text + "shards: 4\n") == trials(tmp_path, text)
    refused = {
        "0": "0 is not possible; it should be greater than or equal to 1",
        "2000": "2000 is not possible; it should be less than or equal to 1000",
        "2.5": "2.5 is not possible; it should be a valid integer",
    }
    for given, why in refused.items():
        with pytest.raises(VtbenchError, match=rf"x\.yaml:shards: {why}$"):
            trials(tmp_path, text + f"shards: {given}\n")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Yield the address of a Ray on this machine with two CPUs."""
    head = Cluster(initialize_head=True, head_node_args=node(cpus=2))
    yield head.address
    head.shutdown()


def fake(log: Path, store: Store):
    """Return what does fake jobs: of random the first shard raises, of topk the second kills its worker once.

    Of tome the end kills it always, of pooling a shard hangs.
    """

    def prepare(device: str):
        import methods  # noqa: F401 which what tells of the error needs, and takes seconds

        def execute(trial: Trial, part: Shard | Answers | None = None):
            index = part.index if isinstance(part, Shard) else "end"
            with log.open("a") as file:
                file.write(f"{trial.method} {index} {os.getpid()}\n")
            tries = log.read_text().count(f"{trial.method} {index} ")
            assert not store.done(trial.id)
            if trial.method == "random" and index == 0:
                raise KeyError("no such\nlayer")
            while trial.method == "random" and store.failure(trial.id) is None:
                time.sleep(0.1)
            if (trial.method, index, tries) in (("topk", 1, 1), ("tome", "end", 1), ("tome", "end", 2)):
                os._exit(1)
            if trial.method == "pooling" and index == 2:
                time.sleep(1000)
            if isinstance(part, Answers):
                record = {"id": trial.id, "texts": sorted(part.texts.values()), "shards": part.shards}
                return Result(record, pd.DataFrame({"answer": ["a"]}))
            return Answers(
                texts={("t", index): f"{trial.method} {index}"},
                observations={},
                pictures={},
                batch_size=8,
                started=datetime.now(UTC),
                seconds=1.0,
            )

        return execute

    return prepare


def test_shards_that_fail_die_or_hang_cost_their_trial_alone(tmp_path, cluster, capsys):
    log, store = tmp_path / "log", Store(tmp_path / "results")
    text = "model: a\ntasks: t\ntokens: 16\nmethods: [full, random, topk, tome, pooling]\n"
    cells, prepare = trials(tmp_path, text), fake(log, store)
    outcome = run(cells, store, Resources(), address=cluster, shards=4, time_limit=8.0, prepare=prepare)
    assert {trial.method: why for trial, why in outcome.failures} == {
        "random": "KeyError: 'no such\\nlayer'",
        "tome": "its worker died 2 times, for want of memory perhaps",
        "pooling": "stopped after 8 s, its time limit",
    }
    texts = {record["id"]: (record["texts"], record["shards"]) for record in store.records()}
    done = {trial.id: ([f"{trial.method} {index}" for index in range(4)], 4) for trial in (cells[0], cells[2])}
    assert outcome.done == 2 and texts == done
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]  # others are Ray's
    assert [line.split("]")[0] for line in lines] == [f"[{n}/5" for n in range(1, 6)]
    asked = Counter(line.rsplit(" ", 1)[0] for line in log.read_text().splitlines())
    assert {key for key, times in asked.items() if times > 1} == {"topk 1", "tome end"}
    assert not {"random 2", "random 3", "random end"} & asked.keys()
    assert "pooling end" not in asked and "full end" in asked
