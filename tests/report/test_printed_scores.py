import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from harness import cli, papers, report
from harness.report.compared import Compared
from harness.report.results import read
from harness.shown import Published, Shown

MODEL = "llava-hf/llava-1.5-7b-hf"
# task: the metrics of lmms-eval by name; the samples' mean where the first is one
TASKS = {
    "gqa": {"exact_match": 0.62},
    "scienceqa_img": {"exact_match": 0.60},
    "pope": {"pope_accuracy": 0.87, "pope_f1_score": 0.859},
    "mme": {"mme_perception_score": 1510.0, "mme_cognition_score": 300.0},
    "mmbench_en_dev_static": {"gpt_eval_score": 64.0},
    "mmvet": {"gpt_eval_score": None},
}
ROWS = {"LLaVA-1.5-7B": "full", "LLaVA-1.5-7B*": "full", "TopK": "topk", "IVTP (Ours)": {"ivtp": {"group": 3}}}
REST = ("Random sampling", "Spatial pooling", "EViT", "ToMe", "Honeybee", "LLaMA-VID", "Qwen-VL")
MISSING = dict.fromkeys(REST, "not built")
AVERAGE = {"Group-wise": {"ivtp": {"scope": "group-wise"}}}


def add(
    folder: Path, method: str, parameters: dict, task: str, metrics: dict, *, model: str = MODEL, limit: int = 500
) -> None:
    """Write one trial as `harness.store` does."""
    trial = {
        "model": model,
        "task": task,
        "text_tokens": None,
        "method": method,
        "parameters": parameters,
        "limit": limit,
        "seed": 0,
        "dtype": "bfloat16",
        "attention": "sdpa",
        "measure": ["accuracy", "flops", "tokens"],
    }
    first = next(iter(metrics.values()))
    right = np.arange(500) < 500 * first if first is not None and first <= 1 else np.full(500, np.nan)
    samples = pd.DataFrame({"task": task, "doc_id": range(500), "image_id": [str(i) for i in range(500)]})
    samples["score"] = right.astype(float)
    cost = 8.0e12 if parameters else 15.4e12
    record = {
        "id": f"{method}-{task}-{len(list(folder.glob('*')))}",
        "trial": trial,
        "scores": {task: {**metrics, "n": 500.0}},
        "tokens": {"into_llm": 64.0, "mean_llm": 64.0},
        "flops": {"tokens_basis": "every sample, then the mean", "total": {"ivtp": cost, "flops": 2 * cost}},
        "latency": None,
        "memory": None,
        "provenance": {"started": "2026-01-01T00:00:00", "device": "cuda", "cpu_or_gpu_name": "a GPU"},
    }
    path = folder / record["id"]
    path.mkdir(parents=True)
    (path / "trial.yaml").write_text(yaml.safe_dump(trial))
    samples.to_parquet(path / "samples.parquet", index=False)
    (path / "record.json").write_text(json.dumps(record))


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "results" / "mine"
    for task, metrics in TASKS.items():
        add(folder, "full", {}, task, metrics)
        add(folder, "topk", {"tokens": 64}, task, {name: value and 0.9 * value for name, value in metrics.items()})
    return folder


def written(folder: Path, tmp_path: Path, **changes) -> str:
    asked = {"paper": "ivtp", "tables": ("1",), "rows": ROWS, "missing": MISSING} | changes
    return report.write(
        folder, tmp_path / "reports", Shown(convention="ivtp", published=Published(**asked))
    ).read_text()


def section(markdown: str) -> str:
    return markdown.partition("## Published")[2].partition("\n## ")[0]


def cells(markdown: str, row: str) -> dict[str, list[str]]:
    """Return the three lines of a printed row by the table's heads: published, measured, difference."""
    table = [line for line in section(markdown).splitlines() if line.startswith("|")]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    header = next(line for line in lines if line[0] == "Method")
    at = next(i for i, line in enumerate(lines) if line[0] == row)
    return {head: [line[k] for line in lines[at : at + 3]] for k, head in enumerate(header) if k}


def test_published_measured_and_the_difference_in_the_papers_layout(folder, tmp_path):
    markdown = written(folder, tmp_path)
    topk = cells(markdown, "TopK")
    assert list(topk) == [
        "What",
        "VQAv2",
        "GQA",
        "VizWiz",
        "SQA-I",
        "TextVQA",
        "POPE",
        "MME",
        "MMB",
        "MMB-CN",
        "SEED",
    ] + [
        "LLaVA-W",
        "MM-Vet",
        "Avg.",
        "Avg. rate",
        "TFLOPs (%)",
    ]
    assert topk["What"] == ["**published**", "measured", "difference"]
    results = read(folder)
    (index,) = [i for i, row in enumerate(results.rows) if row.method == "topk"]
    gqa, sqa = (Compared(results).scores[index][task] for task in ("gqa", "scienceqa_img"))
    assert topk["GQA"] == ["58.1", f"55.8 ({100 * gqa.low:.1f}–{100 * gqa.high:.1f})", "−2.3"]
    assert topk["SQA-I"] == ["66.9", f"54.0 ({100 * sqa.low:.1f}–{100 * sqa.high:.1f})", "−12.9 ≠"]
    assert topk["VQAv2"] == ["72.4", "–", ""] and topk["MM-Vet"] == ["26.5", "–", ""]
    assert topk["TFLOPs (%)"] == ["8.0 (−48.1)", "8.000 (−48.1)", ""]


def test_a_metric_is_put_on_the_papers_scale_and_has_an_interval_only_if_it_is_its_samples_mean(folder, tmp_path):
    full = cells(written(folder, tmp_path), "LLaVA-1.5-7B\\*")
    assert full["POPE"] == ["86.3", "85.9", "−0.4"]  # F1, not the accuracy before it
    assert full["MME"] == ["72.8", "75.5", "+2.7"]  # 1510 of 2000 points
    assert full["MMB"] == ["66.2", "64.0", "−2.2"]


def test_an_average_of_some_benchmarks_is_held_against_none_and_the_rate_is_of_the_same_benchmarks(folder, tmp_path):
    markdown = written(folder, tmp_path)
    topk = cells(markdown, "TopK")
    mean = np.mean([55.8, 54.0, 77.31, 67.95, 57.6])
    assert topk["Avg."] == ["58.9", f"{mean:.1f}, 5 of 12", ""]
    ratios = [58.1 / 62.7, 66.9 / 67.8, 83.8 / 86.3, 67.1 / 72.8, 63.3 / 66.2]  # of LLaVA-1.5-7B*
    assert topk["Avg. rate"] == [f"{100 * np.mean(ratios):.1f} %", "90.0 %", f"−{100 * np.mean(ratios) - 90:.1f}"]
    assert "over what was measured (GQA, SQA-I, POPE, MME, MMB)" in markdown
    assert cells(markdown, "LLaVA-1.5-7B\\*")["Avg. rate"] == ["100.0 %", "100.0 %", "+0.0"]


def test_all_benchmarks_have_an_average(tmp_path):
    folder = tmp_path / "results" / "mine"
    for metric in papers.AVERAGED:
        benchmark = papers.BENCHMARKS[metric]
        value = 0.58 if benchmark.scale == 100 else 1160.0 if metric == "mme_norm" else 58.0
        add(folder, "ivtp", {"tokens": 64, "scope": "group-wise"}, benchmark.task, {benchmark.metric: value})
    markdown = written(
        folder, tmp_path, tables=("4",), rows=AVERAGE, missing={"Layer-wise": "later", "Rollout": "later"}
    )
    found = cells(markdown, "Group-wise")
    assert found["Avg. (PI)"] == ["55.1", "58.0", "+2.9"] and found["Avg."] == ["58.1", "", ""]
    assert "Avg. rate" not in found  # the table has no full model
    assert cells(markdown, "Rollout")["Avg. (PI)"][0] == "59.6 §"
    assert "59.6 in IVTP Table 4 (Rollout)" in markdown and "60.4 in IVTP supplement Table 4" in markdown
    assert "Avg. (PI), pure inference, and what is measured here are of the published model as it is" in markdown


def test_figures_in_conflict_are_marked_and_all_their_places_named(folder, tmp_path):
    markdown = written(folder, tmp_path)
    full = cells(markdown, "LLaVA-1.5-7B")
    assert full["SQA-I"][0] == "66.8 §" and full["POPE"][0] == "85.9" and full["GQA"][0] == "62.0"
    assert (
        "§ SQA-I of LLaVA-1.5-7B (llava-1.5-7b): 66.8 in IVTP Table 1; 71.6 in ATP-LLaVA supplement Table 8 (LLaVA-1.5)"
        "; 69.4 in LVPruning Table 1." in markdown
    )


def test_what_did_not_run_and_what_vtbench_has_not(folder, tmp_path):
    markdown = written(folder, tmp_path)
    assert cells(markdown, "IVTP (Ours)")["GQA"] == ["60.4", "–", ""]
    assert section(markdown).count(" | measured |") == 4 and "Honeybee: not measured, not built." in markdown
    assert cells(markdown, "Honeybee")["Avg. rate"][0].endswith(" %")


def test_of_rows_of_an_older_limit_those_of_the_sweep_are_held_against_the_paper(folder, tmp_path):
    add(folder, "topk", {"tokens": 64}, "gqa", {"exact_match": 0.5}, limit=100)
    markdown = written(folder, tmp_path)
    assert cells(markdown, "TopK")["GQA"] == ["58.1", "–", ""]
    assert "\nTopK: fits 2 rows that differ in limit; held against none of them.\n" in markdown
    (older,) = (path.name for path in folder.iterdir() if "limit: 100" in (path / "trial.yaml").read_text())
    for asked, measured in (({older}, "50.0"), ({path.name for path in folder.iterdir()} - {older}, "55.8")):
        shown = Shown(published=Published(paper="ivtp", tables=("1",), rows=ROWS, missing=MISSING), trials=tuple(asked))
        found = cells(report.write(folder, tmp_path / "reports", shown).read_text(), "TopK")["GQA"]
        assert found[1].startswith(measured)


def test_the_text_tokens_of_printed_costs_are_the_papers(folder, tmp_path):
    at_512 = "Published TFLOPs are of 512 text tokens, measured ones of the tasks' own under the convention `ivtp`."
    assert at_512 in written(folder, tmp_path)
    known = {f.row for f in papers.read_figures() if (f.paper, f.table) == ("lvpruning", "1")} - {"LLaVA-1.5-7B"}
    rest = dict.fromkeys(known, "needs training")
    markdown = written(folder, tmp_path, paper="lvpruning", rows={"LLaVA-1.5-7B": "full"}, missing=rest)
    assert "Published TFLOPs are of 30 text tokens" in markdown


def test_a_known_reason_is_named_where_the_figure_is_outside(folder, tmp_path):
    entries = [{"where": {"row": "TopK", "metric": metric}, "reason": f"odd {metric}"} for metric in ("sqa_img", "gqa")]
    markdown = written(folder, tmp_path, unreproduced=entries)
    assert cells(markdown, "TopK")["SQA-I"][2] == "−12.9 ≠†"
    assert "† odd sqa\\_img" in markdown and "odd gqa" not in markdown


def test_another_model_is_not_held_against_the_paper(tmp_path):
    folder = tmp_path / "results" / "mine"
    add(folder, "full", {}, "pocketvqa_count", {"exact_match": 0.5}, model="pocket")
    found = section(written(folder, tmp_path))
    assert "Its figures are of llava-1.5-7b and are not held against pocket." in found and "|" not in found


def test_findings_stand_in_the_report_of_their_table(tmp_path):
    folder = tmp_path / "results" / "mine"
    add(folder, "full", {}, "gqa", {"exact_match": 0.6}, model="llava-hf/llava-1.5-13b-hf")
    rows = {"LLaVA-1.5-13B": "full", "LLaVA-1.5-13B*": "full"}
    rest = dict.fromkeys((*REST, "TopK", "IVTP (Ours)"), "later")
    markdown = written(folder, tmp_path, tables=("2",), rows=rows, missing=rest)
    assert "- Qwen-VL: the printed average is 63.0, its 12 cells give 63.2." in markdown


def test_the_same_results_give_the_same_bytes(folder, tmp_path):
    assert written(folder, tmp_path) == written(folder, tmp_path)


def test_the_committed_page_of_findings_is_what_the_command_prints(capsys):
    cli.published()
    assert capsys.readouterr().out == (Path(report.__file__).parents[2] / "reports/published.md").read_text()
