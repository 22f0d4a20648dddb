"""The costs that papers print, of results/published/papers.csv, as a sweep file's `published` names them."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from harness.errors import VtbenchError
from harness.reading import suggest
from harness.shown import Published

PAPERS = Path(__file__).parents[1] / "results" / "published" / "papers.csv"
# A printed metric: the parts of a convention that add up to it.
PARTS = {
    "tflops": ("vision", "projector", "decoder_linear", "decoder_attention", "lm_head", "extra"),
    "tflops_vit": ("vision",),
    "tflops_llm": ("decoder_linear", "decoder_attention", "lm_head"),
    "tflops_extra": ("extra",),
}


class Figure(NamedTuple):
    """One printed figure."""

    paper: str
    table: str
    model: str
    row: str
    metric: str
    value: float
    setting: dict[str, str]

    @property
    def told(self) -> dict[str, str]:
        """What `where` can name it by."""
        return self.setting | {"table": self.table, "row": self.row, "metric": self.metric}

    def fits(self, where: Mapping[str, object]) -> bool:
        """Whether it has all of these settings."""
        return all(self.told.get(key) == str(value) for key, value in where.items())


def printed(published: Published) -> dict[str, list[Figure]]:
    """Return the figures of every table that `published` names.

    Errors: VtbenchError for a paper or table without costs, a row that `published` does not have, a setting that no
    figure has.
    """
    figures = _figures()
    papers = dict.fromkeys(figure.paper for figure in figures)
    if published.paper not in papers:
        raise VtbenchError(f"published.paper: {published.paper!r} has no costs; {suggest(published.paper, papers)}")
    tables: dict[str, list[Figure]] = {}
    for figure in figures:
        if figure.paper == published.paper:
            tables.setdefault(figure.table, []).append(figure)
    for number in published.tables:
        if number not in tables:
            raise VtbenchError(
                f"published.tables: {published.paper} has no costs in table {number!r}; {suggest(number, tables)}"
            )
    named = {number: tables[number] for number in published.tables}
    found = [figure for table in named.values() for figure in table]
    for figure in found:
        if figure.row not in published.rows and figure.row not in published.missing:
            raise VtbenchError(
                f"published.rows: row {figure.row!r} of table {figure.table} is in neither rows nor missing"
            )
    known = dict.fromkeys(key for figure in found for key in figure.told)
    for index, entry in enumerate(published.unreproduced):
        place = f"published.unreproduced[{index}].where"
        for key in entry.where:
            if key not in known:
                raise VtbenchError(f"{place}.{key}: is not a key; {suggest(key, known)}")
        if not any(figure.fits(entry.where) for figure in found):
            raise VtbenchError(f"{place}: no printed figure of these tables has all of it")
    return named


def _figures() -> list[Figure]:
    try:
        with PAPERS.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["metric"] in PARTS]
    except OSError:
        raise VtbenchError(
            f"published: {PAPERS} cannot be read; vtbench has it where it is installed with pip install -e"
        ) from None
    return [
        Figure(
            paper=row["paper"],
            table=row["table"],
            model=row["model"],
            row=row["method"],
            metric=row["metric"],
            value=float(row["value"]),
            setting=dict(re.findall(r"(\w+)=([\w.]+)", f"{row['setting']},{row['note']}")),
        )
        for row in rows
    ]
