"""What all figures share: colours, markers, which lines there are and how they are spread over panels."""

from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from harness.report.compared import Compared
from harness.report.results import Results, Row
from harness.report.rows import in_main_table, parameters, settings

# Okabe and Ito's colour-blind-safe palette; every method has a marker of its own as well, for print. Black and grey are
# of the frontier and the full model.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D00")
MARKERS = "os^DvX>"
FULL, FRONTIER, OTHERS = "#555555", "#000000", "#c4c4c4"
CROWDED = 6  # lines of a panel where they do not fit into one
MOST = 40  # lines of a figure
WIDTH = 9.2  # inches, so that 9 points are read at the width of a page

Lines = dict[str, list[int]]  # the rows of each, by name


def short_name(results: Results, row: Row) -> str:
    """Return a row's method and those of its parameters that vary in the sweep, but the budget."""
    return ", ".join([row.method, *(["adaptive"] if row.adaptive else []), *parameters(results, row)])


def line_name(results: Results, row: Row) -> str:
    """Return the name of a row's line: everything that differs in the sweep but the budget."""
    return ", ".join([short_name(results, row), *settings(results, row)])


def scored_lines(results: Results, compared: Compared) -> Lines:
    """Return the lines of the pruned rows that have an average; of a method with a grid, its commonest values."""
    found: Lines = {}
    for i in in_main_table(results):
        if results.rows[i].method != "full" and i in compared.average:
            found.setdefault(line_name(results, results.rows[i]), []).append(i)
    # by method, then as the rows stand, which have numbers by size
    return dict(sorted(found.items(), key=lambda line: (results.rows[line[1][0]].method, line[1])))


def full_rows(results: Results, compared: Compared) -> list[int]:
    """Return the rows of the full model that have an average."""
    return [i for i, row in enumerate(results.rows) if row.method == "full" and i in compared.average]


def panels(lines: Lines) -> list[list[str]]:
    """Return the names of each panel's lines: all in one as long as there are colours, else evenly spread."""
    names = list(lines)
    count = 1 if len(names) <= len(COLORS) else -(-len(names) // CROWDED)
    each = -(-len(names) // count)
    return [names[start : start + each] for start in range(0, len(names), each)]


def save(figure: Figure, path: Path, dpi: int = 130) -> None:
    """Write a figure, the same bytes each time, on white, so that it is legible on a dark page."""
    figure.savefig(path, dpi=dpi, facecolor="white", metadata={"Software": None})
    plt.close(figure)
