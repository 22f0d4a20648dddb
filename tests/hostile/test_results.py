"""Results folders that are not what a run leaves: `vtbench report` says so in one line and writes nothing."""

import json
import pickle
import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from harness.spec import load_sweep
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
    ],
)
def test_a_spoilt_trial(here, refused, trial, spoil):
    spoil(trial)
    line = refused("report", "x")
    assert line.startswith(f"results/x: no results to report; {trial.name} ")
    assert not (here / "owned").exists()


@pytest.mark.parametrize("name", ["nothing", "..", "../..", "/etc", "a\nb", "x/y/z", "\x1b[31m"])
def test_a_name_that_no_sweep_has(trial, refused, name):
    assert ": no results to report" in refused("report", name)
