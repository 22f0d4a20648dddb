"""The heat map of a grid of two parameters."""

from pathlib import Path
from textwrap import fill

from harness.report.figures.style import plt, save
from harness.report.tables import Grid


def heat_map(grid: Grid, path: Path) -> None:
    """Draw a grid's averages."""
    cells = {key: 100 * cell.mean for key, cell in grid.cells.items()}
    ys, xs = grid.values
    values = [[cells.get((y, x), float("nan")) for x in xs] for y in ys]
    figure, axes = plt.subplots(figsize=(1.6 + 0.9 * len(xs), 1.4 + 0.7 * len(ys)), layout="constrained")
    image = axes.imshow(values, cmap="cividis", aspect="auto")
    middle = (max(cells.values()) + min(cells.values())) / 2
    for (y, x), value in cells.items():
        color = "white" if value < middle else "black"
        axes.text(xs.index(x), ys.index(y), f"{value:.1f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(xs)), [str(x) for x in xs])
    axes.set_yticks(range(len(ys)), [str(y) for y in ys])
    axes.set_xlabel(grid.across)
    axes.set_ylabel(grid.down)
    axes.set_title(fill(f"{grid.title}: average (%)", int(10 * figure.get_figwidth())), fontsize=10)
    figure.colorbar(image)
    save(figure, path)
