import csv
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import lmms_eval
import pytest

from harness import papers
from harness.papers import AVERAGED, BENCHMARKS, TABLES, TITLES, read_figures
from harness.report.tables import text as as_markdown
from harness.spec import load_sweep

ROOT = Path(__file__).parents[1]
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
TASKS = Path(lmms_eval.__file__).parent / "tasks"
PUBLISHED = (ROOT / "results/published/README.md").read_text()
LISTED = (ROOT / "sweeps/README.md").read_text()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_published_rows_of_a_sweep_are_those_of_its_tables(path):
    sweep = load_sweep(path)
    published = sweep.axes.published
    if published:
        printed = papers.printed(published, costs=bool(sweep.axes.text_tokens))
        names = {figure.row for figures in printed.values() for figure in figures}
        assert names == set(published.rows) | set(published.missing)


def test_every_table_of_the_papers_has_a_sweep_or_says_what_it_needs():
    there = {
        (published.paper, table)
        for path in SWEEPS
        if (published := load_sweep(path).axes.published)
        for table in published.tables
    }
    assert set(TABLES) == {(figure.paper, figure.table) for figure in read_figures()}
    assert {place for place, table in TABLES.items() if not table.needs} == there


def test_every_sweep_is_in_the_list_of_sweeps():
    assert re.findall(r"^\| \[(\w+\.yaml)\]\(\1\)", LISTED, re.M) == sorted(
        (path.name for path in SWEEPS), key=lambda name: LISTED.index(f"[{name}]")
    )
    needing = LISTED.partition("Not there yet:")[2].partition("\n## ")[0]
    needs = {(place, table.needs) for place, table in TABLES.items() if table.needs}
    assert needs <= {found for line in needing.splitlines() for found in named(line)}


def named(line: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield the tables that a line of the list names, as `TABLES` does, each with the line's reason."""
    for paper, title in TITLES.items():
        if line.startswith(f"| {title} "):
            tables, why = (cell.strip() for cell in line.strip("| ").split("|"))
            main, _, supplement = tables.removeprefix(title).partition(":")[0].partition("supplement")
            for number in re.findall(r"\b(?:\d+|B)\b", main):
                yield (paper, number), why
            for number in re.findall(r"\b\d+\b", supplement):
                yield (paper, f"S{number}"), why


@pytest.mark.parametrize("number", [3, 4, 5])
def test_every_figure_of_ivtp_s_results_has_a_sweep(number):
    (name,) = re.findall(rf"^\| \[(\w+)\.yaml\]\(\1\.yaml\) \| IVTP Figure {number}: ", LISTED, re.M)
    assert name in {path.stem for path in SWEEPS}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_has_its_report_or_needs_a_gpu(path):
    sweep = load_sweep(path)
    (cell,) = re.findall(rf"^\| \[{path.name}\]\({path.name}\) \|.*\| (.*) \|$", LISTED, re.M)
    if sweep.axes.resources.gpus:
        assert cell == "none: it needs a GPU"
        return
    assert cell == f"[`{sweep.name}`](../reports/{sweep.name}.md)"
    lines = (ROOT / f"reports/{sweep.name}.md").read_text(encoding="utf-8").splitlines()
    assert lines[:4] == [f"# {as_markdown(sweep.name)}", "", as_markdown(sweep.axes.description), ""]
    held = json.loads((ROOT / f"reports/{sweep.name}.json").read_text(encoding="utf-8"))
    assert held["sweep"] == sweep.name and held["state"]["asked"] == len(sweep.trials())


@pytest.mark.parametrize("path", [path for path in SWEEPS if path.stem.startswith("ivtp")], ids=lambda path: path.stem)
def test_a_sweep_of_a_table_is_small_and_names_the_cluster_s_model_and_tasks(path):
    sweep, text = load_sweep(path), path.read_text()
    if not sweep.axes.tasks:
        return
    assert sweep.axes.model == ("pocket",) and max(sweep.axes.limit) <= 60 and len(sweep.trials()) <= 40
    assert re.search(r"# llava-hf/llava-1\.5-(7b|13b)-hf on a cluster", text)
    commented = re.search(r"# tasks: \[(.*?)\]", text, re.S)[1].replace("#", "")
    assert [name.strip() for name in commented.split(",")] == [BENCHMARKS[metric].task for metric in AVERAGED]


@cache
def tasks() -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in TASKS.rglob("*.yaml")}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_a_task_and_metric_of_lmms_eval(name):
    benchmark = BENCHMARKS[name]
    heads = re.compile(rf"^task: *[\"']?{re.escape(benchmark.task)}[\"']?\s*$", re.M)
    ((path, text),) = [(path, text) for path, text in tasks().items() if heads.search(text)]
    included = re.search(r"^include: *(\S+)", text, re.M)
    text += (path.parent / included[1]).read_text(encoding="utf-8") if included else ""
    assert re.search(rf"- metric: {benchmark.metric}\s*$", text, re.M)


def test_the_papers_benchmarks_are_documented_as_the_code_has_them():
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| `(\w+)` \| `(\w+)` \| ([\d.]+) \| (.*?) ?\|$", PUBLISHED, re.M)
    assert rows == [(name, b.title, b.task, b.metric, f"{b.scale:g}", b.note) for name, b in BENCHMARKS.items()]


def test_every_metric_and_column_of_the_figures_is_documented():
    named = set(re.findall(r"`(\w+…?)`", PUBLISHED))
    families = tuple(name[:-1] for name in named if name.endswith("…"))
    for figure in read_figures():
        assert figure.metric in named or figure.metric.startswith(families), figure.metric
    for file in ("papers.csv", "changes.csv"):
        with (papers.PUBLISHED / file).open(encoding="utf-8", newline="") as lines:
            assert set(next(csv.reader(lines))) <= named and file in PUBLISHED
