"""A report stays while it is newer than all that it is made of, and nothing that it needs is missing."""

import json
import os

import pytest

from harness import fresh
from harness.errors import VtbenchError
from harness.fresh import check_place, fresh_report

SHOWN = {"description": "", "trials": ["a", "b"]}


@pytest.fixture
def folders(tmp_path):
    results, reports = tmp_path / "results" / "grid", tmp_path / "reports"
    for path, content in (
        (results / "sweep.json", SHOWN),
        *((results / trial / "record.json", {"provenance": {"started": f"at {trial}"}}) for trial in "ab"),
        (results / "trials.parquet", None),
        (reports / "grid.html", None),
        (reports / "grid.json", {"trials": {trial: {"started": f"at {trial}"} for trial in "ab"}}),
        (reports / "grid.md", None),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return results, reports


def later(path, than):
    moment = than.stat().st_mtime_ns + 1
    os.utime(path, ns=(moment, moment))


def test_what_is_newer_than_its_results_stays(folders):
    results, reports = folders
    assert fresh_report(results, {**SHOWN, "trials": ("a", "b")}, reports) == reports / "grid.md"


@pytest.mark.parametrize("name", ["sweep.json", "b/record.json", "b/failure.json"])
def test_a_later_result_makes_it_old(folders, name):
    results, reports = folders
    (results / name).touch()
    later(results / name, than=reports / "grid.md")
    assert fresh_report(results, SHOWN, reports) is None


def test_so_does_a_table_that_lacks_the_latest_results(folders):
    results, reports = folders
    later(results / "b" / "record.json", than=results / "trials.parquet")
    later(reports / "grid.md", than=results / "b" / "record.json")
    assert fresh_report(results, SHOWN, reports) is None


@pytest.mark.parametrize(
    "name",
    ["panels.py", "report/page.css", "report/page.html.jinja", "report/figures/layers.py", "published/papers.csv"],
)
def test_so_do_later_code_and_the_papers_later_figures(folders, tmp_path, monkeypatch, name):
    results, reports = folders
    monkeypatch.setattr(fresh, "CODE", tmp_path / "harness")
    monkeypatch.setattr(fresh, "PUBLISHED", tmp_path / "harness" / "published")
    path = tmp_path / "harness" / name
    for each in (path, path.with_name("weights.json"), path.parent / "__pycache__" / "x.pyc"):
        each.parent.mkdir(parents=True, exist_ok=True)
        each.touch()
        later(each, than=reports / "grid.md")
    os.utime(path, (0, 0))
    assert fresh_report(results, SHOWN, reports) == reports / "grid.md"
    later(path, than=reports / "grid.html")
    assert fresh_report(results, SHOWN, reports) is None


def test_the_code_and_figures_that_it_looks_at_are_there():
    names = {path.name for path in fresh._sources()}
    assert {"papers.csv", "changes.csv", "papers.py", "findings.py", "panels.py", "shown.py", "tables.py"} <= names
    assert {"page.css", "page.html.jinja", "page_samples.js"} <= names


def test_a_figure_that_is_gone_makes_it_old(folders):
    results, reports = folders
    figure = reports / "grid" / "kept patches.png"
    figure.parent.mkdir()
    figure.touch()
    (reports / "grid.md").write_text("![kept \\[a\\]](grid/kept%20patches.png)\n![b](other/no.png) [c](grid)\n")
    assert fresh_report(results, SHOWN, reports) == reports / "grid.md"
    figure.unlink()
    assert fresh_report(results, SHOWN, reports) is None


def test_so_does_later_code(folders):
    results, reports = folders
    for path in [*results.rglob("*.*"), *reports.iterdir()]:
        os.utime(path, (0, 0))
    assert fresh_report(results, SHOWN, reports) is None


def test_a_report_of_the_same_sweep_in_another_folder_is_not_this_ones(folders):
    results, reports = folders
    told = json.loads((reports / "grid.json").read_text())
    told["trials"]["b"]["started"] = "at another time"
    (reports / "grid.json").write_text(json.dumps(told))
    assert fresh_report(results, SHOWN, reports) is None


@pytest.mark.parametrize("out", [".", "grid", "grid/a", ".."])
def test_a_report_never_takes_the_place_of_results(tmp_path, out):
    results = tmp_path / "grid" / "grid"
    (results / "a").mkdir(parents=True)
    (results / "a" / "record.json").write_text("{}")
    with pytest.raises(VtbenchError, match="has the sweep's results; a report needs another folder"):
        check_place(results, tmp_path / "grid" / out)
    assert (results / "a" / "record.json").exists()


def test_nor_that_of_what_no_report_wrote(folders):
    results, reports = folders
    (reports / "grid").mkdir()
    for name in ("layers.png", "1_cost.csv", "1_cost.tex"):
        (reports / "grid" / name).touch()
    check_place(results, reports)
    (reports / "grid" / "conftest.py").touch()
    with pytest.raises(VtbenchError, match="conftest\\.py, which no report wrote"):
        check_place(results, reports)


@pytest.mark.parametrize("shown", [{**SHOWN, "trials": ["a"]}, {**SHOWN, "description": "another"}])
def test_a_sweep_that_shows_something_else_needs_another(folders, shown):
    assert fresh_report(folders[0], shown, folders[1]) is None


@pytest.mark.parametrize("name", ["reports/grid.md", "reports/grid.html", "results/grid/sweep.json"])
def test_what_is_not_there_is_not_fresh(folders, name):
    (folders[1].parent / name).unlink()
    assert fresh_report(folders[0], SHOWN, folders[1]) is None


def test_what_a_crash_left_is_not_fresh(folders):
    (folders[0] / "sweep.json").write_text("{")
    assert fresh_report(folders[0], SHOWN, folders[1]) is None
