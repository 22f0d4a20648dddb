import json
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.axes import Axes

from harness import report
from harness.errors import VtbenchError
from harness.shown import Shown

TASKS = ["pocketvqa_count", "pocketvqa_where"]
QUALITY = {"full": 0.9, "topk": 0.8, "ivtp": 0.89}


def add(folder: Path, number: int, method: str, parameters: dict, *, right: float, measured: bool = True) -> None:
    """Write one trial as `harness.store` does."""
    rng = np.random.default_rng(7)
    draws = rng.random(200)
    samples = pd.DataFrame(
        {
            "task": [TASKS[i % 2] for i in range(200)],
            "doc_id": [i // 2 for i in range(200)],
            "image_id": [str(i // 4) for i in range(200)],
            "score": (draws < right).astype(float),
            "answer": ["x"] * 200,
        }
    )
    trial = {
        "model": "pocket",
        "task": "pocketvqa",
        "method": method,
        "parameters": parameters,
        "limit": 100,
        "seed": 0,
        "dtype": "float32",
        "attention": "sdpa",
    }
    nominal = parameters.get("tokens", 576)
    n = 41.5 if nominal is None else nominal
    record = {
        "id": f"{number:016x}",
        "trial": trial,
        "scores": {
            task: {"exact_match": float(samples.score[samples.task == task].mean()), "n": 100} for task in TASKS
        },
        "tokens": {"nominal": nominal, "into_llm": float(n), "mean_llm": float(n), "llm": [n] * 6, "vit": [n] * 8},
        "flops": {"tokens_basis": "every sample, then the mean", "total": {"flops": 10**9 + 10**6 * n}}
        if measured
        else None,
        "latency": {
            "clock": "CPU time",
            "exclusive": True,
            "prefill_ms": {"q25": 12.0, "median": 12.34, "q75": 13.0, "raw": [12.34]},
            "vision_ms": {"median": 4.0, "raw": [4.0]},
            "pruner_ms": None if method == "full" else {"median": -0.26, "raw": [-0.26]},
            "decode_ms": {"median": 1.5, "raw": [1.5]},
        }
        if measured
        else None,
        "memory": {"kv_visual_bytes": n * 3072, "peak_kind": "process RSS"} if measured else None,
        "provenance": {
            "vtbench": "0.1.0",
            "git_commit": "abc",
            "python": "3.11",
            "torch": "2.13",
            "device": "cpu",
            "cpu_or_gpu_name": "a <b> CPU",
            "started": f"2026-01-01T00:00:{number:02}",
            "protocol": 1,
        },
    }
    path = folder / record["id"]
    path.mkdir(parents=True)
    (path / "trial.yaml").write_text(yaml.safe_dump(trial))
    samples.to_parquet(path / "samples.parquet", index=False)
    (path / "record.json").write_text(json.dumps(record))


@pytest.fixture
def sweep(tmp_path) -> Path:
    folder = tmp_path / "results" / "mine"
    add(folder, 1, "full", {}, right=0.9)
    for number, tokens in enumerate((64, 16), start=2):
        add(folder, number, "topk", {"tokens": tokens}, right=0.5)
    number = 10
    for group in (2, 3):
        for threshold in (0.1, 0.2):
            tokens, right = 64, 0.9 if (group, threshold) == (3, 0.2) else 0.7
            add(folder, number, "ivtp", {"tokens": tokens, "group": group, "threshold": threshold}, right=right)
            number += 1
    add(folder, number, "ivtp", {"tokens": 16, "group": 3, "threshold": 0.2}, right=0.6, measured=False)
    failed = folder / ("f" * 16)
    failed.mkdir()
    trial = {"method": "pooling", "parameters": {"tokens": 50}, "task": "pocketvqa"}
    (failed / "trial.yaml").write_text(yaml.safe_dump(trial))
    (failed / "failure.json").write_text(json.dumps({"error": "out of <b>memory</b> | *bold*", "traceback": ""}))
    return folder


def written(folder: Path, tmp_path: Path, shown: Shown | None = None) -> str:
    """Return the report without its sections of intervals and differences, which have lines of the same names."""
    markdown = report.write(folder, tmp_path / "reports", shown).read_text()
    return re.sub(r"## (Scores with|Which differences).*?(?=^## )", "", markdown, flags=re.DOTALL | re.MULTILINE)


def cells(markdown: str, start: str) -> list[str]:
    (line,) = [line for line in markdown.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


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


def test_many_grids_are_cut_and_say_where_the_rest_is(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    for number, (layers, group, threshold) in enumerate(product((1, 2, 3), (2, 3), (0.1, 0.2))):
        parameters = {"tokens": 64, "group": group, "threshold": threshold, "layers": layers}
        add(folder, number, "ivtp", parameters, right=0.9)
    monkeypatch.setattr(report, "MOST_GRIDS", 2)
    markdown = written(folder, tmp_path)
    assert "The first 2 of 3 grids; the JSON beside this report has all.\n" in markdown and markdown.count("### ") == 2


def test_a_grid_has_its_own_table_and_one_line_in_the_main_one(sweep, tmp_path):
    markdown = written(sweep, tmp_path)
    assert "### ivtp at 64 tokens: group × threshold" in markdown
    assert cells(markdown, "group \\ threshold")[1:] == ["0.1", "0.2"]
    assert cells(markdown, "3")[2].startswith("**") and not cells(markdown, "2")[2].startswith("**")
    assert sum(line.startswith("| ivtp") for line in markdown.splitlines()) == 2
    assert (tmp_path / "reports" / "mine" / "grid_1.png").exists()


def test_rows_that_make_no_full_grid_are_all_in_the_main_table(tmp_path):
    folder = tmp_path / "mine"
    for number, (group, threshold) in enumerate([(3, 0.2), (2, 0.2), (4, 0.2), (3, 0.1), (3, 0.3)]):
        add(folder, number, "ivtp", {"tokens": 64, "group": group, "threshold": threshold}, right=0.7)
    markdown = written(folder, tmp_path)
    assert sum(line.startswith("| ivtp") for line in markdown.splitlines()) == 5 and "further row" not in markdown


def test_the_main_table_says_how_many_rows_are_elsewhere(sweep, tmp_path):
    assert "\n3 further rows are under Grids and in the JSON.\n" in written(sweep, tmp_path)


def test_a_parameter_that_older_trials_did_not_know_is_none_there(tmp_path):
    folder = tmp_path / "mine"
    add(folder, 0, "topk", {"tokens": 64, "new": 1}, right=0.7)
    add(folder, 1, "topk", {"tokens": 32}, right=0.6)
    markdown = written(folder, tmp_path)
    assert "| topk (new 1) |" in markdown and "| topk (new None) |" in markdown


def test_a_grid_of_lists_of_one_image_has_neither_crash_nor_nan(tmp_path):
    folder = tmp_path / "mine"
    for number, (layers, group) in enumerate(product(([1, 2], [3, 4]), (2, 3))):
        add(folder, number, "ivtp", {"tokens": 64, "layers": layers, "group": group}, right=0.9)
        rewrite(folder, number, lambda record, samples: samples.assign(image_id="x"))
    markdown = written(folder, tmp_path)
    assert "| \\[1, 2\\] | **89.0** | **89.0** |" in markdown and "(nan" not in markdown


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


def test_numbers_are_in_the_order_of_their_size(tmp_path):
    folder = tmp_path / "results" / "mine"
    add(folder, 1, "full", {}, right=0.9)
    for number, layers in enumerate((12, 3, None, 100), start=2):
        add(folder, number, "ivtp", {"tokens": 64, "llm_layers": layers}, right=0.7)
        amend(folder, number, limit=layers)
    markdown = written(folder, tmp_path)
    lines = [line for line in markdown.splitlines() if line.startswith("| ivtp")]
    assert [re.search(r"llm\\_layers (\w+)", line)[1] for line in lines] == ["3", "12", "100", "None"]


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


def amend(folder: Path, number: int, **trial: object) -> None:
    path = folder / f"{number:016x}" / "record.json"
    record = json.loads(path.read_text())
    record["trial"] |= trial
    path.write_text(json.dumps(record))


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


def rewrite(folder: Path, number: int, change) -> None:
    """Let `change(record, samples)` alter a trial and return its samples."""
    record_path, samples_path = (folder / f"{number:016x}" / name for name in ("record.json", "samples.parquet"))
    record = json.loads(record_path.read_text())
    samples = change(record, pd.read_parquet(samples_path))
    record_path.write_text(json.dumps(record))
    samples.to_parquet(samples_path, index=False)


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


def test_models_have_grids_and_lines_of_their_own(tmp_path):
    folder = tmp_path / "mine"
    number = 0
    for model, right in (("pocket", 0.9), ("random:pocket", 0.5)):
        for group in (2, 3):
            for threshold in (0.1, 0.2):
                number += 1
                add(folder, number, "ivtp", {"tokens": 64, "group": group, "threshold": threshold}, right=right)
                amend(folder, number, model=model)
    markdown = written(folder, tmp_path)
    titles = [line for line in markdown.splitlines() if line.startswith("### ")]
    assert titles == [f"### ivtp at 64 tokens, {model}: group × threshold" for model in ("pocket", "random:pocket")]
    grids = [part.split("##")[0] for part in markdown.split("group × threshold")[1:]]
    assert "89.0 (" in grids[0] and "89.0 (" not in grids[1] and "47.0 (" in grids[1]


def test_a_grid_of_three_parameters_is_one_table_for_each_value_of_the_third(tmp_path):
    folder = tmp_path / "mine"
    for number in range(8):
        parameters = {
            "tokens": 64,
            "group": 2 + number % 2,
            "threshold": 0.1 * (1 + number // 2 % 2),
            "layers": number // 4,
        }
        add(folder, number, "ivtp", parameters, right=0.9)
    markdown = written(folder, tmp_path)
    assert markdown.count("### ivtp at 64 tokens, layers ") == 2


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


def test_a_grid_of_numbers_words_and_nothing_is_sorted(tmp_path):
    folder = tmp_path / "results" / "mixed"
    add(folder, 0, "full", {}, right=0.9)
    for number, (group, into) in enumerate(product([4, "all", 2], [None, 200, 100]), start=1):
        add(folder, number, "ivtp", {"tokens": 64, "group": group, "tokens_into_llm": into}, right=0.5)
    markdown = written(folder, tmp_path)
    table = markdown.partition("## Grids")[2].partition("| --- ")
    assert table[0].splitlines()[-1].endswith("| 100 | 200 | None |")
    assert [line.split("|")[1].strip() for line in table[2].splitlines()[1:4]] == ["2", "4", "all"]
    assert (tmp_path / "reports" / "mixed" / "grid_1.png").exists()
