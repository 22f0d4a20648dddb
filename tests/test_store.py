import json
import os

import pandas as pd
import pytest
import yaml

from harness import store
from harness.spec import Trial, load_sweep
from harness.store import Result, Store, write_atomically

SAMPLES = pd.DataFrame({"doc_id": [0, 1], "answer": ["a", "é"], "score": [1.0, 0.0]})


@pytest.fixture
def trials(tmp_path) -> list[Trial]:
    path = tmp_path / "x.yaml"
    path.write_text("model: m\ntasks: t\ntokens: 64\nmethods: [full, topk, {ivtp: {group: [2, 3]}}]\n")
    return load_sweep(path).trials()


def record(trial: Trial, **more: object) -> dict[str, object]:
    return {"schema": 1, "id": trial.id, "trial": trial.model_dump(mode="json"), "scores": None, **more}


def test_a_written_trial_is_done_and_reads_back(tmp_path, trials):
    kept = Store(tmp_path / "results" / "x")
    trial = trials[-1]
    assert not kept.done(trial.id) and kept.records() == [] and kept.failures() == []
    kept.write(trial, Result(record(trial), SAMPLES))
    assert kept.done(trial.id)
    assert kept.records() == [record(trial)]
    pd.testing.assert_frame_equal(kept.samples(trial.id), SAMPLES)
    folder = tmp_path / "results" / "x" / trial.id
    assert sorted(path.name for path in folder.iterdir()) == ["record.json", "samples.parquet", "trial.yaml"]
    assert Trial.model_validate(yaml.safe_load((folder / "trial.yaml").read_text()), strict=False) == trial


def test_the_trials_of_a_sweep_share_their_pictures(tmp_path, trials):
    kept = Store(tmp_path)
    kept.write(trials[0], Result(record(trials[0]), SAMPLES, {"a": b"1", "b": b"2"}))
    kept.write(trials[1], Result(record(trials[1]), SAMPLES, {"b": b"other", "c": b"3"}))
    assert {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()} == {
        "a.webp": b"1",
        "b.webp": b"2",
        "c.webp": b"3",
    }
    assert len(kept.records()) == 2


def test_a_failure_is_kept_until_the_trial_succeeds(tmp_path, trials):
    kept = Store(tmp_path)
    kept.fail(trials[0], "ValueError: no", "Traceback …")
    (failure,) = kept.failures()
    assert (failure["id"], failure["failure"]["error"], failure["trial"]["method"]) == (
        trials[0].id,
        "ValueError: no",
        "full",
    )
    assert not kept.done(trials[0].id)
    kept.write(trials[0], Result(record(trials[0]), None))
    assert kept.failures() == [] and kept.done(trials[0].id) and kept.samples(trials[0].id) is None


@pytest.mark.parametrize("broken", ["samples", "record"])
def test_a_trial_that_could_not_be_written_whole_is_not_done(tmp_path, trials, broken, monkeypatch):
    written = []

    def write(path, *args):
        written.append(path.name)
        if path.stem == broken:
            raise OSError("no space left on device")
        return write_atomically(path, *args)

    monkeypatch.setattr(store, "write_atomically", write)
    with pytest.raises(OSError, match="no space"):
        Store(tmp_path).write(trials[0], Result(record(trials[0]), SAMPLES))
    assert not Store(tmp_path).done(trials[0].id)
    assert written == ["trial.yaml", "samples.parquet", "record.json"][: len(written)]


def test_nan_never_enters_a_record(tmp_path, trials):
    with pytest.raises(ValueError, match="not JSON compliant"):
        Store(tmp_path).write(trials[0], Result(record(trials[0], latency=float("nan")), SAMPLES))
    assert not Store(tmp_path).done(trials[0].id)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(partial):
        partial.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_trials_are_gathered_one_a_row(tmp_path, trials):
    kept = Store(tmp_path)
    full, topk, two, _ = trials
    latency = {"clock": "CPU time", "prefill_ms": {"median": 2.5, "raw": [2.0, 3.0]}}
    kept.write(full, Result(record(full, latency=None), SAMPLES))
    kept.write(two, Result(record(two, latency=latency), SAMPLES))
    kept.fail(topk, "RuntimeError: out of memory", "")
    table = pd.read_parquet(kept.gather()).set_index("id")
    assert table.status.to_dict() == {full.id: "done", two.id: "done", topk.id: "failed"}
    assert table.loc[two.id, "trial.parameters.group"] == 2
    assert table.loc[two.id, "latency.prefill_ms.median"] == 2.5
    assert json.loads(table.loc[two.id, "latency.prefill_ms.raw"]) == [2.0, 3.0]
    assert table.loc[topk.id, "failure.error"] == "RuntimeError: out of memory"


DAMAGED = [
    "{",
    "[]",
    '"words"',
    "[" * 100_000,
    '{"a":' * 100_000,
    "{}",
    '{"id": "another"}',
    b"\xff\xfe",
    "",
    r'{"error": "\ud800"}',
]


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_what_cannot_be_read_is_not_gathered(tmp_path, trials, content):
    kept = Store(tmp_path)
    full, topk, two, three = trials
    kept.write(full, Result(record(full), None))
    kept.write(topk, Result(record(topk), None))
    kept.fail(two, "no", "")
    kept.fail(three, "no", "")
    put(tmp_path / topk.id / "record.json", content)
    put(tmp_path / two.id / "trial.yaml", "{")
    assert list(pd.read_parquet(kept.gather()).id) == [full.id, three.id]
    assert [kept.unreadable(trial.id) for trial in trials] == [False, True, False, False]
    assert kept.record(topk.id) is None and kept.done(topk.id)


@pytest.mark.parametrize("content", [each for each in DAMAGED if each not in DAMAGED[5:7]])
def test_a_failure_that_cannot_be_read_is_not_gathered_and_still_one(tmp_path, trials, content):
    kept = Store(tmp_path)
    kept.fail(trials[0], "no", "")
    put(tmp_path / trials[0].id / "failure.json", content)
    assert kept.failures() == [] and kept.failure(trials[0].id).endswith("failure.json cannot be read")


def test_a_trial_without_its_yaml_is_not_gathered(tmp_path, trials):
    kept = Store(tmp_path)
    kept.fail(trials[0], "no", "")
    assert kept.begun()
    (tmp_path / trials[0].id / "trial.yaml").unlink()
    assert kept.failures() == [] and len(pd.read_parquet(kept.gather())) == 0 and not kept.begun()


def test_a_pipe_is_not_waited_for(tmp_path, trials):
    (tmp_path / trials[0].id).mkdir()
    os.mkfifo(tmp_path / trials[0].id / "record.json")
    assert Store(tmp_path).records() == [] and Store(tmp_path).unreadable(trials[0].id)


def test_a_failure_of_any_text_is_kept_as_one_that_can_be_read(tmp_path, trials):
    kept = Store(tmp_path)
    path = os.fsdecode(b"/data/\xff.png")
    kept.fail(trials[0], f"OSError: {path}\x1b]0;title\x07", f"Traceback\n  {path}\n\x1b[31m")
    (failure,) = kept.failures()
    assert failure["failure"]["error"] == r"OSError: /data/\udcff.png\x1b]0;title\x07"
    assert failure["failure"]["traceback"] == "Traceback\n  /data/\\udcff.png\n\x1b[31m"


def test_an_empty_sweep_is_gathered_too(tmp_path):
    assert len(pd.read_parquet(Store(tmp_path).gather())) == 0


def test_what_killed_runs_were_writing_goes_and_claims_stay(tmp_path, trials):
    kept = Store(tmp_path)
    kept.write(trials[0], Result(record(trials[0]), SAMPLES, {"a": b"1"}))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    for name in (f"{trials[0].id}/.record.json.k3_x", "images/.a.webp.k3", ".sweep.json.x", ".trials.parquet.x"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".claim-2").write_text("")
    kept.tidy()
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before | {tmp_path / ".claim-2"}


def test_a_name_is_on_disk_before_the_next_file_is_written(tmp_path, trials, monkeypatch):
    done = []
    sync, replace = store.os.fsync, store.Path.replace
    monkeypatch.setattr(
        store.os, "fsync", lambda file: done.append(store.os.readlink(f"/proc/self/fd/{file}")) or sync(file)
    )
    monkeypatch.setattr(
        store.Path, "replace", lambda self, path: done.append(f"name {path.name}") or replace(self, path)
    )
    Store(tmp_path).write(trials[0], Result(record(trials[0]), None))
    folder = str(tmp_path / trials[0].id)
    assert done[0] == str(tmp_path) and done[-2:] == ["name record.json", folder]
    assert done[-3].startswith(f"{folder}/.record.json.")


def test_why_a_trial_failed_is_told_until_it_is_done(tmp_path, trials):
    kept = Store(tmp_path)
    assert kept.failure(trials[0].id) is None
    kept.fail(trials[0], "ValueError: no", "Traceback …")
    assert kept.failure(trials[0].id) == "ValueError: no"
    (tmp_path / trials[0].id / "failure.json").write_text("[]")
    assert kept.failure(trials[0].id) == f"{tmp_path / trials[0].id / 'failure.json'} cannot be read"
    kept.write(trials[0], Result(record(trials[0]), None))
    assert kept.failure(trials[0].id) is None
