import json
import os
import subprocess
import sys

import pytest
import yaml
from matplotlib.axes import Axes

from harness import report
from harness.errors import VtbenchError
from harness.shown import Shown
from tests.report.scored import TASKS, add, amend, cells, rewrite, written


def test_the_table_has_the_papers_layout(sweep, tmp_path):
    markdown = written(sweep, tmp_path, Shown(description="my <words>"))
    assert (tmp_path / "reports" / "mine.md").exists()
    header = next(line for line in markdown.splitlines() if line.startswith("| Method"))
    assert [cell.strip() for cell in header.strip("|").split("|")][:6] == [
        "Method",
        "count",
        "where",
        "Avg.",
        "95 %",
        "Avg. rate",
    ]
    assert "| **64 tokens** |" in markdown and "| **16 tokens** |" in markdown and "my &lt;words&gt;" in markdown
    full = cells(markdown, "full")
    assert full[5:12] == ["100.0 %", "1.576", "12.3 (12.0–13.0)", "4.0", "", "1.5", "1.769"]
    assert "| 4.0 | −0.3 | 1.5 |" in next(line for line in markdown.splitlines() if line.startswith("| topk"))
    assert "says nothing about LLaVA-1.5" in markdown or "say nothing about LLaVA-1.5" in markdown


def test_costs_name_their_saving_and_what_was_not_measured(sweep, tmp_path):
    markdown = written(sweep, tmp_path)
    topk = [line for line in markdown.splitlines() if line.startswith("| topk |")]
    assert "1.064 (−32.5)" in topk[0] and "1.016 (−35.5)" in topk[1]
    assert "not measured" in next(line for line in reversed(markdown.splitlines()) if line.startswith("| ivtp (group"))


def test_what_equals_the_full_model_bears_the_sign_and_what_differs_does_not(sweep, tmp_path):
    lines = written(sweep, tmp_path).splitlines()
    (same,) = [line for line in lines if line.startswith("| ivtp (group 3, threshold 0.2)") and "12.3" in line]
    assert "≈" in same
    assert all("≈" not in line for line in lines if line.startswith("| topk |"))


def test_every_score_has_its_interval_in_a_table(sweep, tmp_path):
    markdown = report.write(sweep, tmp_path / "reports").read_text()
    part = markdown.partition("## Scores with 95 % intervals")[2].partition("## ")[0]
    assert cells(part, "Method") == ["Method", "count", "where"]
    held = json.loads((tmp_path / "reports" / "mine.json").read_text())["rows"][0]["cells"]
    full = (held[f"score/{task}"] for task in TASKS)
    assert cells(part, "full")[1:] == [f"{each['value']:.1f} ({each['low']:.1f}–{each['high']:.1f})" for each in full]
    assert "| ivtp (group 3, threshold 0.2) |" in part and "does not make it sure" in part


def test_a_long_table_is_cut_and_says_where_the_rest_is(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(report.tables, "MOST_ROWS", 3)
    monkeypatch.setattr(report.tables, "MOST_SCORED", 4)
    markdown = report.write(sweep, tmp_path / "reports").read_text()
    main = markdown.partition("## Accuracy and cost")[2].partition("## ")[0]
    assert "\nThe first 3 of 5 rows; the JSON beside this report has all.\n" in main
    assert main.count("\n| topk") == 1 and "## Scores with" not in markdown


def test_failures_are_told_and_text_of_others_shows_as_text(sweep, tmp_path):
    markdown = written(sweep, tmp_path)
    assert "pooling 50 on pocketvqa: out of &lt;b&gt;memory&lt;/b&gt; \\| \\*bold\\*" in markdown
    assert "a &lt;b&gt; CPU" in markdown
    assert "8 done, 1 failed" in markdown


def test_failed_trials_that_differ_are_told_apart(sweep, tmp_path):
    for number, group in enumerate((1, 2, 10)):
        failed = sweep / f"{number:x}{'e' * 15}"
        failed.mkdir()
        trial = {"model": "pocket", "method": "dycoke", "parameters": {"tokens": 50, "group": group, "depth": 1}}
        (failed / "trial.yaml").write_text(yaml.safe_dump(trial | {"task": "pocketvqa"}))
        (failed / "failure.json").write_text(json.dumps({"error": "no", "traceback": ""}))
    markdown = written(sweep, tmp_path)
    told = [line for line in markdown.splitlines() if line.startswith("- dycoke")]
    assert told == [f"- dycoke 50 (group {group}) on pocketvqa: no" for group in (1, 2, 10)]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_results_give_the_same_bytes(sweep, tmp_path, seed):
    """In another process too, whose sets are in another order."""
    report.write(sweep, tmp_path / "a")
    code = "import sys; from pathlib import Path; from harness import report; report.write(*map(Path, sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(sweep), str(tmp_path / "b")]
    subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": str(seed)}, check=True)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".md", ".json", ".png"}
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_nothing_to_report_is_one_line_and_writes_nothing(tmp_path):
    (tmp_path / "results" / "none").mkdir(parents=True)
    with pytest.raises(VtbenchError, match="no results to report"):
        report.write(tmp_path / "results" / "none", tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


def test_a_sweep_with_failures_alone_reports_them(sweep, tmp_path):
    for folder in sweep.glob("0*"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert "## Failed or unreadable" in written(sweep, tmp_path)


def test_the_report_imports_no_torch():
    code = "import sys, harness.report; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_results_of_other_weights_are_neither_merged_nor_compared(tmp_path):
    folder = tmp_path / "mine"
    for number, (weights, right) in enumerate((("old", 0.9), ("new", 0.5)), start=1):
        add(folder, number, "full", {}, right=right)
        amend(folder, number, content={"model": weights})
    add(folder, 3, "topk", {"tokens": 64}, right=0.5)
    amend(folder, 3, content={"model": "new"})
    markdown = written(folder, tmp_path)
    assert len([line for line in markdown.splitlines() if line.startswith("| full (weights")]) == 2
    assert cells(markdown, "topk (weights new)")[5] == "100.0 %"


def test_a_group_and_one_of_its_tasks_ask_each_question_once(tmp_path):
    folder = tmp_path / "mine"
    for number in (1, 2):
        add(folder, number, "full", {}, right=0.9)
        amend(folder, number, task=f"group {number}")
    add(folder, 3, "topk", {"tokens": 64}, right=0.5)
    assert cells(written(folder, tmp_path), "topk")[5] == "52.8 %"


def test_a_row_that_lacks_a_task_says_so_and_is_held_against_full_on_the_same_tasks(tmp_path):
    folder = tmp_path / "mine"
    add(folder, 1, "full", {}, right=0.9)
    add(folder, 2, "topk", {"tokens": 64}, right=0.9)
    rewrite(folder, 1, lambda record, samples: samples.assign(score=samples.score.where(samples.task == TASKS[0], 0.0)))

    def lack(record, samples):
        del record["scores"][TASKS[1]]
        return samples[samples.task == TASKS[0]]

    rewrite(folder, 2, lack)
    row = cells(written(folder, tmp_path), "topk")
    assert row[2] == "not measured" and row[3].endswith("≈ (1 of 2 tasks)") and row[5] == "100.0 %"


def test_samples_that_no_judge_scored_are_left_out(tmp_path):
    folder = tmp_path / "mine"

    def unscored(record, samples):
        record["scores"][TASKS[1]]["exact_match"] = None
        return samples.assign(score=samples.score.where(samples.task == TASKS[0]))

    for number, (method, parameters) in enumerate((("full", {}), ("topk", {"tokens": 64})), start=1):
        add(folder, number, method, parameters, right=0.9)
        rewrite(folder, number, unscored)
    row = cells(written(folder, tmp_path), "topk")
    assert row[2] == "not measured" and row[3].endswith("≈ (1 of 2 tasks)") and row[5] == "100.0 %"


def test_a_method_that_costs_more_than_full_says_so(tmp_path):
    folder = tmp_path / "mine"
    add(folder, 1, "full", {}, right=0.9)
    add(folder, 2, "topk", {"tokens": 1152}, right=0.9)
    assert "2.152 (+36.5)" in cells(written(folder, tmp_path), "topk")


def test_no_limit_is_all_samples(tmp_path):
    add(tmp_path / "mine", 1, "full", {}, right=0.9)
    amend(tmp_path / "mine", 1, limit=None)
    assert "- limit of samples a task: all\n" in report.write(tmp_path / "mine", tmp_path / "reports").read_text()


def test_a_method_that_adapts_has_a_heading_of_its_own_and_stands_at_its_realised_tokens(tmp_path, monkeypatch):
    folder, places = tmp_path / "mine", []
    for number, (method, parameters) in enumerate(
        [("full", {}), ("prumerge", {"tokens": None}), ("prumerge", {"tokens": 64}), ("topk", {"tokens": 16})]
    ):
        add(folder, number, method, parameters, right=0.9)
    failed = folder / ("f" * 16)
    failed.mkdir()
    trial = {"method": "prumerge+", "parameters": {"tokens": None}, "task": "pocketvqa"}
    (failed / "trial.yaml").write_text(yaml.safe_dump(trial))
    (failed / "failure.json").write_text(json.dumps({"error": "no", "traceback": ""}))
    draw = Axes.errorbar
    monkeypatch.setattr(Axes, "errorbar", lambda axes, x, *a, **k: places.extend(x) or draw(axes, x, *a, **k))
    markdown = written(folder, tmp_path)
    headings = [line.split("**")[1] for line in markdown.splitlines() if line.startswith("| **")]
    assert headings == ["all tokens", "64 tokens", "16 tokens", "adaptive"]
    last = [line for line in markdown.splitlines() if line.startswith("| prumerge |")][-1]
    assert last.endswith("| 42 / 42 |")
    assert "- prumerge+ adaptive on pocketvqa: no" in markdown
    assert any(place == pytest.approx(41.5, rel=0.1) for place in places)
