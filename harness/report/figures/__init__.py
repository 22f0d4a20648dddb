"""The figures of a report and the words beside them."""

from pathlib import Path

from harness.report.compared import Compared
from harness.report.figures.curves import accuracy, costs
from harness.report.figures.grid import heat_map
from harness.report.figures.kept import METHODS, kept_patches
from harness.report.figures.layers import tokens_per_layer
from harness.report.figures.style import MOST, scored_lines
from harness.report.figures.tasks import score_by_task
from harness.report.results import Results
from harness.report.tables import text

__all__ = ["heat_map", "kept_section", "section"]

READING = (
    "Bars are 95 % bootstrap intervals over images. The black steps are the Pareto frontier: the best average so far "
    "at each cost; no other row of the table costs as little as a point on the line and scores more. Of a hollow point "
    "the intervals are apart: that of something that costs no more lies wholly above its own (and in time its "
    "quartiles before). This is neither paired nor corrected for many comparisons, as the signs in the tables are.\n"
)


def section(results: Results, compared: Compared, folder: Path, link: str, convention: str) -> str:
    """Draw the figures that have something to show into the folder and return their section; empty where none has.

    link: what the markdown calls the folder.
    """
    parts = [*_curves(results, compared, folder, link, convention), *_layers(results, folder, link)]
    return "\n".join(["## Figures\n", *parts]) if parts else ""


def _curves(results: Results, compared: Compared, folder: Path, link: str, convention: str) -> list[str]:
    lines = scored_lines(results, compared)
    if len(lines) > MOST:
        return [f"Scores are not drawn: a figure holds {MOST} lines, and this sweep has {len(lines)}.\n"]
    parts = []
    for cost in costs(results, convention):
        said = accuracy(results, compared, lines, cost, folder / f"accuracy_{cost.name}.png")
        if said is not None:
            seen = f"Average score against {cost.words}, a line a method, with intervals and the Pareto frontier"
            parts.append(f"![{text(seen)}]({link}/accuracy_{cost.name}.png)\n")
            parts.append(f"Average score against {cost.words}. {text(said)}\n")
    tokens = costs(results, convention)[0]
    there = score_by_task(results, compared, lines, tokens, folder / "tasks.png")
    if there:
        parts.append(
            f"![Score against {tokens.words} of each task, a line a method, with intervals]({link}/tasks.png)\n"
        )
        parts.append(f"Score against {tokens.words}, task by task; the band is the full model's interval.\n")
    elif there is False:
        parts.append(
            f"Scores of each task are not drawn: these are {len(lines)} methods, more than can be read there.\n"
        )
    return [READING, *parts] if parts else []


def _layers(results: Results, folder: Path, link: str) -> list[str]:
    drawn = tokens_per_layer(results, folder / "layers.png")
    if drawn is None:
        return []
    if not drawn.there:
        return [f"Tokens per layer are not drawn: a panel would have {drawn.lines} lines.\n"]
    some = f" Drawn are {len(drawn.panels)} of {drawn.of} budgets." if len(drawn.panels) < drawn.of else ""
    at = text("; ".join(drawn.panels))
    return [
        f"![Visual tokens per layer of the ViT and then of the LLM, as steps, at {at}]({link}/layers.png)\n",
        f"Visual tokens that enter each layer, means over samples and then over a row's trials; methods that keep the "
        f"same share a line, and lines stand a hair apart.{some}\n",
    ]


def kept_section(results: Results, compared: Compared, folder: Path, link: str) -> str:
    """Draw what methods keep of some pictures and return its section; empty where the store has none to show."""
    found = kept_patches(results, compared, folder / "kept.png")
    if found is None:
        return ""
    seen = f"Pictures with the patches that {', '.join(found.methods)} keep, and their answers. {'. '.join(found.told)}"
    chosen = f"; of its {found.of} methods these stand evenly from the best average to the worst" * (found.of > METHODS)
    return (
        f"## What the methods keep\n\n![{text(seen)}]({link}/kept.png)\n\n"
        "A row is a question of a picture, as the model saw it; a column is a method. "
        f"Chosen by rule: {text(found.budget)}, where most methods stand{chosen}. Of the questions whose pictures the "
        "store has (the first of each task) and that part these methods into right and wrong, first those that the "
        "full model gets right, of these the most even, one a task as far as there are. They show how methods differ, "
        "not how often they do.\n"
    )
