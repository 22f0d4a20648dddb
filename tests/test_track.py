"""What an offline W&B run holds, read back with wandb's own protobufs."""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image
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


def logged(folder: Path) -> dict[str, object]:
    """Return what was logged, by name and, of what is nested, by key."""
    found: dict[str, object] = {}
    for record in records(folder):
        for item in record.history.item:
            found["/".join([item.key, *item.nested_key]).strip("/")] = json.loads(item.value_json)
    return found


def artifacts(folder: Path) -> dict[str, dict[str, str]]:
    """Return the contents of every artifact, by path where W&B keeps a copy to send."""
    return {
        record.artifact.name: {entry.path: entry.local_path for entry in record.artifact.manifest.contents}
        for record in records(folder)
        if record.HasField("artifact")
    }


def test_an_offline_run_holds_the_raw_times_as_histograms(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    latency = {
        "clock": "CPU time",
        "prefill_ms": {"median": 2.0, "raw": [1.0, 2.0, 2.0, 5.0]},
        "decode_ms": {"median": 1.0, "raw": [1.0, 1.5]},
        "vision_ms": {"median": 0.5, "raw": [0.5]},
        "pruner_ms": None,
    }
    track.log(RECORD | {"latency": latency}, SAMPLES, sweep="mine", directory=tmp_path)
    found = logged(tmp_path)
    bins, values = (found[f"histogram/prefill_ms/{key}"] for key in ("bins", "values"))
    assert len(bins) == 65 and (bins[0], bins[-1]) == (1.0, 5.0)
    assert [values[i] for i in (0, 16, 63)] == [1, 2, 1] and sum(values) == 4
    assert sum(found["histogram/decode_ms/values"]) == 2 and sum(found["histogram/vision_ms/values"]) == 1
    assert not any(name.startswith("histogram/pruner_ms") for name in found)


def test_an_offline_run_holds_the_first_pictures_with_what_was_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (tmp_path / "images").mkdir()
    for number in range(12):
        grey = Image.new("RGB", (32, 32), (10 * number, 0, 0))
        grey.save(tmp_path / "images" / f"picture{number}.webp", lossless=True)
    samples = pd.DataFrame(
        {
            "question": [f"what is {number}?" for number in range(12)],
            "answer": "red",
            "score": 1.0,
            "pictures": [[f"picture{number}"] if number != 1 else ["not there"] for number in range(12)],
            "kept": [[[0, 3]] if number else None for number in range(12)],
            "words": [["what", "is"]] * 12,
        }
    )
    record = RECORD | {"tokens": {"patches": 4}}
    track.log(record, samples, sweep="mine", directory=tmp_path)
    found = logged(tmp_path)
    assert found["kept/captions"] == [f"what is {number}? → red (score 1.0)" for number in (0, *range(2, 9))]
    (folder,) = tmp_path.glob("wandb/offline-run-*/files")
    first, second = (np.asarray(Image.open(folder / name)) for name in found["kept/filenames"][:2])
    assert len(found["kept/filenames"]) == 8 and first.shape == (32, 32, 3) and first.max() < 10
    pale = second.mean(axis=2) > 150
    assert pale[2:14, 18:30].all() and pale[18:30, 2:14].all()
    assert not pale[2:14, 2:14].any() and not pale[18:30, 18:30].any()
    (table,) = folder.glob("media/table/*.table.json")
    held = json.loads(table.read_text())
    assert held["data"][2] == ["what is 2?", "red", 1.0, '["picture2"]', "[[0, 3]]", '["what", "is"]']
    assert held["data"][0][4] is None


def test_samples_of_two_pictures_show_both_and_patches_of_no_square_none(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "ab":
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / f"{name}.webp")
    samples = pd.DataFrame({"question": "?", "answer": "", "score": 1.0, "pictures": [["a", "b"]] * 12, "kept": None})
    shown = [track._pictures({"tokens": {"patches": n}}, samples, tmp_path / "images") for n in (4, 5, 0)]
    assert [len(each.get("kept", [])) for each in shown] == [2 * track.PICTURED, 0, 0]


def test_pictures_as_the_store_gives_them_back(tmp_path):
    frame = pd.DataFrame({"kept": [[[1, 2], [3]], None], "words": [["a"], []]})
    frame.to_parquet(tmp_path / "samples.parquet")
    plain = track._plain(pd.read_parquet(tmp_path / "samples.parquet"))
    assert plain.to_numpy().tolist() == [["[[1, 2], [3]]", '["a"]'], [None, "[]"]]


def test_the_report_is_an_artifact_of_a_run_of_the_sweep(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    reports = tmp_path / "reports"
    (reports / "mine").mkdir(parents=True)
    files = ("mine.md", "mine.html", "mine.json", "mine/accuracy.png")
    for name in (*files, "mine.other", "other.md"):
        (reports / name).write_text(f"this is {name}")
    track.log_report(reports / "mine.md", sweep="mine", directory=tmp_path / "results")
    (run,) = [record.run for record in records(tmp_path / "results") if record.HasField("run")]
    assert (run.project, run.run_group, run.display_name) == ("vtbench", "mine", "report")
    ((name, contents),) = artifacts(tmp_path / "results").items()
    assert name == "report-mine" and contents.keys() == set(files)
    assert [Path(contents[file]).read_text() for file in files] == [f"this is {file}" for file in files]
    assert all(Path(path).is_relative_to(tmp_path / "results" / "wandb") for path in contents.values())


def test_a_run_holds_no_key(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    keys = {"WANDB_API_KEY": "0a1b2c3d4e" * 4, "HF_TOKEN": "hf_0123456789", "OPENAI_API_KEY": "sk-0123456789"}
    for name, key in keys.items():
        monkeypatch.setenv(name, key)
    track.log(RECORD, SAMPLES, sweep="mine", directory=tmp_path)
    assert records(tmp_path)
    held = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert held and not any(key.encode() in content for key in keys.values() for content in held)


def test_disabled_does_nothing_at_all(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(track.wandb, "init", None)
    track.log(RECORD, SAMPLES, sweep="mine", directory=tmp_path / "results")
    track.log_report(tmp_path / "mine.md", sweep="mine", directory=tmp_path / "results")
    assert list(tmp_path.iterdir()) == [] and caplog.records == []


@pytest.fixture(autouse=True)
def mode(monkeypatch) -> None:
    """What a test leaves in the environment goes with it."""
    monkeypatch.setenv("WANDB_MODE", "offline")


def wait_for_its_end(*_: object) -> pd.DataFrame:
    """Wait by W&B's own handle, which else would find out only when it is collected, as a warning of any later test."""
    track.wandb.setup().ensure_service()._proc.join()  # type: ignore[union-attr]
    return SAMPLES


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_wandb_whose_process_is_killed_costs_one_warning(tmp_path, monkeypatch, caplog, when):
    def kill(*_: object) -> pd.DataFrame:
        (process,) = [each for each in psutil.Process().children() if each.name() == "wandb-core"]
        process.kill()
        return wait_for_its_end()

    track.log(RECORD, SAMPLES, sweep="mine", directory=tmp_path)
    if when == "before":
        kill()
    else:
        monkeypatch.setattr(track, "_plain", kill)
    track.log(RECORD, SAMPLES, sweep="mine", directory=tmp_path)
    track.log(RECORD, SAMPLES, sweep="mine", directory=tmp_path)
    (warning,) = [record.getMessage() for record in caplog.records if record.name == track.log_.name]
    assert warning.startswith("W&B did not take trial 0123456789abcdef: ") and warning.endswith(" is disabled")


def test_a_wandb_that_cannot_be_reached_costs_one_warning_and_goes_on_offline(tmp_path, monkeypatch, caplog):
    for name, value in {"MODE": "online", "BASE_URL": "http://127.0.0.1:9", "API_KEY": "0" * 40}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setattr(track, "REACH", 1.0)
    for _ in range(3):
        track.log(RECORD, SAMPLES, sweep="mine", directory=tmp_path)
    (warning,) = [record.getMessage() for record in caplog.records if record.name == track.log_.name]
    assert warning.startswith("W&B did not take trial 0123456789abcdef: ") and warning.endswith(" is offline")
    assert len([*(tmp_path / "wandb").glob("offline-run-*")]) == 2


def test_a_wandb_that_takes_nothing_is_ended_in_time(tmp_path, monkeypatch, caplog):
    """It hangs when the samples are there, so that what waits is `finish`."""
    table, teardown = track._plain, track.wandb.teardown

    def stop(samples: pd.DataFrame) -> pd.DataFrame:
        (process,) = [each for each in psutil.Process().children() if each.name() == "wandb-core"]
        process.suspend()
        return table(samples)

    monkeypatch.setattr(track, "_plain", stop)
    monkeypatch.setattr(track.wandb, "teardown", lambda: (wait_for_its_end(), teardown()))
    monkeypatch.setattr(track, "TAKE", 3.0)
    for _ in range(2):
        track.log(RECORD, SAMPLES, sweep="mine", directory=tmp_path)
    (warning,) = [record.getMessage() for record in caplog.records if record.name == track.log_.name]
    assert warning == ("W&B did not take trial 0123456789abcdef: it took more than 3 s; from here on it is disabled")


def test_a_failing_wandb_costs_a_warning_and_no_report(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (tmp_path / "mine.md").touch()

    def fail(run, artifact):
        raise OSError("no space")

    monkeypatch.setattr(track.wandb.Run, "log_artifact", fail)
    track.log_report(tmp_path / "mine.md", sweep="mine", directory=tmp_path)
    assert [record.getMessage() for record in caplog.records] == ["W&B did not take the report: no space"]
    assert track.wandb.run is None


def test_an_unreadable_picture_costs_a_warning_and_no_trial(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.webp").write_bytes(b"no picture")
    samples = SAMPLES.assign(pictures=[["x"], []], kept=None, question="?")
    track.log(RECORD | {"tokens": {"patches": 4}}, samples, sweep="mine", directory=tmp_path)
    assert len(caplog.records) == 1 and track.wandb.run is None


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
