import pandas as pd

from harness.report.export import latex, tables, write_tables
from harness.report.tables import table, text

MARKDOWN = (
    "# a\\_b\n\nwords | no table\n\n## Accuracy and cost\n\n"
    + table(
        ["Method", text("a_b 100 %"), "Avg."],
        [
            ["**64 tokens**", "", ""],
            [text("top|k & <x>"), "−1.5 ≈", "**90.0** ="],
            ["**16 tokens**", "", ""],
            [text("a*b {c} \\d"), "x", "1 / 2"],
        ],
    )
    + "\nmore\n\n### Grid: `group` × τ\n\n"
    + table(["a", "b"], [["1", "2"]])
)


def test_cells_are_what_was_written():
    first, second = tables(MARKDOWN)
    assert first.title == "Accuracy and cost" and second.title == "Grid: group × τ"
    assert first.header == ["Method", "a_b 100 %", "Avg."]
    assert first.rows == [
        ["**64 tokens**", "", ""],
        ["top|k & <x>", "−1.5 ≈", "**90.0** ="],
        ["**16 tokens**", "", ""],
        ["a*b {c} \\d", "x", "1 / 2"],
    ]


def test_backticks_of_a_name_stay():
    (found,) = tables(table([text("we`ird\\`"), "`code`"], [[text("a`b"), "**x**"]]))
    assert found.header == ["we`ird\\`", "code"] and found.rows == [["a`b", "**x**"]]


def test_latex_escapes_what_it_would_obey():
    first, _ = tables(MARKDOWN)
    assert latex(first).splitlines() == [
        "% Accuracy and cost",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"Method & a\_b 100 \% & Avg. \\",
        r"\midrule",
        r"\multicolumn{3}{l}{\textbf{64 tokens}} \\",
        r"top|k \& <x> & $-$1.5 $\approx$ & \textbf{90.0} = \\",
        r"\midrule",
        r"\multicolumn{3}{l}{\textbf{16 tokens}} \\",
        r"a*b \{c\} \textbackslash{}d & x & 1 / 2 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_each_table_is_a_file(tmp_path):
    paths = write_tables(MARKDOWN, tmp_path, "csv")
    assert [path.name for path in paths] == ["1_accuracy_and_cost.csv", "2_grid_group.csv"]
    read = pd.read_csv(paths[0], keep_default_na=False)
    assert list(read.columns) == ["Method", "a_b 100 %", "Avg."]
    assert read.iloc[1].tolist() == ["top|k & <x>", "−1.5 ≈", "90.0 ="]
    assert [path.suffix for path in write_tables(MARKDOWN, tmp_path, "latex")] == [".tex", ".tex"]
