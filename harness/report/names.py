"""What a row is called in figures and in the browser, as plain text."""

from functools import lru_cache

from harness.report.results import Results, Row
from harness.report.tables import varied


@lru_cache(maxsize=1)
def several_models(results: Results) -> bool:
    """Whether rows are of more than one model."""
    return len({row.model for row in results.rows}) > 1


def parameters(results: Results, row: Row) -> list[str]:
    """Return, with their names, those of a row's parameters that vary in the sweep, but the budget."""
    return [f"{key} {row.parameters[key]}" for key in varied(results)[row.method]]


def settings(results: Results, row: Row) -> list[str]:
    """Return the model, where there are several, and what else differs in the sweep."""
    model = [row.model] if several_models(results) else []
    return [*model, *(f"{key} {row.setting[key]}" for key in results.differing)]
