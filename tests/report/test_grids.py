"""Rows that make a grid: their tables, their line in the main one, and their order."""

import re
from itertools import product

from harness import report
from tests.report.scored import add, amend, cells, rewrite, written


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


def test_numbers_are_in_the_order_of_their_size(tmp_path):
    folder = tmp_path / "results" / "mine"
    add(folder, 1, "full", {}, right=0.9)
    for number, layers in enumerate((12, 3, None, 100), start=2):
        add(folder, number, "ivtp", {"tokens": 64, "llm_layers": layers}, right=0.7)
        amend(folder, number, limit=layers)
    markdown = written(folder, tmp_path)
    lines = [line for line in markdown.splitlines() if line.startswith("| ivtp")]
    assert [re.search(r"llm\\_layers (\w+)", line)[1] for line in lines] == ["3", "12", "100", "None"]


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
