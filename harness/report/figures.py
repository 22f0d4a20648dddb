"""Figures: accuracy against tokens and against FLOPs, with intervals, and the heat map of a grid."""

from itertools import cycle
from pathlib import Path
from textwrap import fill

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, ScalarFormatter

from harness.report.results import Results, Row
from harness.report.tables import Compared, Grid, flops_unit, in_main_table, varied

# Okabe and Ito's colour-blind-safe palette; every method has a marker of its own as well, for print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D00")
MARKERS = "os^Dv*Xp"


def accuracy_tokens(results: Results, compared: Compared, path: Path) -> None:
    """Draw accuracy against the nominal budget."""
    budgets = sorted({row.tokens for row in results.rows if row.tokens is not None})
    figure, axes = _axes("visual tokens (nominal budget)")
    methods = sorted({row.method for row in results.rows})
    apart = {method: 2 ** (0.05 * (number - len(methods) / 2)) for number, method in enumerate(methods)}
    # Side by side, so that the intervals at one budget can be told apart.
    _curves(
        axes, results, compared, {i: row.tokens * apart[row.method] for i, row in enumerate(results.rows) if row.tokens}
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    _save(figure, axes, path)


def accuracy_flops(results: Results, compared: Compared, path: Path) -> None:
    """Draw accuracy against the FLOPs of a prefill."""
    unit, divisor = flops_unit(results)
    figure, axes = _axes(f"{unit} of vision and prefill (convention flops)")
    costs = {i: cost / divisor for i, row in enumerate(results.rows) if (cost := row.mean("flops", "total", "flops"))}
    _curves(axes, results, compared, costs)
    _save(figure, axes, path)


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
    _write(figure, path)


def _axes(xlabel: str) -> tuple[plt.Figure, Axes]:
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    axes.set_xlabel(xlabel)
    axes.set_ylabel("average score over tasks (%)")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _line(results: Results, row: Row) -> str:
    """Return the name of a row's line: everything that differs in the sweep but the budget."""
    words = [row.method, *([row.model] if len({other.model for other in results.rows}) > 1 else [])]
    words += [f"{key} {row.parameters[key]}" for key in varied(results)[row.method]]
    return ", ".join([*words, *(f"{key} {row.setting[key]}" for key in results.differing)])


def _curves(axes: Axes, results: Results, compared: Compared, place: dict[int, float]) -> None:
    """Draw one line a method; the full model is a dashed line with its interval as a band."""
    shown = [i for i in in_main_table(results) if i in compared.average]
    styles = cycle(("--", ":", "-."))
    for i in shown:
        if results.rows[i].method == "full":
            mean, low, high = (100 * value for value in compared.average[i])
            axes.axhline(
                mean, color="#555555", linestyle=next(styles), linewidth=1, label=_line(results, results.rows[i])
            )
            axes.axhspan(low, high, color="#555555", alpha=0.12, linewidth=0)
            if i in place:
                axes.plot([place[i]], [mean], color="#555555", marker="P", linestyle="none")
    lines = {i: _line(results, results.rows[i]) for i in shown if results.rows[i].method != "full"}
    for number, line in enumerate(sorted(set(lines.values()))):
        points = sorted((place[i], *compared.average[i]) for i in lines if lines[i] == line and i in place)
        if not points:
            continue
        xs, means, lows, highs = ([point[part] for point in points] for part in range(4))
        means, lows, highs = ([100 * value for value in values] for values in (means, lows, highs))
        errors = [
            [m - low for m, low in zip(means, lows, strict=True)],
            [h - m for m, h in zip(means, highs, strict=True)],
        ]
        axes.errorbar(
            xs,
            means,
            yerr=errors,
            label=line,
            color=COLORS[number % len(COLORS)],
            marker=MARKERS[(number + number // len(COLORS)) % len(MARKERS)],
            capsize=2,
            linewidth=1.5,
            elinewidth=0.8,
        )


def _save(figure: plt.Figure, axes: Axes, path: Path) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    _write(figure, path)


def _write(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=130, facecolor="white", metadata={"Software": None})
    plt.close(figure)
