"""A paper's printed costs beside ours, in the paper's layout: published, ours and the difference.

A sweep file's `published` names the paper's tables and says which of its rows is which of ours. Nothing is fitted: ours
is the record's number under the report's convention. `results/published/papers.csv` has what the papers print.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from harness.errors import VtbenchError
from harness.report.results import Results, Row
from harness.report.tables import NOT_MEASURED, table, text
from harness.shown import Published

PAPERS = Path(__file__).parents[2] / "results" / "published" / "papers.csv"
CLOSE = 0.02
# A printed metric: the parts of a convention that add up to it.
PARTS = {
    "tflops": ("vision", "projector", "decoder_linear", "decoder_attention", "lm_head", "extra"),
    "tflops_vit": ("vision",),
    "tflops_llm": ("decoder_linear", "decoder_attention", "lm_head"),
    "tflops_extra": ("extra",),
}
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
    for number in published.tables:
        cells = list(_cells(results, published, number, convention))
        parts.append(f"### {text(published.paper)}, Table {text(number)}\n\n{_table(cells)}\n{_verdict(cells)}")
    return "\n".join(parts)


def _cells(results: Results, published: Published, number: str, convention: str) -> Iterator[Cell]:
    papers = pd.read_csv(PAPERS, dtype=str, keep_default_na=False)
    printed = papers[(papers.paper == published.paper) & (papers.table == number) & papers.metric.isin(PARTS)]
    if printed.empty:
        raise VtbenchError(f"published: {published.paper} has no costs in table {number!r} of {PAPERS}")
    for each in printed.to_dict(orient="records"):
        row, metric = each["method"], each["metric"]
        setting = dict(re.findall(r"(\w+)=([\w.]+)", f"{each['setting']},{each['note']}"))
        told = setting | {"table": number, "row": row, "metric": metric}
        reason = next(
            (
                entry.reason
                for entry in published.unreproduced
                if all(told.get(key) == str(value) for key, value in entry.where.items())
            ),
            None,
        )
        text_tokens = [f"text_tokens {setting['text_tokens']}"] if "text_tokens" in setting else []
        place = row, ", ".join([*text_tokens, HEADS[metric]]), float(each["value"])
        if row in published.missing:
            yield Cell(*place, None, published.missing[row])
        elif row in published.rows:
            ours = _ours(results, published.rows[row], each["model"], setting)
            yield Cell(*place, _sum(ours, metric, convention), reason)
        else:
            raise VtbenchError(f"published: row {row!r} of table {number} is in neither rows nor missing")


def _ours(
    results: Results, entry: str | dict[str, dict[str, Any] | None], model: str, setting: dict[str, str]
) -> Row | None:
    """Return the row of this method and setting, None where it is not done. Errors: VtbenchError for several."""
    method, parameters = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))

    def fits(row: Row) -> bool:
        known = {key: value for key, value in (row.setting | row.parameters).items() if value is not None}
        return (
            row.method == method
            and row.model.removeprefix("random:") == model
            and all(known.get(key) == value for key, value in (parameters or {}).items())
            and all(str(known[key]) == value for key, value in setting.items() if key in known)
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
