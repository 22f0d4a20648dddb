"""A paper's printed costs beside ours, in the paper's layout: published, ours and the difference.

A sweep file's `published` names the paper's tables and says which of its rows is which of ours. Nothing is fitted: ours
is the record's number under the report's convention. `results/published/papers.csv` has what the papers print.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from harness.errors import VtbenchError
from harness.papers import PARTS, Figure, printed
from harness.report.results import Results, Row
from harness.report.tables import NOT_MEASURED, table, text
from harness.shown import Published

CLOSE = 0.02
HEADS = {"tflops": "TFLOPs", "tflops_vit": "ViT", "tflops_llm": "LLM", "tflops_extra": "extra"}
UNREPRODUCED = "†"


class Cell(NamedTuple):
    """One printed figure and ours."""

    row: str
    column: str
    printed: float
    ours: float | None
    reason: str | None  # why it cannot be had

    @property
    def difference(self) -> float | None:
        """Ours relative to what is printed."""
        return None if self.ours is None else self.ours / self.printed - 1

    @property
    def close(self) -> bool:
        """Whether ours is within 2 %."""
        return self.difference is not None and abs(self.difference) <= CLOSE


def published_tables(results: Results, published: Published, convention: str) -> str:
    """Return every printed table with ours, and how many of its figures are within 2 %. Errors: VtbenchError."""
    parts = []
    for number, figures in printed(published).items():
        cells = list(_cells(results, published, figures, convention))
        parts.append(f"### {text(published.paper)}, Table {text(number)}\n\n{_table(cells)}\n{_verdict(cells)}")
    return "\n".join(parts)


def _cells(results: Results, published: Published, figures: list[Figure], convention: str) -> Iterator[Cell]:
    for figure in figures:
        reason = next((entry.reason for entry in published.unreproduced if figure.fits(entry.where)), None)
        length = figure.setting.get("text_tokens")
        column = HEADS[figure.metric] if length is None else f"text_tokens {length}, {HEADS[figure.metric]}"
        if figure.row in published.missing:
            yield Cell(figure.row, column, figure.value, None, published.missing[figure.row])
        else:
            row = _ours(results, published.rows[figure.row], figure)
            ours = _sum(row, figure.metric, convention)
            yield Cell(figure.row, column, figure.value, ours, None if ours is None else reason)


def _ours(results: Results, entry: str | dict[str, dict[str, Any] | None], figure: Figure) -> Row | None:
    """Return the row of this method and setting, None where it is not done. Errors: VtbenchError for several."""
    method, parameters = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))

    def fits(row: Row) -> bool:
        known = row.setting | {key: value for key, value in row.parameters.items() if value is not None}
        return (
            row.method == method
            and row.model.removeprefix("random:") == figure.model
            and all(known.get(key) == value for key, value in (parameters or {}).items())
            and all(str(known[key]) == value for key, value in figure.setting.items() if key in known)
        )

    found = [row for row in results.rows if fits(row)]
    if len(found) > 1:
        raise VtbenchError(f"published: {entry!r} fits {len(found)} rows of the sweep; name the parameters that differ")
    return found[0] if found else None


def _sum(row: Row | None, metric: str, convention: str) -> float | None:
    values = [row.mean("flops", "parts", convention, part) if row else None for part in PARTS[metric]]
    known = [value for value in values if value is not None]
    return sum(known) / 1e12 if len(known) == len(values) else None


def _table(cells: list[Cell]) -> str:
    """Return rows × columns, each cell `printed / ours (difference)`."""
    columns = list(dict.fromkeys(cell.column for cell in cells))
    by_place = {(cell.row, cell.column): cell for cell in cells}
    lines = [
        [text(row), *(_written(by_place[row, column]) if (row, column) in by_place else "" for column in columns)]
        for row in dict.fromkeys(cell.row for cell in cells)
    ]
    return table(["published / ours", *(text(column) for column in columns)], lines)


def _written(cell: Cell) -> str:
    if cell.difference is None:
        return f"{cell.printed:g} / {NOT_MEASURED}"
    mark = "" if cell.close else f" {UNREPRODUCED if cell.reason else '**off**'}"
    return f"{cell.printed:g} / {cell.ours:.3f} ({100 * cell.difference:+.1f} %){mark}".replace("-", "−")


def _verdict(cells: list[Cell]) -> str:
    counted = [cell for cell in cells if cell.ours is not None]
    lines = [
        f"{sum(cell.close for cell in counted)} of {len(counted)} counted figures are within 2 % of the printed ones."
    ]
    reasons = dict.fromkeys(cell.reason for cell in counted if cell.reason and not cell.close)
    lines += [f"{UNREPRODUCED} {text(reason)}" for reason in reasons]
    missing = {cell.row: cell.reason for cell in cells if cell.ours is None}
    lines += [f"{text(row)}: not measured{f', {text(reason)}' if reason else ''}." for row, reason in missing.items()]
    return "\n\n".join(lines) + "\n"
