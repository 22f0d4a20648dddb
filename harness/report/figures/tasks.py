"""Score against tokens of every leaf task: small multiples with intervals."""

from pathlib import Path

from harness.report.compared import Compared
from harness.report.figures.curves import Cost, draw_full, draw_lines, scale
from harness.report.figures.style import WIDTH, Lines, full_rows, panels, plt, save
from harness.report.frontier import Point
from harness.report.results import Results
from harness.report.tables import short_names

ACROSS = 3
GROUPS = 4  # of methods, each with a column of its own


def score_by_task(results: Results, compared: Compared, lines: Lines, cost: Cost, path: Path) -> bool | None:
    """Draw one panel a task; where there are many methods one row a task, and a column for each few of them.

    Returns whether it is there: not if the methods need more than GROUPS columns; None where nothing is to be shown,
    of one task or of rows that do not differ in cost.
    """
    scored = {task for found in compared.scores.values() for task in found}
    names = {task: name for task, name in short_names(results.tasks).items() if task in scored}
    if len(names) < 2 or len({cost.of[i].mean for rows in lines.values() for i in rows if i in cost.of}) < 2:
        return None
    groups = panels(lines)
    if len(groups) > GROUPS:
        return False
    cells = [(task, own) for task in names for own in groups]
    across = len(groups) if len(groups) > 1 else min(ACROSS, len(names))
    down = -(-len(cells) // across)
    figure, grid = plt.subplots(
        down, across, figsize=(WIDTH, 1 + 1.8 * down), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    figure.supylabel("score (%)", fontsize=10)
    figure.supxlabel(cost.label, fontsize=10)
    for axes in grid.flat[len(cells) :]:
        axes.set_axis_off()
    for number, (axes, (task, own)) in enumerate(zip(grid.flat, cells, strict=False)):
        scores = {i: found[task] for i, found in compared.scores.items() if task in found}
        points = {i: Point(cost.of[i], scores[i]) for name in own for i in lines[name] if i in cost.of and i in scores}
        whole = draw_full(axes, results, {i: scores[i] for i in full_rows(results, compared) if i in scores}, cost)
        keys = draw_lines(axes, own, lines, points, cost)
        scale(axes, results, cost)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
        axes.tick_params(axis="x", labelrotation=90, labelbottom=number + across >= len(cells))
        axes.set_title(names[task], loc="left", fontsize=9, pad=3)
        if len(groups) > 1 and task == next(iter(names)):
            axes.legend(handles=keys, loc="lower left", bbox_to_anchor=(-0.1, 1.1), frameon=False, fontsize=8)
    shared = whole if len(groups) > 1 else [*keys, *whole]
    figure.legend(handles=shared, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    save(figure, path)
    return True
