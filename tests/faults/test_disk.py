"""A disk that is full: the run says so once and stops, nothing half-written looks done, and later it goes on."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import claim, cli
from harness.spec import load_sweep
from harness.store import Store
from tests.faults.driver import answer


@pytest.fixture
def small(tmp_path) -> Iterator[Path]:
    """Yield a folder of its own file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, *, free: int) -> Path:
    """Fill the file system but for so many bytes."""
    path = folder / "filling"
    there = os.statvfs(folder)
    path.write_bytes(bytes(there.f_bavail * there.f_frsize - free))
    return path


def test_what_cannot_be_stored_is_not_done(tmp_path, small):
    file = tmp_path / "x.yaml"
    file.write_text("model: a\ntasks: t\ntokens: [4, 9]\nmethods: [full, topk]\n")
    trials, store = load_sweep(file).trials(), Store(small / "x")
    store.write(trials[0], answer(trials[0]))
    filling = fill(small, free=8192)
    with pytest.raises(OSError, match="No space left on device"):
        for trial in trials[1:]:
            store.write(trial, answer(trial))
    done = [trial for trial in trials if store.done(trial.id)]
    assert len(done) < 3
    for trial in done:
        samples = store.samples(trial.id)
        assert samples is not None and samples.equals(answer(trial).samples)
    assert not [path for path in small.rglob(".*")]
    filling.unlink()
    with claim.Claim(store.folder):
        store.tidy()
        for trial in trials:
            store.write(trial, answer(trial))
    assert len(store.records()) == 3


def test_a_claim_that_cannot_be_written_leaves_nothing(small):
    (small / "x").mkdir()
    filling = fill(small, free=0)
    with pytest.raises(OSError, match="No space left on device"), claim.Claim(small / "x"):
        pass
    filling.unlink()
    with claim.Claim(small / "x") as held:
        assert held.held


@pytest.mark.faults
def test_the_command_says_it_once_and_goes_on_when_there_is_room(tmp_path, small, monkeypatch, capsys):
    """The whole of `vtbench run`, with trials that only count."""
    file = tmp_path / "x.yaml"
    file.write_text("model: llava-1.5-7b\ntext_tokens: [8, 16, 32, 64]\ntokens: 64\nmethods: [full, topk]\n")
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def vtbench() -> int:
        command = ["vtbench", "run", str(file), "--out", str(small), "--reports", str(tmp_path / "reports")]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    filling = fill(small, free=20_000)
    assert vtbench() == 1
    said = capsys.readouterr().err
    assert said.count("no space left on device") == 1 == said.count("\n"), said
    assert said.startswith(f"vtbench: {small}/x") and said.endswith("once that is mended the same command goes on\n")
    done = len(Store(small / "x").records())
    assert done < 8 and not [path for path in small.rglob(".*")]
    filling.unlink()
    assert vtbench() == 0
    assert f"x: 8 trials, {8 - done} done now" in capsys.readouterr().out
    assert len(Store(small / "x").records()) == 8
