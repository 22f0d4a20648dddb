"""What an offline W&B run holds, read back with wandb's own protobufs."""

import json
import time
from pathlib import Path

import pandas as pd
import pytest
from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore

from harness import track

RECORD = {
    "id": "0123456789abcdef",
    "trial": {"model": "pocket", "method": "ivtp", "parameters": {"tokens": 64, "group": 3}},
    "scores": {"pocketvqa_count": {"exact_match": 0.5, "n": 2}},
    "tokens": {"nominal": 64, "into_llm": 128.0, "llm": [128.0, 64.0]},
    "flops": {"total": {"flops": 1234}},
    "latency": None,
    "memory": {"kv_bytes": 10},
    "provenance": {"seed": 0},
}
SAMPLES = pd.DataFrame(
    {"task": ["pocketvqa_count"] * 2, "doc_id": [0, 1], "answer": ["two", "<script>"], "score": [1.0, None]}
)


def records(folder: Path) -> list[wandb_internal_pb2.Record]:
    """Read the run once it is whole: W&B's own process closes the file some time after `finish` has returned."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    end = time.monotonic() + 20
    while not (found := scan(path)) or not found[-1].HasField("exit"):
        assert time.monotonic() < end, f"no end in {path}"
        time.sleep(0.05)
    return found


def scan(path: Path) -> list[wandb_internal_pb2.Record]:
    store = DataStore()
    store.open_for_scan(str(path))
    found = []
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        found.append(record)
    store._fp.close()  # its own close() is for writing
    return found


def test_an_offline_run_holds_config_scores_counts_and_samples(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    track.log(RECORD, SAMPLES, sweep="mine", directory=tmp_path)
    found = records(tmp_path)
    (run,) = [record.run for record in found if record.HasField("run")]
    assert (run.project, run.run_group, run.display_name) == ("vtbench", "mine", "0123456789abcdef")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["method"] == "ivtp" and config["parameters"] == {"tokens": 64, "group": 3}
    summary = {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in found
        if record.HasField("summary")
        for item in record.summary.update
    }
    assert summary["scores/pocketvqa_count/exact_match"] == 0.5
    assert summary["tokens/into_llm"] == 128.0
    assert summary["flops/total/flops"] == 1234
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.table.json")
    held = json.loads(table.read_text())
    assert held["columns"] == ["task", "doc_id", "answer", "score"]
    assert held["data"] == [["pocketvqa_count", 0, "two", 1.0], ["pocketvqa_count", 1, "<script>", None]]


def test_a_failing_wandb_costs_a_warning_and_no_trial(tmp_path, monkeypatch, caplog):
    def fail(**settings):
        raise OSError("no space")

    monkeypatch.setattr(track.wandb, "init", fail)
    track.log(RECORD, SAMPLES, sweep="mine", directory=tmp_path)
    assert [record.getMessage() for record in caplog.records] == ["W&B did not take trial 0123456789abcdef: no space"]


def test_a_folder_that_cannot_be_made_costs_no_trial_either(tmp_path, caplog):
    (tmp_path / "file").touch()
    track.log(RECORD, SAMPLES, sweep="mine", directory=tmp_path / "file" / "sweep")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_run_that_fails_half_way_is_finished(tmp_path, monkeypatch, caplog):
    def fail(record):
        raise ValueError("no number")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(track, "summary", fail)
    track.log(RECORD, SAMPLES, sweep="mine", directory=tmp_path)
    assert [record.getMessage() for record in caplog.records] == ["W&B did not take trial 0123456789abcdef: no number"]
    assert track.wandb.run is None


@pytest.mark.parametrize("key", ["scores", "tokens", "flops", "memory"])
def test_a_measure_that_was_not_asked_for_is_left_out(key):
    assert not any(name.startswith(key) for name in track.summary(RECORD | {key: None}))
