"""What the README shows works as it is shown."""

import doctest
import re
from pathlib import Path

import pytest

from harness.spec import load_sweep
from methods import METHODS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return found


def test_the_library_example_runs(capsys):
    exec(compile(block("python"), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    vit, llm = [[576, 352, 352, 352, 128, 128, 128, 128]], [[128, 96, 96, 96, 64, 64]]
    assert f"Realised(vit={vit}, llm={llm})" in printed
    assert printed.startswith("above\n")
    assert "[Guide(question='is the orange square above or below the blue triangle?', spans=" in printed


def test_the_schedule_example_says_what_it_prints():
    example = doctest.DocTestParser().get_doctest(block("pycon"), {}, "README.md", None, 0)
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_sweep_example_is_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(block("yaml"), encoding="utf-8")
    assert len(load_sweep(path).trials()) == 1 + 2 * 4 + 4 * 9


def test_every_method_is_in_the_table():
    table = README.partition("## Methods\n")[2].partition("## ")[0]
    assert set(METHODS) == set(re.findall(r"`([a-z+-]+)`(?! without)", table)) - {"tokens"}


@pytest.mark.parametrize("link", re.findall(r"\]\(([^):#]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
