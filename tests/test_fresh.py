"""A report stays while it is newer than all that it is made of, and nothing that it needs is missing."""

import json
import os

import pytest

from harness.fresh import fresh_report

SHOWN = {"description": "", "trials": ["a", "b"]}


@pytest.fixture
def folders(tmp_path):
    results, reports = tmp_path / "results" / "grid", tmp_path / "reports"
    for path in (
        results / "sweep.json",
        results / "a" / "record.json",
        results / "b" / "record.json",
        results / "trials.parquet",
        *(reports / f"grid.{kind}" for kind in ("html", "json", "md")),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(SHOWN))
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


def test_so_does_later_code(folders):
    results, reports = folders
    for path in [*results.rglob("*.*"), *reports.iterdir()]:
        os.utime(path, (0, 0))
    assert fresh_report(results, SHOWN, reports) is None


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
