"""The paper-style table, the group × threshold tables, failures and provenance, as markdown."""

import html
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import pandas as pd

from harness.report.compared import Compared
from harness.report.results import Results, Row
from harness.report.statistics import Interval

NOT_MEASURED = "not measured"
SAME = "≈"
TIED = "="


def text(value: object) -> str:
    """Return a text that markdown and HTML show as it is, in one table cell."""
    escaped = html.escape(" ".join(str(value).split()), quote=False)
    for character in "\\`*_[]|~":
        escaped = escaped.replace(character, f"\\{character}")
    return escaped


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a markdown table, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def varied(results: Results) -> dict[str, list[str]]:
    """Return, by method, the parameters besides tokens that take several values in the sweep."""
    found = {}
    for method in dict.fromkeys(row.method for row in results.rows):
        rows = [row.parameters for row in results.rows if row.method == method]
        keys = [key for key in rows[0] if key != "tokens" and len({str(row.get(key)) for row in rows}) > 1]
        found[method] = keys
    return found


def gridded(results: Results) -> dict[str, tuple[str, str]]:
    """Return the methods with a grid of two parameters or more, and the two that span its table."""
    return {method: (keys[0], keys[1]) for method, keys in varied(results).items() if len(keys) >= 2}


def commonest(results: Results, method: str) -> dict[str, Any]:
    """Return the values of a gridded method's parameters that most of its budgets were run with."""
    keys = varied(results)[method]
    rows = [row for row in results.rows if row.method == method]
    sets = pd.Series([str({key: row.parameters[key] for key in keys}) for row in rows])
    chosen = sets.value_counts(sort=True).index[0]
    return next({k: row.parameters[k] for k in keys} for row, s in zip(rows, sets, strict=True) if s == chosen)


def in_main_table(results: Results) -> list[int]:
    """Return the rows of the main table; of a method whose scores have a grid, those at its commonest values."""
    grids = {method: commonest(results, method) for method in gridded(results)} if results.asks("accuracy") else {}
    return [
        index
        for index, row in enumerate(results.rows)
        if all(row.parameters[key] == value for key, value in grids.get(row.method, {}).items())
    ]


def label(results: Results, row: Row) -> str:
    """Return a row's name: the method and the parameters that vary in the sweep."""
    keys = varied(results)[row.method]
    shown = [f"{key} {row.parameters[key]}" for key in keys]
    shown += [f"{key} {row.setting[key]}" for key in results.differing]
    return text(f"{row.method} ({', '.join(shown)})" if shown else row.method)


def short_names(tasks: Sequence[str]) -> dict[str, str]:
    """Return the tasks' names without the prefix that they share."""
    words = [task.split("_") for task in tasks]
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False)))
    return {task: "_".join(parts[shared:]) or task for task, parts in zip(tasks, words, strict=True)}


def main_table(results: Results, compared: Compared, convention: str) -> str:
    """Return the table of the papers: rows methods at each budget; scores, average, retention, costs, tokens.

    What no trial was asked for has no column.
    """
    columns = _columns(results, compared, convention)
    header = ["Method", *columns]
    lines: list[list[str]] = []
    budget: object = ()
    for index in in_main_table(results):
        row = results.rows[index]
        if (row.model, row.budget) != budget:
            budget = (row.model, row.budget)
            models = {other.model for other in results.rows}
            shown = f"{row.budget}, {text(row.model)}" if len(models) > 1 else row.budget
            lines.append([f"**{shown}**", *[""] * (len(header) - 1)])
        lines.append([label(results, row), *(cell(index) for cell in columns.values())])
    return table(header, lines)


def _columns(results: Results, compared: Compared, convention: str) -> dict[str, Callable[[int], str]]:
    """Return each column's head and what it says of a row."""
    names = short_names(results.tasks)
    unit, divisor = flops_unit(results, convention)
    clock = next(
        (record["latency"]["clock"] for row in results.rows for record in row.records if record["latency"]), ""
    )
    clock = f", {clock}" if clock else ""

    def of(*keys: str, divisor: float = 1, digits: int = 1) -> Callable[[int], str]:
        def cell(index: int) -> str:
            value = results.rows[index].mean(*keys)
            return NOT_MEASURED if value is None else f"{value / divisor:.{digits}f}".replace("-", "−")

        return cell

    def average(index: int) -> str:
        found = compared.average.get(index)
        if found is None:
            return NOT_MEASURED
        present = [task for task in names if results.rows[index].scores.get(task) is not None]
        part = f" ({len(present)} of {len(names)} tasks)" if len(present) < len(names) else ""
        mean = f"**{100 * found.mean:.1f}**" if compared.best.get(index) == index else f"{100 * found.mean:.1f}"
        signs = [sign for sign, those in ((SAME, compared.same), (TIED, compared.tied)) if index in those]
        return " ".join([mean, *signs]) + part

    def spread(index: int) -> str:
        found = compared.average.get(index)
        return "" if found is None else f"{100 * found.low:.1f}–{100 * found.high:.1f}"

    def retention(index: int) -> str:
        return f"{100 * compared.retention[index]:.1f} %" if index in compared.retention else ""

    def flops(index: int) -> str:
        row, full = results.rows[index], compared.full[index]
        cost = row.mean("flops", "total", convention)
        whole = full.mean("flops", "total", convention) if full and full is not row else None
        saved = f" ({100 * (cost / whole - 1):+.1f})".replace("-", "−") if cost and whole else ""
        return NOT_MEASURED if cost is None else f"{cost / divisor:.3f}{saved}"

    def tokens(index: int) -> str:
        into, mean = (results.rows[index].mean("tokens", key) for key in ("into_llm", "mean_llm"))
        return NOT_MEASURED if into is None or mean is None else f"{into:.0f} / {mean:.0f}"

    def prefill(index: int) -> str:
        low, median, high = (results.rows[index].mean("latency", "prefill_ms", key) for key in ("q25", "median", "q75"))
        return NOT_MEASURED if median is None else f"{median:.1f} ({low:.1f}–{high:.1f})"

    pruner = of("latency", "pruner_ms", "median")
    memories = [record["memory"] or {} for row in results.rows for record in row.records]
    kinds = sorted({memory["peak_kind"] for memory in memories if memory.get("peak_kind")})
    peaks = {f"peak GB ({', '.join(kinds)})": of("memory", "peak_bytes", divisor=1e9, digits=2)} if kinds else {}
    if any(memory.get("reserved_bytes") for memory in memories):
        peaks["peak GB (CUDA reserved)"] = of("memory", "reserved_bytes", divisor=1e9, digits=2)
    columns: dict[str, dict[str, Callable[[int], str]]] = {
        "accuracy": {
            **{
                text(name): lambda index, task=task: _score(results.rows[index].scores.get(task))  # type: ignore[misc]
                for task, name in names.items()
            },
            "Avg.": average,
            "95 %": spread,
            "Avg. rate": retention,
        },
        "flops": {f"{unit} (%)": flops},
        "latency": {
            f"prefill ms (quartiles){clock}": prefill,
            "of it vision": of("latency", "vision_ms", "median"),
            "of it pruner": lambda index: "" if results.rows[index].method == "full" else pruner(index),
            "decode ms": of("latency", "decode_ms", "median"),
        },
        "memory": {"KV MB": of("memory", "kv_visual_bytes", divisor=1e6, digits=3)} | peaks,
        "tokens": {"tokens into LLM / mean": tokens},
    }
    return {head: cell for measure, found in columns.items() if results.asks(measure) for head, cell in found.items()}


def _score(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{100 * value:.1f}" if value <= 1 else f"{value:.1f}"


def flops_unit(results: Results, convention: str) -> tuple[str, float]:
    """Return TFLOPs, or GFLOPs where the largest is below 0.1 TFLOPs, and what to divide by."""
    largest = max((row.mean("flops", "total", convention) or 0.0 for row in results.rows), default=0.0)
    return ("TFLOPs", 1e12) if largest >= 1e11 else ("GFLOPs", 1e9)


class Grid(NamedTuple):
    """The averages of one method at one budget by two of its parameters, all else being equal."""

    title: str
    down: str
    across: str
    cells: dict[tuple[Any, Any], Interval]

    @property
    def values(self) -> tuple[list[Any], list[Any]]:
        """The values of the two parameters: numbers sorted, then words and nothing."""
        down, across = ({key[side] for key in self.cells} for side in (0, 1))
        return sorted(down, key=_rank), sorted(across, key=_rank)


def _rank(value: object) -> tuple[bool, float, str]:
    return (False, float(value), "") if isinstance(value, int | float) else (True, 0.0, str(value))


def grids(results: Results, compared: Compared) -> list[Grid]:
    """Return a grid for every gridded method, budget, model, setting and values of further parameters."""
    found: dict[str, Grid] = {}
    several_models = len({row.model for row in results.rows}) > 1
    for index, row in enumerate(results.rows):
        pair = gridded(results).get(row.method)
        if pair is None or index not in compared.average:
            continue
        down, across = pair
        words = [
            f"{row.method}{', ' if row.adaptive else ' at '}{row.budget}",
            *([row.model] if several_models else []),
        ]
        words += [f"{key} {row.parameters[key]}" for key in varied(results)[row.method] if key not in pair]
        words += [f"{key} {row.setting[key]}" for key in results.differing]
        title = ", ".join(words)
        grid = found.setdefault(title, Grid(title, down, across, {}))
        grid.cells[row.parameters[down], row.parameters[across]] = compared.average[index]
    return [grid for grid in found.values() if len(grid.cells) > 1]


def grid_table(grid: Grid) -> str:
    """Return a grid's table; the best averages are bold."""
    best = max(cell.mean for cell in grid.cells.values())
    rows, columns = grid.values
    lines = []
    for value in rows:
        line = [text(value)]
        for column in columns:
            cell = grid.cells.get((value, column))
            shown = "" if cell is None else f"{100 * cell.mean:.1f} ({100 * cell.low:.1f}–{100 * cell.high:.1f})"
            line.append(f"**{shown}**" if cell and cell.mean == best else shown or NOT_MEASURED)
        lines.append(line)
    header = [f"{text(grid.down)} \\ {text(grid.across)}", *(text(column) for column in columns)]
    return f"### {text(grid.title)}: {text(grid.down)} × {text(grid.across)}\n\n{table(header, lines)}"
