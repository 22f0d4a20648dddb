"""A report's tables as LaTeX (booktabs) and CSV, cell by cell what its markdown says."""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

FORMATS = ("csv", "latex")
SUFFIX = {"csv": "csv", "latex": "tex"}
SIGNS = {"≈": r"$\approx$", "−": "$-$", "–": "--", "†": r"$\dagger$", "≤": r"$\le$", "×": r"$\times$", "→": r"$\to$"}
SIGNS |= {"≠": r"$\ne$", "‡": r"$\ddagger$", "§": r"\S{}"}
SPECIAL = {character: rf"\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


class Table(NamedTuple):
    """A table with the heading that it stands under, its cells without markdown but for `**bold**`."""

    title: str
    header: list[str]
    rows: list[list[str]]


def tables(markdown: str) -> Iterator[Table]:
    """Yield the tables of a report."""
    title = ""
    lines = iter(markdown.splitlines())
    for line in lines:
        if line.startswith("#"):
            title = _plain(line.lstrip("# "))
        elif line.startswith("| "):
            header = _cells(line)
            next(lines)  # the line that aligns
            rows = []
            while (line := next(lines, "")).startswith("| "):
                rows.append(_cells(line))
            yield Table(title, header, rows)


def _cells(line: str) -> list[str]:
    return [_plain(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _plain(cell: str) -> str:
    """Undo `tables.text`; bold stays, as it is written with stars that are not escaped."""
    bold = re.sub(r"(?<!\\)\*\*(.+?)(?<!\\)\*\*", "\x02\\1\x03", cell)
    plain = html.unescape(re.sub(r"\\([\\`*_\[\]|~])|`", r"\1", bold))
    return plain.replace("\x02", "**").replace("\x03", "**")


def latex(table: Table) -> str:
    """Return a table for `\\input`, which needs booktabs; rows that have only a first cell are headings."""
    lines = [rf"% {table.title}", rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(_tex, table.header)) + r" \\", r"\midrule"]
    for number, row in enumerate(table.rows):
        if row[0] and not any(row[1:]):
            lines += [r"\midrule"] if number else []
            lines.append(rf"\multicolumn{{{len(row)}}}{{l}}{{{_tex(row[0])}}} \\")
        else:
            lines.append(" & ".join(map(_tex, row)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex(cell: str) -> str:
    escaped = "".join(SPECIAL.get(character, SIGNS.get(character, character)) for character in cell)
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", escaped)


def write_tables(markdown: str, folder: Path, kind: str) -> list[Path]:
    """Write every table as a file in `folder`, named by number and title; return the paths. kind: one of FORMATS."""
    written = []
    for number, table in enumerate(tables(markdown), start=1):
        name = re.sub(r"[^a-z0-9]+", "_", table.title.lower()).strip("_")
        path = folder / f"{number}_{name}.{SUFFIX[kind]}"
        if kind == "latex":
            path.write_text(latex(table), encoding="utf-8")
        else:
            plain = [[cell.replace("**", "") for cell in row] for row in table.rows]
            pd.DataFrame(plain, columns=table.header).to_csv(path, index=False)
        written.append(path)
    return written
