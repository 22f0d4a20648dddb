"""A paper's printed costs beside ours, in the paper's layout: published, ours and the difference."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from harness.papers import PARTS, TIMES, Figure, paper_model
from harness.report.results import Results, Row
from harness.report.tables import NOT_MEASURED, table, text
from harness.shown import Published

CLOSE = 0.02
HEADS = {"tflops": "TFLOPs", "tflops_vit": "ViT", "tflops_llm": "LLM", "tflops_extra": "extra", "cuda_ms": "CUDA ms"}
UNREPRODUCED = "†"
SEVERAL = "several"


class Fit(NamedTuple):
    """The number of our row that a printed one is, None where it is not done or fits several, and then why."""

    at: int | None
    several: str = ""


class Cell(NamedTuple):
    """One printed figure and ours."""

    row: str
    column: str
    printed: Figure
    ours: float | None
    reason: str | None  # why it cannot be had
    several: str = ""  # why it is not known which of our rows it is

    @property
    def difference(self) -> float | None:
        """Ours relative to what is printed."""
        return None if self.ours is None else self.ours / self.printed.value - 1

    @property
    def close(self) -> bool:
        """Whether ours is within 2 %, or rounds to what is printed."""
        if self.ours is None:
            return False
        return abs(self.ours - self.printed.value) <= max(CLOSE * abs(self.printed.value), self.printed.half)


def costs_table(
    results: Results, published: Published, figures: list[Figure], convention: str, asked: Collection[str]
) -> str:
    """Return a printed table with ours, and how many of its figures are within 2 %. asked: ids of its trials."""
    cells = list(_cells(results, published, figures, convention, asked))
    return f"{_table(cells)}\n{_verdict(cells)}"


def _cells(
    results: Results, published: Published, figures: list[Figure], convention: str, asked: Collection[str]
) -> Iterator[Cell]:
    for figure in figures:
        reason = next((entry.reason for entry in published.unreproduced if figure.fits(entry.where)), None)
        length = figure.setting.get("text_tokens")
        column = HEADS[figure.metric] if length is None else f"text_tokens {length}, {HEADS[figure.metric]}"
        if figure.row in published.missing:
            yield Cell(figure.row, column, figure, None, published.missing[figure.row])
        else:
            fit = ours_of(results, published.rows[figure.row], figure, asked)
            row = None if fit.at is None else results.rows[fit.at]
            ours = _time(row) if figure.metric in TIMES else _sum(row, figure.metric, convention)
            yield Cell(figure.row, column, figure, ours, None if ours is None else reason, fit.several)


def ours_of(
    results: Results, entry: str | dict[str, dict[str, Any] | None], figure: Figure, asked: Collection[str]
) -> Fit:
    """Return the row of this method and setting; of several that of the sweep's own trials. asked: ids of these."""
    method, parameters = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))

    def known(row: Row) -> dict[str, Any]:
        return row.setting | {key: value for key, value in row.parameters.items() if value is not None}

    def fits(row: Row) -> bool:
        here = known(row)
        setting = figure.setting if results.asked else {k: v for k, v in figure.setting.items() if k != "text_tokens"}
        return (
            row.method == method
            and paper_model(row.model) == figure.model
            and all(here.get(key) == value for key, value in (parameters or {}).items())
            and all(str(here[key]) == value for key, value in setting.items() if key in here)
        )

    found = [index for index, row in enumerate(results.rows) if fits(row)]
    own = [i for i in found if any(record["id"] in asked for record in results.rows[i].records)]
    found = own or found
    if len(found) < 2:
        return Fit(found[0] if found else None)
    rows = [known(results.rows[index]) for index in found]
    keys = dict.fromkeys(key for row in rows for key in row)
    differ = [key for key in keys if len({str(row.get(key)) for row in rows}) > 1]
    return Fit(None, f"fits {len(found)} rows that differ in {', '.join(differ)}; held against none of them")


def _time(row: Row | None) -> float | None:
    """Return the prefill with its image encoding in ms, where CUDA's clock measured it."""
    clocks = {(record["latency"] or {}).get("clock") for record in row.records} if row else set()
    return row.mean("latency", "prefill_ms", "median") if row and clocks == {"CUDA events"} else None


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
        return f"{cell.printed.text} / {SEVERAL if cell.several else NOT_MEASURED}"
    mark = "" if cell.close else f" {UNREPRODUCED if cell.reason else '**off**'}"
    return f"{cell.printed.text} / {cell.ours:.3f} ({100 * cell.difference:+z.1f} %){mark}".replace("-", "−")


def _verdict(cells: list[Cell]) -> str:
    counted = [cell for cell in cells if cell.ours is not None]
    close = sum(cell.close for cell in counted)
    lines = [f"{close} of {len(counted)} counted figures are within 2 % of the printed ones or round to them."]
    reasons = dict.fromkeys(cell.reason for cell in counted if cell.reason and not cell.close)
    lines += [f"{UNREPRODUCED} {text(reason)}" for reason in reasons]
    several = dict.fromkeys((cell.row, cell.several) for cell in cells if cell.several)
    lines += [f"{text(row)}: {text(why)}." for row, why in several]
    missing = {cell.row: cell.reason for cell in cells if cell.ours is None and not cell.several}
    lines += [f"{text(row)}: not measured{f', {text(reason)}' if reason else ''}." for row, reason in missing.items()]
    return "\n\n".join(lines) + "\n"
