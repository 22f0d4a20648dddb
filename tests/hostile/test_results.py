"""Results folders that are not what a run leaves: `vtbench report` says so in one line and writes nothing.

`vtbench run` tells its outcome and writes the report of the other trials.
"""

import json
import os
import pickle
import re
import sys
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import yaml

from harness import cli
from harness.spec import load_sweep
from harness.store import Store
from harness.trial import Warm, run
from tests.hostile.test_folders import Evil

ALIASES = "".join(f"  {b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in pairwise("abcdefghi"))
BOMB = "parameters:\n  a: &a [l, l, l, l, l, l, l, l, l, l]\n" + ALIASES
FAILURE = {"error": "no", "traceback": "", "when": "2026-11-21T00:00:00+00:00"}


@pytest.fixture
def trial(here) -> Path:
    """The folder of a trial that failed."""
    (here / "x.yaml").write_text("model: pocket\ntasks: pocketvqa\ntokens: 64\nmethods: topk\n")
    (trial,) = load_sweep(here / "x.yaml").trials()
    folder = here / "results" / "x" / trial.id
    folder.mkdir(parents=True)
    (folder / "trial.yaml").write_text(yaml.safe_dump(trial.model_dump(mode="json")))
    (folder / "failure.json").write_text(json.dumps(FAILURE))
    return folder


def bomb(trial: Path) -> None:
    text = (trial / "trial.yaml").read_text()
    (trial / "trial.yaml").write_text(re.sub(r"parameters:\n(  .*\n)*", BOMB, text))


def object_of_python(trial: Path) -> None:
    (trial / "trial.yaml").write_text("model: !!python/object/apply:os.system [touch owned]\n")


def pipe(trial: Path) -> None:
    (trial / "trial.yaml").unlink()
    (trial / "trial.yaml").symlink_to("/dev/zero")


def no_json(trial: Path) -> None:
    (trial / "record.json").write_text('{"schema": 1')


def deep(trial: Path) -> None:
    (trial / "record.json").write_text("[" * 100_000)


def device(trial: Path) -> None:
    (trial / "record.json").symlink_to("/dev/zero")


def fifo(trial: Path) -> None:
    os.mkfifo(trial / "record.json")


def numbers_that_json_has_not(trial: Path) -> None:
    (trial / "record.json").write_text('{"schema": NaN}')


def of_another_trial(trial: Path) -> None:
    (trial / "record.json").write_text(json.dumps({"schema": 1, "id": "../../x"}))


def pickled_samples(trial: Path) -> None:
    (trial / "record.json").write_text("{}")
    (trial / "samples.parquet").write_bytes(pickle.dumps(Evil()))


def not_utf_8(trial: Path) -> None:
    (trial / "failure.json").write_bytes(b"\xff\xfe")


@pytest.mark.parametrize(
    "spoil",
    [
        bomb,
        object_of_python,
        pipe,
        no_json,
        deep,
        numbers_that_json_has_not,
        of_another_trial,
        pickled_samples,
        not_utf_8,
        device,
        fifo,
    ],
)
def test_a_spoilt_trial(here, refused, trial, spoil):
    spoil(trial)
    line = refused("report", "x")
    assert line.startswith(f"results/x: no results to report; {trial.name} ")
    assert not (here / "owned").exists()


def test_a_report_that_would_take_the_results_place(trial, refused):
    for command in (("report", "x", "--out", "results"), ("run", "x.yaml", "--reports", "results")):
        assert "has the sweep's results; a report needs another folder" in refused(*command)
    assert (trial / "failure.json").exists()


@pytest.mark.parametrize("name", ["nothing", "..", "../..", "/etc", "a\nb", "x/y/z", "\x1b[31m"])
def test_a_name_that_no_sweep_has(trial, refused, name):
    assert ": no results to report" in refused("report", name)


def a_list(trial: Path) -> None:
    (trial / "record.json").write_text("[]")


def a_list_of_failures(trial: Path) -> None:
    (trial / "failure.json").write_text("[]")


def a_deep_failure(trial: Path) -> None:
    (trial / "failure.json").write_text("[" * 100_000)


def a_number_of_400_digits(trial: Path) -> None:
    (trial / "record.json").write_text(json.dumps({"id": trial.name, "scores": 10**400}))


def without_its_yaml(trial: Path) -> None:
    (trial / "trial.yaml").unlink()


def hostile_words(trial: Path) -> None:
    (trial / "failure.json").write_text(json.dumps(FAILURE | {"error": "\x1b]0;title\x07\n" + "x" * 10_000}))


def half_a_character(trial: Path) -> None:
    (trial / "failure.json").write_text(json.dumps(FAILURE | {"error": "\udcff"}))


COSTS = "model: llava-1.5-7b\ntext_tokens: 8\nmethods: [full, {topk: {tokens: 64}}]\n"
UNREADABLE = [no_json, deep, a_list, numbers_that_json_has_not, of_another_trial, pickled_samples]
UNREADABLE += [device, fifo]
FAILED = [a_list_of_failures, a_deep_failure, not_utf_8, without_its_yaml, hostile_words, half_a_character, bomb, pipe]


@pytest.mark.parametrize("spoil", [*UNREADABLE, *FAILED])
def test_a_run_tells_its_outcome_beside_a_spoilt_trial(here, monkeypatch, capsys, spoil):
    (here / "x.yaml").write_text(COSTS)
    whole, spoilt = load_sweep(here / "x.yaml").trials()
    store = Store(here / "results" / "x")
    store.write(whole, run(whole, Warm("cpu")))
    store.fail(spoilt, "no", "")
    spoil(store.folder / spoilt.id)
    monkeypatch.setattr(sys, "argv", ["vtbench", "run", "x.yaml"])
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        summary, told, report = out.splitlines()
        before, word, file = (2, "unreadable", "record") if spoil in UNREADABLE else (1, "failed", "failure")
        assert (ended.value.code, err, report) == (1, "", "report: reports/x.md")
        assert summary.startswith(f"x: 2 trials, 0 done now, {before} before, 0 failed")
        assert told.startswith(f"{word}: topk 64 on 8 text tokens (results/x/{spoilt.id}/{file}.json): ")
        assert told.isprintable() and len(told) < 700
        assert whole.id in list(pd.read_parquet(store.folder / "trials.parquet").id)
        assert (here / "reports" / "x.md").exists()


def test_what_no_table_can_hold_costs_neither_outcome_nor_report(here, monkeypatch, capsys):
    (here / "x.yaml").write_text(COSTS)
    whole, spoilt = load_sweep(here / "x.yaml").trials()
    store = Store(here / "results" / "x")
    store.write(whole, run(whole, Warm("cpu")))
    store.fail(spoilt, "no", "")
    a_number_of_400_digits(store.folder / spoilt.id)
    monkeypatch.setattr(sys, "argv", ["vtbench", "run", "x.yaml"])
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err) == (
        0,
        "x: 2 trials, 0 done now, 2 before, 0 failed\nreport: reports/x.md\n",
        "",
    )


def test_resources_that_nobody_has_leave_nothing(refused, here):
    (here / "x.yaml").write_text(COSTS + "resources: {gpus: 1000}\n")
    assert refused("run", "x.yaml").startswith("x.yaml:resources.gpus: 1000 is not possible; Ray has ")
    (here / "results").mkdir()
    refused("run", "x.yaml")
