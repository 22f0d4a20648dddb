import json
import re
import time
from itertools import count
from pathlib import Path

import pytest

from harness import report
from harness.report.cells import columns, document
from harness.report.compared import Compared
from harness.report.export import tables
from harness.report.results import read
from harness.report.statistics import interval, paired
from harness.report.tables import main_table
from tests.report.scored import TASKS, add, amend, rewrite

# The columns of the main table, each number in a cell by the name of its column in the JSON.
PRINTED = {
    "count": ["score/pocketvqa_count"],
    "where": ["score/pocketvqa_where"],
    "Avg.": ["average"],
    "95 %": ["average.low", "average.high"],
    "Avg. rate": ["retention"],
    "GFLOPs (%)": ["flops", "flops_change"],
    "prefill ms (quartiles), CPU time": ["prefill", "prefill.low", "prefill.high"],
    "of it vision": ["vision"],
    "of it pruner": ["pruner"],
    "decode ms": ["decode"],
    "KV MB": ["kv"],
    "peak GB (process RSS)": ["peak"],
    "tokens into LLM / mean": ["tokens_into_llm", "tokens_mean"],
}


@pytest.fixture
def sweep(tmp_path) -> Path:
    folder = tmp_path / "results" / "mine"
    numbers = count(1)
    add(folder, next(numbers), "full", {}, right=0.9)
    for tokens in (64, 16):
        for method, right in (("topk", 0.5), ("ivtp", 0.89)):
            add(folder, next(numbers), method, {"tokens": tokens}, right=right)
    add(folder, next(numbers), "tome", {"tokens": 16}, right=0.6, measured=False)
    return folder


def written(folder: Path, tmp_path: Path) -> tuple[dict, str]:
    markdown = report.write(folder, tmp_path / "reports")
    return json.loads(markdown.with_suffix(".json").read_text()), markdown.read_text()


def test_every_number_of_the_table_is_the_jsons_cell_rounded(sweep, tmp_path):
    found, markdown = written(sweep, tmp_path)
    (table,) = [table for table in tables(markdown) if table.title == "Accuracy and cost"]
    assert table.header == ["Method", *PRINTED]
    lines = [line for line in table.rows if any(line[1:])]
    assert [line[0] for line in lines] == [row["method"] for row in found["rows"]]
    checked = 0
    for line, row in zip(lines, found["rows"], strict=True):
        for head, cell in zip(table.header[1:], line[1:], strict=True):
            numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", cell.replace("−", "-"))]
            expected = []
            for name in PRINTED[head]:
                name, _, side = name.partition(".")
                value = row["cells"].get(name, {}).get(side or "value")
                if value is not None:
                    expected.append(float(f"{value:.{found['columns'][name]['digits']}f}"))
            if head == "of it pruner" and row["method"] == "full":
                assert cell == ""
            else:
                assert numbers == expected, (head, cell)
            checked += len(numbers)
    assert checked == 15 + 4 * 17 + 8  # full has no change and no pruner, tome no costs


def test_a_cell_says_its_samples_and_trials_and_trials_their_provenance(sweep, tmp_path):
    found, _ = written(sweep, tmp_path)
    full, topk = found["rows"][0], found["rows"][2]
    assert (topk["method"], topk["parameters"], topk["budget"]) == ("topk", {"tokens": 64}, "64 tokens")
    score = topk["cells"]["score/pocketvqa_count"]
    assert (
        score["samples"] == 100 and score["trials"] == [f"{2:016x}"] and score["low"] < score["value"] < score["high"]
    )
    assert topk["cells"]["average"]["samples"] == 200
    assert topk["cells"]["prefill"] == {
        "value": 12.34,
        "low": 12.0,
        "high": 13.0,
        "samples": 1,
        "trials": [f"{2:016x}"],
    }
    change = {"value": -32.4873096447, "low": None, "high": None, "samples": None, "trials": [f"{2:016x}", f"{1:016x}"]}
    assert topk["cells"]["flops_change"] == change
    assert found["columns"]["flops"] == {"unit": "GFLOPs", "digits": 3}
    assert found["columns"]["average"] == {"unit": "%", "digits": 1, "range": "95 % bootstrap interval over images"}
    trial = found["trials"][f"{2:016x}"]
    assert trial["device"] == "cpu" and trial["torch"] == "2.13" and trial["convention"] == "flops"
    assert (trial["dtype"], trial["attention"], trial["seed"], trial["git_commit"]) == ("float32", "sdpa", 0, "abc")
    assert found["trials"].keys() == {trial for row in found["rows"] for trial in row["cells"]["average"]["trials"]}
    assert full["full"] is None and full["best"] is None


def test_times_that_were_not_alone_bear_a_sign_and_say_so(sweep, tmp_path):
    def shared(record, samples):
        record["latency"]["exclusive"] = False
        return samples

    rewrite(sweep, 2, shared)
    found, markdown = written(sweep, tmp_path)
    lines = [line for line in markdown.splitlines() if "‡" in line]
    assert len(lines) == 2 and "| 12.3 (12.0–13.0) ‡ |" in lines[0] and lines[1].startswith("‡: something else used")
    assert "- time: CPU time; trials that shared the device: 1\n" in markdown
    assert [found["trials"][f"{number:016x}"]["exclusive"] for number in (1, 2)] == [True, False]
    assert found["trials"][f"{1:016x}"]["clock"] == "CPU time" and "clock" not in found["trials"][f"{6:016x}"]
    assert [row.alone for row in read(sweep).rows] == [True, True, False, True, True, True]


def test_every_tasks_difference_from_the_full_model_has_its_p_and_its_sign(sweep, tmp_path):
    found, markdown = written(sweep, tmp_path)
    part = markdown.partition("## Scores with 95 % intervals")[2].partition("## ")[0]
    for row, name in ((found["rows"][1], "ivtp"), (found["rows"][2], "topk")):
        line = next(line for line in part.splitlines() if line.startswith(f"| {name} |"))
        signs = [cell.endswith("≈") for cell in line.strip("| ").split(" | ")[1:]]
        assert signs == [not row["by_task"][task]["distinguishable"] for task in TASKS] == [name == "ivtp"] * 2
        assert all(each["p"] <= each["corrected"] for each in row["by_task"].values())
    assert found["rows"][0]["by_task"] == {} and "≈: not distinguishable from the full model's" in part


def test_differences_say_what_they_are_from_and_whether_they_are_real(sweep, tmp_path):
    found, _ = written(sweep, tmp_path)
    compared = Compared(read(sweep))
    ivtp, topk = found["rows"][1:3]
    assert ivtp["full"]["of"] == 0 and topk["best"]["of"] == 1 and ivtp["best"] is None
    assert ivtp["full"]["distinguishable"] is False and topk["full"]["distinguishable"] is True
    assert topk["full"]["p"] == pytest.approx(compared.difference[2].p)
    assert topk["full"]["corrected"] == pytest.approx(compared.corrected[2]) and topk["full"]["gained"] == 0
    assert topk["full"]["difference"] == pytest.approx(topk["cells"]["average"]["value"] - 89.0)
    assert found["comparisons"] == 5 + 3


def test_a_metric_that_is_no_mean_has_no_interval_and_the_mean_has_its_own(sweep):
    def f1(record, samples):
        record["scores"][TASKS[0]] = {"f1": 0.25, "n": 100}
        return samples

    rewrite(sweep, 2, f1)
    results = read(sweep)
    found = columns(results, Compared(results), "flops")
    assert found["score/pocketvqa_count"].cells[2][:3] == (25.0, None, None)
    mean = found["mean/pocketvqa_count"].cells[2]
    assert mean.value == pytest.approx(49, abs=3) and mean.low < mean.value < mean.high
    assert "mean/pocketvqa_where" not in found


def test_a_score_on_its_own_scale_stays_on_it(sweep):
    def points(record, samples):
        record["scores"][TASKS[0]] = {"mme": 0.5 if record["trial"]["method"] == "topk" else 1500.0, "n": 100}
        return samples

    for number in (1, 2):
        rewrite(sweep, number, points)
    results = read(sweep)
    column = columns(results, Compared(results), "flops")["score/pocketvqa_count"]
    assert column.unit == "points" and [column.written(i) for i in (0, 2)] == ["1500.0", "0.5"]


def test_one_image_gives_a_score_without_an_interval(tmp_path):
    folder = tmp_path / "results" / "one"
    add(folder, 1, "full", {}, right=0.9)
    rewrite(folder, 1, lambda record, samples: samples.assign(image_id="x"))
    amend(folder, 1, limit=1)
    found, markdown = written(folder, tmp_path)
    assert found["rows"][0]["cells"]["average"]["low"] is None and "nan–" not in markdown


def test_three_hundred_trials_are_compared_in_one_go(tmp_path):
    folder = tmp_path / "results" / "many"
    add(folder, 0, "full", {}, right=0.9)
    for number in range(1, 300):
        add(folder, number, "topk", {"tokens": 1 + number % 10, "ratio": number // 10}, right=0.3 + number / 600)
    results = read(folder)
    began = time.process_time()
    compared = Compared(results)
    held = json.loads(document(results, compared, "flops", ()))
    table = main_table(results, compared, "flops")
    assert time.process_time() - began < 30  # one by one it was minutes
    assert len(held["rows"]) == 300 and held["comparisons"] == 299 + 289
    assert table.count("\n| topk (ratio ") == 299
    alone = compared.scored[150]
    assert compared.average[150] == pytest.approx(interval(alone))
    assert compared.difference[150] == pytest.approx(paired(alone, compared.scored[0]))
