"""The paper-style table, the group × threshold tables, failures and provenance, as markdown."""

import html
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

from harness.report.cells import Column, columns, flops_unit, points
from harness.report.compared import LEVEL, Compared
from harness.report.results import Results, Row, rank
from harness.report.rows import differing, gridded, in_main_table, row_name, several_models, varied
from harness.report.statistics import Interval

NOT_MEASURED = "not measured"
NONE = "–"
SAME = "≈"
TIED = "="
SHARED = "‡"
MOST_ROWS = 1000  # of a table; a longer one helps nobody
MOST_SCORED = 60


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


def label(results: Results, row: Row) -> str:
    """Return a row's name as markdown, without the model, which stands above."""
    return text(row_name(results, row, model=False))


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
    rows = in_main_table(results)
    table = by_budget(results, rows, ["Method", *columns], lambda index: [cell(index) for cell in columns.values()])
    left = len(results.rows) - len(rows)
    further = f"\n{left} further {'row is' if left == 1 else 'rows are'} under Grids and in the JSON.\n"
    return table + (further if left else "")


def by_budget(
    results: Results, rows: Sequence[int], header: Sequence[str], cells: Callable[[int], Sequence[str]]
) -> str:
    """Return a table of rows, each under its budget, and of very many the first with a word on where the others are."""
    lines: list[Sequence[str]] = []
    block: object = ()
    for index in rows[:MOST_ROWS]:
        row = results.rows[index]
        if (row.model, row.budget) != block:
            block = (row.model, row.budget)
            shown = f"{row.budget}, {text(row.model)}" if several_models(results) else row.budget
            lines.append([f"**{shown}**", *[""] * (len(header) - 1)])
        lines.append([label(results, row), *cells(index)])
    left = f"\nThe first {MOST_ROWS} of {len(rows)} rows; the JSON beside this report has all.\n"
    return table(header, lines) + (left if len(rows) > MOST_ROWS else "")


def scores_table(results: Results, compared: Compared, convention: str) -> str:
    """Return every task's mean score with its interval and the sign of no difference from the full model's.

    Empty for one task, whose average it is, and for many rows.
    """
    measured = columns(results, compared, convention)
    names = short_names(results.tasks)
    means = {task: measured.get(f"mean/{task}") or measured.get(f"score/{task}") for task in names}
    shown = {task: column for task, column in means.items() if column}
    rows = [index for index in in_main_table(results) if index in compared.average]
    if len(shown) < 2 or len(rows) > MOST_SCORED:
        return ""

    def score(task: str, index: int) -> str:
        found = _spread(shown[task], index)
        return f"{found} {SAME}" if compared.corrected_by_task.get((index, task), 0) > LEVEL else found

    header = ["Method", *(text(names[task]) for task in shown)]
    return by_budget(results, rows, header, lambda index: [score(task, index) for task in shown])


def _spread(column: Column, index: int) -> str:
    """Return a row's number with its range, if it has one."""
    value, spread = column.written(index), column.spread(index)
    return NOT_MEASURED if value is None else f"{value} ({spread})" if spread else value


def _columns(results: Results, compared: Compared, convention: str) -> dict[str, Callable[[int], str]]:
    """Return each column's head and what it says of a row."""
    measured = columns(results, compared, convention)
    names = short_names(results.tasks)
    clock = next(
        (record["latency"]["clock"] for row in results.rows for record in row.records if record["latency"]), ""
    )
    clock = f", {clock}" if clock else ""
    memories = [record["memory"] or {} for row in results.rows for record in row.records]
    kinds = ", ".join(sorted({memory["peak_kind"] for memory in memories if memory.get("peak_kind")}))

    def of(name: str) -> Callable[[int], str]:
        return lambda index: written(measured, name, index) or NOT_MEASURED

    def average(index: int) -> str:
        mean = written(measured, "average", index)
        if mean is None:
            return NONE if results.off_scale & results.rows[index].scores.keys() else NOT_MEASURED
        lacking = len(results.lacks(results.rows[index]))
        part = f" ({len(names) - lacking} of {len(names)} tasks)" if lacking else ""
        mean = f"**{mean}**" if compared.best.get(index) == index else mean
        signs = [sign for sign, those in ((SAME, compared.same), (TIED, compared.tied)) if index in those]
        return " ".join([mean, *signs]) + part

    def retention(index: int) -> str:
        rate = written(measured, "retention", index)
        return f"{rate} %" if rate else ""

    def flops(index: int) -> str:
        cost, change = (written(measured, name, index) for name in ("flops", "flops_change"))
        signed = change if change is None or change.startswith("−") else f"+{change}"
        return NOT_MEASURED if cost is None else f"{cost} ({signed})" if signed else cost

    def tokens(index: int) -> str:
        into, mean = (written(measured, name, index) for name in ("tokens_into_llm", "tokens_mean"))
        return NOT_MEASURED if into is None or mean is None else f"{into} / {mean}"

    def prefill(index: int) -> str:
        return disturbed(_spread(measured["prefill"], index) if "prefill" in measured else NOT_MEASURED, index)

    def time(name: str, index: int) -> str:
        return disturbed(written(measured, name, index) or NOT_MEASURED, index)

    def disturbed(found: str, index: int) -> str:
        return found if found == NOT_MEASURED or results.rows[index].alone else f"{found} {SHARED}"

    heads: dict[str, dict[str, Callable[[int], str]]] = {
        "accuracy": {
            **{text(name): of(f"score/{task}") for task, name in names.items()},
            "Avg.": average,
            "95 %": lambda index: measured["average"].spread(index) if "average" in measured else "",
            "Avg. rate": retention,
        },
        "flops": {f"{flops_unit(results, convention)[0]} (%)": flops},
        "latency": {
            f"prefill ms (quartiles){clock}": prefill,
            "of it vision": partial(time, "vision"),
            "of it pruner": lambda index: "" if results.rows[index].method == "full" else time("pruner", index),
            "decode ms": partial(time, "decode"),
        },
        "memory": {"KV MB": of("kv")}
        | ({f"peak GB ({kinds})": of("peak")} if kinds else {})
        | ({"peak GB (CUDA reserved)": of("reserved")} if "reserved" in measured else {}),
        "tokens": {"tokens into LLM / mean": tokens},
    }
    return {head: cell for measure, found in heads.items() if results.asks(measure) for head, cell in found.items()}


def written(measured: dict[str, Column], name: str, index: int) -> str | None:
    """Return a row's number as it is printed, None where it was not measured."""
    return measured[name].written(index) if name in measured else None


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
        return sorted(down, key=rank), sorted(across, key=rank)


def grids(results: Results, compared: Compared) -> list[Grid]:
    """Return a grid for every gridded method, budget, model, setting and values of further parameters."""
    found: dict[str, Grid] = {}
    for index, row in enumerate(results.rows):
        pair = gridded(results).get(row.method)
        if pair is None or index not in compared.average:
            continue
        down, across = pair
        words = [
            f"{row.method}{', ' if row.adaptive else ' at '}{row.budget}",
            *([row.model] if several_models(results) else []),
        ]
        words += [f"{key} {row.parameters[key]}" for key in varied(results)[row.method] if key not in pair]
        words += differing(results, row)
        title = ", ".join(words)
        grid = found.setdefault(title, Grid(title, down, across, {}))
        place = [value if isinstance(value, Hashable) else str(value) for value in map(row.parameters.get, pair)]
        grid.cells[place[0], place[1]] = compared.average[index]
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
            shown = "" if cell is None else points(*cell)
            line.append(f"**{shown}**" if cell and cell.mean == best else shown or NOT_MEASURED)
        lines.append(line)
    header = [f"{text(grid.down)} \\ {text(grid.across)}", *(text(column) for column in columns)]
    return f"### {text(grid.title)}: {text(grid.down)} × {text(grid.across)}\n\n{table(header, lines)}"
