"""What the README shows works as it is shown."""

import re
from pathlib import Path

import pytest

from harness.spec import load_sweep

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return found


def test_the_library_example_runs(capsys):
    exec(compile(block("python"), "README.md", "exec"), {})
    assert (
        "Realised(vit=[[512, 448, 384, 320, 256, 192, 128, 64]], llm=[[64, 64, 64, 64, 64, 64]])"
        in capsys.readouterr().out
    )


def test_the_sweep_example_is_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(block("yaml"), encoding="utf-8")
    assert len(load_sweep(path).trials()) == 1 + 2 * 4 + 4 * 9


@pytest.mark.parametrize("link", re.findall(r"\]\(([^):#]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
