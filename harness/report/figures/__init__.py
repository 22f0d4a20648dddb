"""The figures of a report and the words beside them."""

from pathlib import Path

from harness.report.compared import Compared
from harness.report.figures.curves import accuracy, costs
from harness.report.figures.grid import heat_map
from harness.report.figures.style import MOST, scored_lines
from harness.report.results import Results
from harness.report.tables import text

__all__ = ["heat_map", "section"]

READING = (
    "Bars are 95 % bootstrap intervals over images. The black steps are the Pareto frontier: the best average so far "
    "at each cost; nothing costs as little as a point on the line and scores more. A hollow point is beaten for sure: "
    "the interval of something that costs no more lies wholly above its own. A filled point off the line is within the "
    "intervals.\n"
)


def section(results: Results, compared: Compared, folder: Path, link: str, convention: str) -> str:
    """Draw the figures that have something to show into the folder and return their section; empty where none has.

    link: what the markdown calls the folder.
    """
    lines = scored_lines(results, compared)
    if len(lines) > MOST:
        return f"## Figures\n\nNot drawn: a figure holds {MOST} lines, and this sweep has {len(lines)}.\n"
    parts = []
    for cost in costs(results, convention):
        best = accuracy(results, compared, lines, cost, folder / f"accuracy_{cost.name}.png")
        if best is not None:
            seen = f"Average score against {cost.words}, a line a method, with intervals and the Pareto frontier"
            parts.append(f"![{text(seen)}]({link}/accuracy_{cost.name}.png)\n")
            parts.append(f"Average score against {cost.words}. On the frontier: {text(', '.join(best))}.\n")
    return "\n".join(["## Figures\n", READING, *parts]) if parts else ""
