"""Accuracy against what it costs: tokens, FLOPs, time or memory, with intervals and the Pareto frontier."""

from collections.abc import Collection
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from harness.report.compared import Compared
from harness.report.figures.style import (
    COLORS,
    FRONTIER,
    FULL,
    MARKERS,
    OTHERS,
    WIDTH,
    Lines,
    full_rows,
    line_name,
    panels,
    plt,
    save,
)
from harness.report.frontier import Point, below, frontier
from harness.report.results import Results, Row
from harness.report.statistics import Interval
from harness.report.tables import flops_unit

CROSS: dict[str, Any] = {"color": "#000000", "marker": "x", "ms": 6.5, "mew": 1, "linestyle": "none", "zorder": 4}


class Cost(NamedTuple):
    """A kind of cost: the file's name, its words in the text and along the axis, each row's, and whether by octaves.

    outside: rows whose cost is of another kind than the others', which no frontier takes, and why.
    """

    name: str
    words: str
    label: str
    of: dict[int, Interval]
    octaves: bool
    outside: frozenset[int] = frozenset()
    why: str = ""


def costs(results: Results, convention: str) -> list[Cost]:
    """Return what the rows cost, in every kind."""
    unit, divisor = flops_unit(results, convention)
    clocks = sorted({r["latency"]["clock"] for row in results.rows for r in row.records if r["latency"]})
    free = frozenset(i for i, row in enumerate(results.rows) if row.tokens is None and row.method != "full")

    def counted(*keys: str, divisor: float = 1) -> dict[int, Interval]:
        found = {i: value for i, row in enumerate(results.rows) if (value := row.mean(*keys)) is not None}
        return {i: Interval(*[value / divisor] * 3) for i, value in found.items()}

    tokens = {i: Interval(*[float(row.tokens)] * 3) for i, row in enumerate(results.rows) if row.tokens}
    timed = {
        i: Interval(*(row.mean("latency", "prefill_ms", key) or median for key in ("median", "q25", "q75")))
        for i, row in enumerate(results.rows)
        if (median := row.mean("latency", "prefill_ms", "median")) is not None
    }
    return [
        Cost(
            "tokens",
            "the nominal budget of visual tokens",
            f"visual tokens (nominal budget{'; ×: realised mean' if free else ''})",
            counted("tokens", "mean_llm") | tokens,
            True,
            free,
            "What has no budget stands at its realised mean over images and LLM layers (×), not in a frontier.",
        ),
        Cost(
            "flops",
            unit,
            f"{unit} of vision and prefill (convention {convention})",
            counted("flops", "total", convention, divisor=divisor),
            False,
        ),
        Cost(
            "time",
            "prefill time",
            f"ms of vision and prefill ({', '.join(clocks)}; bars: quartiles)",
            timed,
            False,
            frozenset(i for i in timed if not results.rows[i].alone),
            "What was timed while others used the device (×) is not in a frontier.",
        ),
        Cost(
            "kv",
            "KV-cache bytes",
            "MB of the visual tokens' KV cache",
            counted("memory", "kv_visual_bytes", divisor=1e6),
            True,
        ),
    ]


def accuracy(results: Results, compared: Compared, lines: Lines, cost: Cost, path: Path) -> str | None:
    """Draw one line a method, on several panels where there are many, each with the others behind it in grey.

    The full model is a dashed line with its interval as a band. Returns what is on the frontier and what cannot be, in
    words; None where nothing is drawn: fewer than two pruned rows differ in cost.
    """
    points = {i: Point(cost.of[i], compared.average[i]) for rows in lines.values() for i in rows if i in cost.of}
    if len({point.cost.mean for point in points.values()}) < 2:
        return None
    whole = full_rows(results, compared)
    points |= {i: Point(cost.of[i], compared.average[i]) for i in whole if i in cost.of}
    peers: dict[tuple[str, str], dict[int, Point]] = {}  # what answered the same questions with the same model
    for i, point in points.items():
        row = results.rows[i]
        if i not in cost.outside:
            peers.setdefault((row.model, str(row.setting)), {})[i] = point
    best = [frontier(each) for each in peers.values() if len(each) > 1]
    hollow = set().union(*(below(each) for each in peers.values()))
    crossed = points.keys() & cost.outside

    groups = panels(lines)
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    size = (WIDTH, 4.6) if len(groups) == 1 else (WIDTH, 3.4 * rows)
    figure, grid = plt.subplots(
        rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    figure.supylabel("average score over tasks (%)", fontsize=10)
    figure.supxlabel(cost.label, fontsize=10)
    for axes in grid.flat[len(groups) :]:
        axes.set_axis_off()
    for axes, own in zip(grid.flat, groups, strict=False):
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelbottom=True)
        shared = draw_full(axes, results, {i: compared.average[i] for i in whole}, cost)
        shared += _draw_frontier(axes, points, best)
        for name in [name for name in lines if name not in own]:
            behind = sorted((points[i].cost.mean, 100 * points[i].score.mean) for i in lines[name] if i in points)
            axes.plot(*zip(*behind, strict=True), color=OTHERS, linewidth=0.8, zorder=1) if behind else None
        keys = draw_lines(axes, own, lines, points, cost, hollow)
        scale(axes, results, cost)
        if len(groups) > 1:
            axes.legend(handles=keys, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, frameon=False, fontsize=9)
    shared.append(
        Line2D([], [], color=FULL, marker="o", markerfacecolor="white", linestyle="none", label="intervals apart")
    )
    shared += [Line2D([], [], label="not in the frontier", **CROSS)] if crossed else []
    if len(groups) == 1:
        figure.legend(handles=[*keys, *shared], loc="outside right upper", frameon=False, fontsize=9)
    else:
        figure.legend(handles=shared, loc="outside upper center", ncols=len(shared), frameon=False, fontsize=9)
    save(figure, path)
    names = [_named(results, results.rows[i]) for each in best for i in each]
    said = [f"On the frontier, with their budgets: {'; '.join(names)}."] if names else []
    return " ".join([*said, *([cost.why] if crossed else [])])


def _named(results: Results, row: Row) -> str:
    return line_name(results, row) + (f" ({row.tokens})" if row.tokens else "")


def scale(axes: Axes, results: Results, cost: Cost) -> None:
    """Set the scale and the ticks of a cost's axis."""
    if not cost.octaves:
        axes.set_xlim(left=0)
        return
    axes.set_xscale("log", base=2)
    budgets = sorted({row.tokens for row in results.rows if row.tokens})
    if cost.name == "tokens" and len(budgets) < 8:  # of more the labels would overlap
        axes.set_xticks(budgets)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_frontier(axes: Axes, points: dict[int, Point], best: list[list[int]]) -> list[Line2D]:
    for each in best:
        steps = [(points[i].cost.mean, 100 * points[i].score.mean) for i in each]
        steps.append((max(point.cost.mean for point in points.values()), steps[-1][1]))
        axes.plot(*zip(*steps, strict=True), color=FRONTIER, linewidth=0.9, drawstyle="steps-post", zorder=1.5)
    key = Line2D([], [], color=FRONTIER, linewidth=0.9, drawstyle="steps-post", label="Pareto frontier")
    return [key] if best else []


def draw_full(axes: Axes, results: Results, scores: dict[int, Interval], cost: Cost) -> list[Line2D]:
    """Draw the full model's scores as dashed lines with their intervals as bands, and return the legend's keys."""
    keys = []
    for (i, score), style in zip(scores.items(), cycle(("--", ":", "-.")), strict=False):
        mean, low, high = (100 * value for value in score)
        name = line_name(results, results.rows[i])
        keys.append(axes.axhline(mean, color=FULL, linestyle=style, linewidth=1, label=name))
        axes.axhspan(low, high, color=FULL, alpha=0.12, linewidth=0)
        if i in cost.of:
            axes.plot([cost.of[i].mean], [mean], color=FULL, marker="P", linestyle="none")
            axes.plot([cost.of[i].mean], [mean], **CROSS) if i in cost.outside else None
    return keys


def draw_lines(
    axes: Axes, own: list[str], lines: Lines, points: dict[int, Point], cost: Cost, hollow: Collection[int] = ()
) -> list[Line2D]:
    """Draw a panel's lines with intervals, neighbours a little apart along octaves, and return the legend's keys."""
    keys = []
    for index, (name, color, marker) in enumerate(zip(own, COLORS, MARKERS, strict=False)):
        beside = 2 ** (0.04 * (index - (len(own) - 1) / 2)) if cost.octaves else 1.0
        order = sorted((i for i in lines[name] if i in points), key=lambda i: points[i].cost.mean)
        xs = [points[i].cost.mean * beside for i in order]
        ys = [100 * points[i].score.mean for i in order]
        across = _spread([points[i].cost for i in order], 1)
        up = _spread([points[i].score for i in order], 100)
        wide = any(map(any, across))
        axes.errorbar(
            xs, ys, up, across if wide else None, color=color, lw=1.4, elinewidth=0.8, capsize=0 if wide else 2
        )
        for x, y, i in zip(xs, ys, order, strict=True):
            axes.plot(x, y, color=color, marker=marker, mfc="white" if i in hollow else color, ms=5.5)
            axes.plot(x, y, **CROSS) if i in cost.outside else None
        keys.append(Line2D([], [], color=color, marker=marker, lw=1.4, ms=5.5, label=name))
    return keys


def _spread(values: list[Interval], unit: float) -> list[list[float]]:
    """Return how far intervals go down and up; one that is not there goes nowhere."""
    return [
        [max(0.0, unit * (value.mean - value.low)) for value in values],
        [max(0.0, unit * (value.high - value.mean)) for value in values],
    ]
