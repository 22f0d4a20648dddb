"""A paper's printed tables beside ours, and what does not fit in the papers themselves.

A sweep file's `published` names the paper's tables and says which of its rows is which of ours. Nothing is fitted or
averaged: ours is the record's number. `results/published/papers.csv` has what the papers print.
"""

from collections.abc import Collection

from harness.findings import conflicts, findings
from harness.papers import BENCHMARKS, paper_model, printed, read_figures, table_name
from harness.report.compared import Compared
from harness.report.printed_costs import costs_table
from harness.report.printed_scores import scores_table
from harness.report.results import Results
from harness.report.tables import text
from harness.shown import Published


def published_tables(
    results: Results, compared: Compared, published: Published, convention: str, asked: Collection[str]
) -> str:
    """Return every printed table with ours beside it and what a check of its figures found. Errors: VtbenchError.

    A table of models that the sweep has not is not held against what it has. asked: ids of the sweep's trials.
    """
    parts = []
    for number, figures in printed(published, costs=results.asked).items():
        here = list(dict.fromkeys(paper_model(row.model) for row in results.rows))
        there = list(dict.fromkeys(figure.model for figure in figures))
        parts.append(f"### {text(table_name(published.paper, number))}\n")
        if not set(here) & set(there):
            parts.append(f"Its figures are of {', '.join(there)} and are not held against {', '.join(here)}.\n")
        elif results.asked:
            parts.append(costs_table(results, published, figures, convention, asked))
        else:
            parts.append(scores_table(results, compared, published, figures, convention, asked))
        parts += [found] if (found := _found(published.paper, number)) else []
    return "\n".join(parts)


def page() -> str:
    """Return what the papers' figures say of themselves: the markdown of `vtbench published`."""
    figures = read_figures()
    whole = {(f.paper, f.table, f.row, f.model) for f in figures if f.metric in BENCHMARKS}
    counts = [
        f"{sum(f.metric == metric and (f.paper, f.table, f.row, f.model) in whole for f in figures)} {words}"
        for metric, words in (("avg", "averages"), ("avg_rate", "average rates"))
    ]
    counts.append(f"{sum(f.metric == 'tflops_change' for f in figures)} changes of TFLOPs")
    return "\n".join(
        [
            "# The papers' figures, checked\n",
            f"`vtbench published` made this of the {len(figures)} printed figures in results/published. "
            f"{', '.join(counts)} were worked out from the figures beside them, and what is printed in several places "
            "was held against each other. Only what no rounding explains is here: a printed figure may be off by half "
            "a unit of its last digit.\n",
            "## What the figures beside it do not give\n",
            *(f"- {text(f'{found.figure.source}, {found.figure.row}: {found.words}.')}" for found in findings(figures)),
            "",
            "## What is printed differently in several places\n",
            "Nothing of it is averaged or chosen: a report marks the cell and names every place.\n",
            *(f"- {text(f'{conflict.words}.')}" for conflict in conflicts(figures)),
            "",
        ]
    )


def _found(paper: str, table: str) -> str:
    found = [each for each in findings(read_figures()) if (each.figure.paper, each.figure.table) == (paper, table)]
    lines = [f"- {text(f'{each.figure.row}: {each.words}.')}" for each in found]
    return "\n".join(["In print, whatever was rounded:\n", *lines]) + "\n" if lines else ""
