"""In which order `vtbench run` says and writes what."""

import signal
import sys

import pytest

from harness import cli, sweep
from harness.spec import Trial, load_sweep
from harness.store import Result, Store
from harness.sweep import Outcome


@pytest.fixture
def trials(tmp_path, monkeypatch) -> list[Trial]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(sys, "argv", ["vtbench", "run", "x.yaml"])
    (tmp_path / "x.yaml").write_text("model: llava-1.5-7b\ntext_tokens: 8\nmethods: [full, {topk: {tokens: 64}}]\n")
    return load_sweep(tmp_path / "x.yaml").trials()


def test_that_it_stopped_is_said_before_the_records_are_read(tmp_path, trials, monkeypatch, capsys):
    said = []

    def stopped(trials, store, *_, **__):
        store.fail(trials[0], "no", "")
        return Outcome(stopped=signal.SIGTERM, dropped=1)

    monkeypatch.setattr(sweep, "run", stopped)
    monkeypatch.setattr(Store, "gather", lambda _: said.append(capsys.readouterr().err))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 128 + signal.SIGTERM
    assert said == ["vtbench: stopped: 0 trials done now, 1 dropped as they ran, 2 left; the same command goes on\n"]
    assert (tmp_path / "results" / "x" / "sweep.json").exists()


def test_a_sweep_is_described_with_its_first_trial(tmp_path, trials, monkeypatch):
    described = tmp_path / "results" / "x" / "sweep.json"

    def one(trials, store, *_, after, **__):
        assert not described.exists()
        result = Result({"id": trials[0].id, "trial": trials[0].model_dump(mode="json"), "scores": None}, None)
        store.write(trials[0], result)
        after(result)
        assert described.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.track.log", lambda *_, **__: None)
    monkeypatch.setattr(sweep, "run", one)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130


def test_what_was_stopped_before_a_trial_ended_leaves_nothing(tmp_path, trials, monkeypatch):
    monkeypatch.setattr(sweep, "run", lambda *_, **__: Outcome(stopped=signal.SIGINT))
    with pytest.raises(SystemExit):
        cli.main()
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]
