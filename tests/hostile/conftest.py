import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import cli

Refused = Callable[..., str]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder to stand in, without the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def refused(here, monkeypatch, capsys) -> Refused:
    """Run vtbench, which must refuse in one line and leave the folder as it was; return the line."""

    def run(*arguments: object) -> str:
        before = sorted(map(str, here.rglob("*")))
        monkeypatch.setattr(sys, "argv", ["vtbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert caught.value.code == 2 and out == "", err
        assert err.startswith("vtbench: ") and err.count("\n") == 1 and err[:-1].isprintable() and len(err) < 2100
        assert sorted(map(str, here.rglob("*"))) == before
        return err.removeprefix("vtbench: ").removesuffix("\n")

    return run
