"""Figures: accuracy against tokens and against FLOPs, with intervals, and the heat map of a grid."""

from itertools import cycle
from pathlib import Path
from textwrap import fill

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, ScalarFormatter

from harness.report.compared import Compared
from harness.report.results import Results, Row
from harness.report.tables import Grid, flops_unit, in_main_table, varied

# Okabe and Ito's colour-blind-safe palette; every method has a marker of its own as well, for print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D00")
MARKERS = "os^Dv*Xp"


def accuracy_tokens(results: Results, compared: Compared, path: Path) -> None:
    """Draw accuracy against the nominal budget, of a method without one against its mean tokens in the LLM."""
    place = {
        i: tokens
        for i, row in enumerate(results.rows)
        if row.method != "full" and (tokens := row.tokens or row.mean("tokens", "mean_llm"))
    }
    adapts = any(results.rows[i].adaptive for i in place)
    xlabel = f"visual tokens (nominal budget{', adaptive: realised mean' if adapts else ''})"
    figure, panels = _curves(results, compared, place, xlabel, apart=0.05)
    budgets = sorted({row.tokens for row in results.rows if row.tokens})
    for axes in panels:
        axes.set_xscale("log", base=2)
        if len(budgets) < 8:  # of more the labels would overlap
            axes.set_xticks(budgets)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    _write(figure, path)


def accuracy_flops(results: Results, compared: Compared, path: Path, convention: str) -> None:
    """Draw accuracy against the FLOPs of a prefill."""
    unit, divisor = flops_unit(results, convention)
    costs = {
        i: cost / divisor for i, row in enumerate(results.rows) if (cost := row.mean("flops", "total", convention))
    }
    figure, _ = _curves(results, compared, costs, f"{unit} of vision and prefill (convention {convention})")
    _write(figure, path)


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


def _line(results: Results, row: Row) -> str:
    """Return the name of a row's line: everything that differs in the sweep but the budget, if any."""
    words = [
        row.method,
        *(["adaptive"] if row.adaptive else []),
        *([row.model] if len({other.model for other in results.rows}) > 1 else []),
    ]
    words += [f"{key} {row.parameters[key]}" for key in varied(results)[row.method]]
    return ", ".join([*words, *(f"{key} {row.setting[key]}" for key in results.differing)])


def _curves(
    results: Results, compared: Compared, place: dict[int, float], xlabel: str, apart: float = 0
) -> tuple[plt.Figure, list[Axes]]:
    """Draw one line a method; the full model is a dashed line with its interval as a band.

    More lines than there are colours are drawn on several panels, the others behind each panel's own in grey. apart:
    powers of two by which neighbours of one panel stand side by side, so that their intervals can be told apart.
    """
    shown = [i for i in in_main_table(results) if i in compared.average]
    lines: dict[str, list[int]] = {}
    for i in shown:
        if results.rows[i].method != "full" and i in place:
            lines.setdefault(_line(results, results.rows[i]), []).append(i)
    names = sorted(lines)
    count = -(-len(names) // len(COLORS)) or 1
    each = -(-len(names) // count) or 1
    figure, grid = plt.subplots(
        1, count, figsize=(8 if count == 1 else 4.6 * count, 4.6), sharey=True, squeeze=False, layout="constrained"
    )
    panels: list[Axes] = list(grid[0])
    panels[0].set_ylabel("average score over tasks (%)")
    for number, axes in enumerate(panels):
        axes.set_xlabel(xlabel)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        _draw_full(axes, results, compared, [i for i in shown if results.rows[i].method == "full"], place)
        own = names[number * each : (number + 1) * each]
        for name in [name for name in names if name not in own]:
            curve = sorted((place[i], 100 * compared.average[i].mean) for i in lines[name])
            axes.plot(*zip(*curve, strict=True), color="#bbbbbb", linewidth=0.8, zorder=1)
        for index, name in enumerate(own):
            beside = 2 ** (apart * (index - (len(own) - 1) / 2))
            points = [(place[i] * beside, *compared.average[i]) for i in lines[name]]
            _draw_line(axes, points, name, COLORS[index], MARKERS[index])
        if count == 1:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
        else:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    return figure, panels


def _draw_full(axes: Axes, results: Results, compared: Compared, rows: list[int], place: dict[int, float]) -> None:
    for i, style in zip(rows, cycle(("--", ":", "-.")), strict=False):
        mean, low, high = (100 * value for value in compared.average[i])
        axes.axhline(mean, color="#555555", linestyle=style, linewidth=1, label=_line(results, results.rows[i]))
        axes.axhspan(low, high, color="#555555", alpha=0.12, linewidth=0)
        if i in place:
            axes.plot([place[i]], [mean], color="#555555", marker="P", linestyle="none")


def _draw_line(
    axes: Axes, points: list[tuple[float, float, float, float]], label: str, color: str, marker: str
) -> None:
    """Draw points of a place, a mean and its interval."""
    xs, *averages = zip(*sorted(points), strict=True)
    means, lows, highs = ([100 * value for value in values] for values in averages)
    errors = [
        [mean - low for mean, low in zip(means, lows, strict=True)],
        [high - mean for mean, high in zip(means, highs, strict=True)],
    ]
    axes.errorbar(
        xs, means, yerr=errors, label=label, color=color, marker=marker, capsize=2, linewidth=1.5, elinewidth=0.8
    )


def _write(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=130, facecolor="white", metadata={"Software": None})
    plt.close(figure)
