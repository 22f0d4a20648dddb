import random
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import cli
from tests.faults.killing import seeded


@pytest.fixture(scope="module")
def draw() -> random.Random:
    return seeded()


@pytest.fixture
def vtbench(tmp_path: Path, monkeypatch, capsys) -> Callable[..., tuple[int, list[str]]]:
    """Run a sweep x by `vtbench run` in this process, from out/x to reports/x.md; return its code and its lines."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    file = tmp_path / "x.yaml"

    def run(content: str, *more: str) -> tuple[int, list[str]]:
        file.write_text(content)
        places = ["--out", str(tmp_path / "out"), "--reports", str(tmp_path / "reports")]
        monkeypatch.setattr("sys.argv", ["vtbench", "run", str(file), *places, *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().out.splitlines()

    return run
