"""The heat map of a grid of two parameters."""

from math import nan
from pathlib import Path
from textwrap import fill

from harness.report.figures.style import plt, save
from harness.report.statistics import Interval
from harness.report.tables import Grid


def heat_map(grid: Grid, path: Path) -> None:
    """Draw a grid's averages with their intervals; colours span no less than these, lest noise look like a pattern."""
    cells = {key: Interval(*(100 * value for value in cell)) for key, cell in grid.cells.items()}
    ys, xs = grid.values
    values = [[cells[y, x].mean if (y, x) in cells else nan for x in xs] for y in ys]
    figure, axes = plt.subplots(figsize=(1.6 + 1.1 * len(xs), 1.4 + 0.7 * len(ys)), layout="constrained")
    means = [cell.mean for cell in cells.values()]
    middle = (max(means) + min(means)) / 2
    half = (
        max([max(means) - min(means), *(cell.high - cell.low for cell in cells.values() if cell.high > cell.low)]) / 2
    )
    image = axes.imshow(values, cmap="cividis", aspect="auto", vmin=middle - half, vmax=middle + half)
    for (y, x), cell in cells.items():
        color = "white" if cell.mean < middle else "black"
        at = (xs.index(x), ys.index(y))
        axes.annotate(f"{cell.mean:.1f}", at, ha="center", va="bottom", color=color)
        if cell.low == cell.low:
            axes.annotate(f"{cell.low:.1f}–{cell.high:.1f}", at, ha="center", va="top", color=color, fontsize=8)
    axes.set_xticks(range(len(xs)), [str(x) for x in xs])
    axes.set_yticks(range(len(ys)), [str(y) for y in ys])
    axes.set_xlabel(grid.across)
    axes.set_ylabel(grid.down)
    axes.set_title(fill(f"{grid.title}: average (%), 95 % interval", int(10 * figure.get_figwidth())), fontsize=10)
    figure.colorbar(image)
    save(figure, path)
