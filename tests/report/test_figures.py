from dataclasses import replace
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.report import figures
from harness.report.compared import Compared
from harness.report.figures import curves, grid, layers, style, tasks
from harness.report.results import SETTING, Results, Row
from harness.report.statistics import Interval
from harness.report.tables import Grid

SAME_SETTING = dict.fromkeys((*SETTING, "weights", "task files"))
TASKS = ("vqa_count", "vqa_where")
LAYERS = 4


def row(method: str, right: float, tokens: int | None = None, **changed) -> Row:
    """A row whose first share of each task's answers is right; changed: parts of its record."""
    n = 40
    samples = pd.DataFrame(
        {
            "task": np.repeat(TASKS, n),
            "doc_id": [*range(n), *range(n)],
            "image_id": [str(i) for i in range(n)] * 2,
            "score": [float(i < right * n) for i in range(n)] * 2,
        }
    )
    kept = tokens or 576
    record = {
        "id": f"{method}{tokens}",
        "trial": {"task": "vqa"},
        "scores": {task: {"exact_match": right, "n": n} for task in TASKS},
        "tokens": {"into_llm": kept, "mean_llm": kept, "vit": [576] * LAYERS, "llm": [kept] * LAYERS},
        "flops": {"total": {"flops": 10**9 + 10**6 * kept}},
        "latency": {"clock": "CPU time", "prefill_ms": {"q25": kept - 1, "median": kept, "q75": kept + 2}},
        "memory": {"kv_visual_bytes": 1000 * kept},
    } | changed
    parameters = {} if method == "full" else {"tokens": tokens}
    return Row("pocket", method, parameters, SAME_SETTING, [record], samples)


def tokens(llm: list[float]) -> dict:
    return {"into_llm": llm[0], "mean_llm": sum(llm) / len(llm), "vit": [576, 576], "llm": llm}


FULL = row("full", 0.9)
SOME = [FULL, *(row(m, right, n) for m, right in (("ivtp", 0.8), ("topk", 0.2)) for n in (64, 16))]


def drawn(rows: list[Row], folder: Path) -> tuple[str, set[str]]:
    """Return the section and the names of the files."""
    results = Results("mine", rows, [])
    section = figures.section(results, Compared(results), folder, "mine", "flops")
    return section, {path.name for path in folder.iterdir()}


@pytest.fixture
def seen(monkeypatch) -> dict[str, style.plt.Figure]:
    """The figures by file name, as they are written."""
    found = {}
    for module in (curves, grid, layers, tasks):
        monkeypatch.setattr(module, "save", lambda figure, path: found.update({path.name: figure}))
    yield found
    style.plt.close("all")


def test_accuracy_is_drawn_against_every_cost_that_was_measured(tmp_path):
    section, files = drawn(SOME, tmp_path)
    costs = {f"accuracy_{cost}.png" for cost in ("tokens", "flops", "time", "kv")}
    assert costs <= files and section.startswith("## Figures\n")
    assert all(f"](mine/{file})" in section for file in costs)
    for path in tmp_path.iterdir():
        path.unlink()
    unmeasured = [row("ivtp", 0.8, n, latency=None, memory=None) for n in (64, 16)]
    section, files = drawn(unmeasured, tmp_path)
    assert costs & files == {"accuracy_tokens.png", "accuracy_flops.png"} and "prefill time" not in section


def test_the_text_names_what_is_on_the_frontier(tmp_path):
    section, _ = drawn(SOME, tmp_path)
    assert section.count("On the frontier, with their budgets: ivtp (16); full.") == 4


def test_the_frontier_goes_in_steps_through_the_best_and_what_has_its_interval_apart_is_hollow(tmp_path, seen):
    drawn(SOME, tmp_path)
    (axes,) = seen["accuracy_tokens.png"].axes
    (steps,) = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert steps.get_xydata() == pytest.approx(np.array([(16, 80), (576, 90), (576, 90)]))
    hollow = [line.get_ydata()[0] for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert hollow == pytest.approx([20, 20])


def crosses(figure) -> list[tuple[float, float]]:
    return sorted(tuple(line.get_xydata()[0].round(6)) for line in figure.axes[0].lines if line.get_marker() == "x")


def test_times_on_a_device_that_others_used_are_crossed_and_on_no_frontier(tmp_path, seen):
    shared = [replace(each, records=[{**each.records[0]}]) for each in SOME]
    for each in shared[-1], shared[0]:
        each.records[0]["latency"] = each.records[0]["latency"] | {"exclusive": False}
    section, _ = drawn(shared, tmp_path)
    assert (shared[-1].method, shared[-1].tokens) == ("topk", 16)
    assert crosses(seen["accuracy_time.png"]) == [(16, 20), (576, 90)]
    assert crosses(seen["accuracy_kv.png"]) == []
    assert "On the frontier, with their budgets: ivtp (16). What was timed while others used the device (×)" in section
    for each in shared:
        each.records[0]["latency"] = each.records[0]["latency"] | {"exclusive": False}
    section, _ = drawn(shared, tmp_path)
    assert "against prefill time. What was timed while others used the device" in section
    assert len(crosses(seen["accuracy_time.png"])) == 5


def test_what_has_no_budget_is_crossed_and_on_no_frontier_of_budgets(tmp_path, seen):
    adaptive = row("prumerge", 0.95)
    adaptive.records[0]["tokens"] |= {"mean_llm": 20}
    section, _ = drawn([*SOME, adaptive], tmp_path)
    assert crosses(seen["accuracy_tokens.png"]) == [(pytest.approx(20, rel=0.1), 95)]
    at = "Average score against the nominal budget of visual tokens"
    assert f"![{at}" in section and f"\n{at}. On the frontier, with their budgets: ivtp (16); full. What has" in section
    assert (
        len(crosses(seen["tasks.png"])) == 1
        and crosses(seen["accuracy_flops.png"]) == []
        and "ivtp (16); prumerge, adaptive." in section
    )


def test_the_full_models_interval_is_a_band_and_bars_are_the_intervals(tmp_path, seen):
    results = Results("mine", SOME, [])
    compared = Compared(results)
    figures.section(results, compared, tmp_path, "mine", "flops")
    (axes,) = seen["accuracy_time.png"].axes
    (band,) = axes.patches
    box = band.get_window_extent().transformed(axes.transData.inverted())
    assert (box.y0, box.y1) == pytest.approx([100 * value for value in compared.average[0][1:]])
    across, up = (lines.get_segments() for lines in axes.containers[0].lines[2])
    assert [tuple(bar[:, 0]) for bar in across] == [(15, 18), (63, 66)]
    assert [tuple(bar[:, 1]) for bar in up] == [
        pytest.approx([100 * v for v in compared.average[i][1:]]) for i in (2, 1)
    ]


def test_nothing_is_drawn_of_the_full_model_alone_and_no_scores_of_one_cost(tmp_path):
    assert drawn([FULL], tmp_path) == ("", set())
    assert drawn([FULL, row("topk", 0.5, 64)], tmp_path)[1] == {"layers.png"}


def test_many_lines_are_spread_over_panels_and_the_others_stand_behind(tmp_path, seen):
    methods = [f"m{i:02}" for i in range(13)]
    drawn([row(m, 0.5 + i / 40, n) for i, m in enumerate(methods) for n in (64, 16)], tmp_path)
    panels = seen["accuracy_tokens.png"].axes
    named = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in panels if axes.get_legend()]
    assert named == [methods[:5], methods[5:10], methods[10:]]
    grey = [sum(line.get_color() == style.OTHERS for line in axes.lines) for axes in panels]
    assert grey == [8, 8, 10, 0]


def test_too_many_lines_are_told_and_not_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "MOST", 14)
    rows = [row(f"m{i:02}", 0.5, n) for i in range(15) for n in (64, 16)]
    for i, each in enumerate(rows):
        each.records[0]["tokens"] |= tokens([600 - i, 1])
    section, files = drawn(rows, tmp_path)
    assert section == (
        "## Figures\n\nScores are not drawn: a figure holds 14 lines, and this sweep has 15.\n\n"
        "Tokens per layer are not drawn: a panel would have 15 lines.\n"
    )
    assert files == set()


def test_lines_of_a_panel_differ_in_colour_and_marker():
    assert len(set(style.COLORS)) == len(set(style.MARKERS)) == len(style.COLORS) == len(style.MARKERS)
    assert len(style.COLORS) >= style.CROWDED


def unscored(method: str, parameters: dict, llm: list[float], **setting) -> Row:
    record = {"id": method, "trial": {"measure": ["flops"]}, "scores": None, "tokens": tokens(llm)}
    record |= {"flops": None, "latency": None, "memory": None}
    return Row("pocket", method, parameters, SAME_SETTING | setting, [record], pd.DataFrame())


def steps(axes) -> list[list[float]]:
    return [list(line.get_ydata()) for line in axes.lines if line.get_drawstyle() == "steps-post"]


def test_tokens_per_layer_are_steps_and_methods_that_keep_the_same_share_a_line(tmp_path, seen):
    rows = [
        unscored("full", {}, [576, 576]),
        unscored("fastv", {"tokens": 64}, [576, 64]),
        unscored("topk", {"tokens": 64}, [64, 64]),
        unscored("evit", {"tokens": 64}, [64, 64]),
    ]
    section, _ = drawn(rows, tmp_path)
    (axes,) = seen["layers.png"].axes
    assert steps(axes) == [[576] * 5, [576, 576, 576, 64, 64], [576, 576, 64, 64, 64]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["full", "fastv", "evit; topk"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "1", "2"]
    assert axes.get_title("left") == "64 tokens"
    assert "at 64 tokens](mine/layers.png)" in section and "Drawn are" not in section


def test_a_row_of_other_layers_than_its_models_or_of_trials_that_differ_is_left_out(tmp_path, seen):
    rows = [unscored(m, {"tokens": 64}, [64, 64]) for m in ("topk", "tome")]
    odd, torn = unscored("evit", {"tokens": 64}, [64, 64, 64]), unscored("ivtp", {"tokens": 64}, [60, 60])
    torn.records.append({**torn.records[0], "tokens": tokens([60, 60, 60])})
    drawn([odd, *rows, torn], tmp_path)
    (axes,) = seen["layers.png"].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["tome; topk"]
    rows = [unscored("topk", {"tokens": 64}, [64, 64]), torn]
    assert "layers.png" in drawn([torn, *rows], tmp_path)[0] and drawn([torn], tmp_path)[0] == ""


def test_what_changes_no_tokens_makes_no_line_and_what_does_is_named(tmp_path, seen):
    rows = [unscored("topk", {"tokens": 64}, [64, 64], text_tokens=n) for n in (128, 256)]
    rows += [unscored("tome", {"tokens": 64}, [64 + n, 64], text_tokens=n) for n in (128, 256)]
    drawn(rows, tmp_path)
    (axes,) = seen["layers.png"].axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["tome, text_tokens 256", "tome, text_tokens 128", "topk"]


def test_a_name_looks_alike_in_every_panel(tmp_path, seen):
    kept = {("topk", 64): [64, 64], ("tome", 64): [80, 64], ("topk", 16): [40, 16], ("tome", 16): [16, 16]}
    drawn([unscored(method, {"tokens": n}, llm) for (method, n), llm in kept.items()], tmp_path)
    looks = [
        {line.get_label(): (line.get_color(), line.get_marker()) for line in axes.get_legend().get_lines()}
        for axes in seen["layers.png"].axes
    ]
    assert [list(each) for each in looks] == [["tome", "topk"], ["topk", "tome"]] and looks[0] == looks[1]


def test_of_many_budgets_the_first_the_middle_and_the_last_are_drawn_but_those_of_few_methods(tmp_path, seen):
    budgets = (512, 256, 128, 64, 16)
    rows = [unscored(m, {"tokens": n}, [n, n]) for n in budgets for m in ("topk", "tome", "evit")]
    rows.insert(3, unscored("pooling", {"tokens": 484}, [484, 484]))
    section, _ = drawn(rows, tmp_path)
    assert [axes.get_title("left") for axes in seen["layers.png"].axes] == ["512 tokens", "128 tokens", "16 tokens"]
    assert "Drawn are 3 of 6 budgets." in section


def test_every_task_has_a_panel_with_its_scores_intervals_and_the_full_models_band(tmp_path, seen):
    results = Results("mine", SOME, [])
    compared = Compared(results)
    compared.scores[2]["vqa_where"] = Interval(0.5, 0.4, 0.7)
    compared.scores[0]["vqa_where"] = Interval(0.95, 0.9, 0.97)
    section = figures.section(results, compared, tmp_path, "mine", "flops")
    assert "](mine/tasks.png)" in section
    panels = [axes for axes in seen["tasks.png"].axes if axes.axison]
    assert [axes.get_title("left") for axes in panels] == ["count", "where"]
    (bars,) = panels[1].containers[0].lines[2]
    assert tuple(bars.get_segments()[0][:, 1]) == pytest.approx((40, 70))
    box = panels[1].patches[0].get_window_extent().transformed(panels[1].transData.inverted())
    assert (box.y0, box.y1) == pytest.approx((90, 97))


def test_many_methods_make_a_row_a_task_and_too_many_none(tmp_path, seen):
    rows = [row(f"m{i:02}", 0.5, n) for i in range(13) for n in (64, 16)]
    drawn(rows, tmp_path)
    panels = seen["tasks.png"].axes
    assert [axes.get_title("left") for axes in panels] == ["count"] * 3 + ["where"] * 3
    results = Results("mine", rows, [])
    compared = Compared(results)
    lines = {f"{name}{copy}": found for name, found in style.scored_lines(results, compared).items() for copy in "ab"}
    cost = curves.costs(results, "flops")[0]
    assert tasks.score_by_task(results, compared, lines, cost, tmp_path / "x.png") is False


def test_a_task_without_scores_has_no_panel(tmp_path, seen):
    for each in (rows := [row(m, 0.5, n) for m in ("topk", "tome") for n in (64, 16)]):
        each.records[0]["scores"]["vqa_judged"] = {"gpt_score": None, "n": 40}
    drawn(rows, tmp_path)
    assert [axes.get_title("left") for axes in seen["tasks.png"].axes if axes.axison] == ["count", "where"]


def test_one_task_has_no_panels_of_its_own(tmp_path):
    rows = [row("topk", 0.5, n) for n in (64, 16)]
    for each in rows:
        del each.records[0]["scores"][TASKS[1]]
        each.samples["task"] = TASKS[0]
        each.samples["doc_id"] = range(80)
    assert "tasks.png" not in drawn(rows, tmp_path)[1]


def test_a_heat_map_has_its_intervals_and_colours_no_wider_differences_than_these(tmp_path, seen):
    cells = {(2, 0.1): Interval(0.5, 0.4, 0.65), (2, 0.2): Interval(0.6, 0.5, 0.7), (3, 0.1): Interval(0.52, nan, nan)}
    figures.heat_map(Grid("ivtp at 64 tokens", "group", "threshold", cells), tmp_path / "grid.png")
    axes, _ = seen["grid.png"].axes
    (image,) = axes.images
    assert np.ma.filled(image.get_array(), -1).tolist() == pytest.approx(np.array([[50, 60], [52, -1]]))
    assert image.get_clim() == pytest.approx((55 - 12.5, 55 + 12.5))
    assert [text.get_text() for text in axes.texts] == ["50.0", "40.0–65.0", "60.0", "50.0–70.0", "52.0"]
