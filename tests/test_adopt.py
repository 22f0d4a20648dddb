"""A sweep under another name takes over what the first has done."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from harness import cli
from harness.adopt import adopt
from harness.remote import opened
from harness.spec import Trial, load_sweep
from harness.store import Result, Store
from harness.trial import Warm, run

SAMPLES = pd.DataFrame(
    {
        "task": ["t", "t"],
        "doc_id": [0, 1],
        "score": [1.0, None],
        "pictures": [["a"], ["b", "not shown"]],
        "kept": [[[0, 3]], None],
    }
)
COSTS = "model: llava-1.5-7b\ntext_tokens: 8\nmethods: [full, {topk: {tokens: [16, 64]}}]\n"


@pytest.fixture
def trials(tmp_path) -> list[Trial]:
    path = tmp_path / "x.yaml"
    path.write_text("model: m\ntasks: t\ntokens: 64\nmethods: [full, topk, {ivtp: {group: [2, 3]}}]\n")
    return load_sweep(path).trials()


@pytest.fixture
def stores(tmp_path) -> tuple[Store, Store]:
    (tmp_path / "out" / "new").mkdir(parents=True)
    return Store(tmp_path / "out" / "old"), Store(tmp_path / "out" / "new")


def record(trial: Trial) -> dict[str, object]:
    return {"schema": 1, "id": trial.id, "trial": trial.model_dump(mode="json"), "scores": {"t": {"exact_match": 1.0}}}


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_missing_here_and_done_there_is_copied_to_the_byte(stores, trials):
    old, new = stores
    for trial in trials[:2]:
        old.write(trial, Result(record(trial), SAMPLES, {"a": b"1", "b": b"2", "c": b"of another sample"}))
    old.fail(trials[2], "no", "")
    new.fail(trials[0], "no", "")
    assert adopt(trials, new) == {old.folder: 2}
    wanted = {name for name in files(old.folder) if trials[2].id not in name and name != "images/c.webp"}
    assert files(new.folder) == {name: files(old.folder)[name] for name in wanted}
    assert adopt(trials, new) == {}


def test_each_trial_comes_once(tmp_path, stores, trials):
    third = Store(tmp_path / "out" / "third")
    for store, mine in zip((*stores, third), (trials[:2], trials[:1], trials[1:]), strict=True):
        for trial in mine:
            store.write(trial, Result(record(trial), SAMPLES))
    assert adopt(trials, stores[1]) == {stores[0].folder: 1, third.folder: 2}


def test_nothing_missing_is_no_look(stores, trials, monkeypatch):
    for store in stores:
        store.write(trials[0], Result(record(trials[0]), SAMPLES))
    monkeypatch.setattr("harness.adopt._names", lambda folder: pytest.fail(f"looked into {folder}"))
    assert adopt(trials[:1], stores[1]) == {}


def without_record(folder: Path) -> None:
    (folder / "record.json").unlink()


def half_a_record(folder: Path) -> None:
    (folder / "record.json").write_bytes((folder / "record.json").read_bytes()[:-40])


def of_another_trial(folder: Path) -> None:
    (folder / "record.json").write_text('{"id": "another", "scores": null}')


def infinite(folder: Path) -> None:
    (folder / "record.json").write_text(json.dumps({"id": folder.name, "scores": None, "mean": float("inf")}))


def without_samples(folder: Path) -> None:
    (folder / "samples.parquet").unlink()


def half_of_its_samples(folder: Path) -> None:
    (folder / "samples.parquet").write_bytes((folder / "samples.parquet").read_bytes()[:-40])


def pictures_that_are_none(folder: Path) -> None:
    SAMPLES.assign(pictures=[[["a"]], [["b"]]]).to_parquet(folder / "samples.parquet")


@pytest.mark.parametrize(
    "spoil",
    [
        without_record,
        half_a_record,
        of_another_trial,
        infinite,
        without_samples,
        half_of_its_samples,
        pictures_that_are_none,
    ],
)
def test_what_is_half_written_or_damaged_is_left(stores, trials, spoil):
    old, new = stores
    for trial in trials[:2]:
        old.write(trial, Result(record(trial), SAMPLES))
    spoil(old.folder / trials[0].id)
    (old.folder.parent / "a file").touch()
    assert adopt(trials, new) == {old.folder: 1}
    assert new.done(trials[1].id) and not new.done(trials[0].id)


def test_a_picture_s_name_leads_nowhere_else(tmp_path, stores, trials):
    old, new = stores
    (tmp_path / "secret.webp").write_bytes(b"1")
    old.write(trials[0], Result(record(trials[0]), SAMPLES.assign(pictures=[["../../../secret"], None])))
    assert adopt(trials, new) == {old.folder: 1}
    assert not (new.folder / "images").exists()


def test_at_a_url_nothing_is_taken_over(trials):
    with opened("memory://adopt", "old") as old:
        old.write(trials[0], Result(record(trials[0]), SAMPLES))
    with opened("memory://adopt", "new") as new:
        assert adopt(trials, new) == {}


def test_a_sweep_of_another_name_runs_no_cell_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in ("x", "y"):
        Path(f"{name}.yaml").write_text(COSTS)
    old = Store(Path("results/y"))
    for trial in load_sweep(Path("y.yaml")).trials():
        old.write(trial, run(trial, Warm("cpu")))
    monkeypatch.setattr(sys, "argv", ["vtbench", "run", "x.yaml"])
    summary = "x: 3 trials, 0 done now, 3 before, 0 failed\nreport: reports/x.md\n"
    for taken in ("x: 3 of 3 trials taken over from results/y\n", ""):
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code, capsys.readouterr().out) == (0, taken + summary)
    report = json.loads(Path("reports/x.json").read_text())
    assert all(trial.id in json.dumps(report) for trial in load_sweep(Path("x.yaml")).trials())
