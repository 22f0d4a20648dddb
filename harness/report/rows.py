"""Which rows the main table has, and what a row is called in tables, figures and the browser, as plain text."""

from collections import Counter, defaultdict
from functools import lru_cache
from math import prod

from harness.report.results import Results, Row


@lru_cache(maxsize=1)
def varied(results: Results) -> dict[str, list[str]]:
    """Return, by method, the parameters besides tokens that take several values in the sweep."""
    found = {}
    for method in dict.fromkeys(row.method for row in results.rows):
        rows = [row.parameters for row in results.rows if row.method == method]
        keys = [key for key in rows[0] if key != "tokens" and len({str(row.get(key)) for row in rows}) > 1]
        found[method] = keys
    return found


@lru_cache(maxsize=1)
def gridded(results: Results) -> dict[str, tuple[str, str]]:
    """Return the methods with a grid of two parameters or more, and the two that span its table."""
    return {method: (keys[0], keys[1]) for method, keys in varied(results).items() if len(keys) >= 2}


@lru_cache(maxsize=1)
def in_main_table(results: Results) -> list[int]:
    """Return the rows of the main table: all but those that a full grid under Grids shows.

    Of the rows of a method's budget with every combination of its values, that with the method's commonest ones stays.
    """
    shown = set(range(len(results.rows)))
    for method, keys in varied(results).items():
        if len(keys) < 2:
            continue
        places: dict[tuple[object, ...], dict[tuple[str, ...], int]] = defaultdict(dict)
        for i, row in enumerate(results.rows):
            if row.method == method and len(results.scored(row)):
                values = tuple(str(row.parameters[key]) for key in keys)
                places[row.model, row.tokens, str(row.setting)][values] = i
        ran = Counter(values for grid in places.values() for values in grid)
        commonest = ran.most_common(1)[0][0] if ran else None
        for grid in places.values():
            sides = [len(set(values)) for values in zip(*grid, strict=True)]
            if commonest in grid and len(grid) == prod(sides) and sides[0] * sides[1] > 1:
                shown -= {i for values, i in grid.items() if values != commonest}
    return sorted(shown)


@lru_cache(maxsize=1)
def several_models(results: Results) -> bool:
    """Whether rows are of more than one model."""
    return len({row.model for row in results.rows}) > 1


def parameters(results: Results, row: Row) -> list[str]:
    """Return, with their names, those of a row's parameters that vary in the sweep, but the budget."""
    return [f"{key} {row.parameters[key]}" for key in varied(results)[row.method]]


def differing(results: Results, row: Row) -> list[str]:
    """Return, with their names, a row's settings that differ in the sweep."""
    return [f"{key} {row.setting[key]}" for key in results.differing]


def settings(results: Results, row: Row) -> list[str]:
    """Return the model, where there are several, and the settings that differ."""
    return [*([row.model] if several_models(results) else []), *differing(results, row)]


def row_name(results: Results, row: Row, *, model: bool = True) -> str:
    """Return a row's name: its method and all that differs in the sweep, but the budget and, if asked, the model."""
    shown = [*parameters(results, row), *(settings if model else differing)(results, row)]
    return f"{row.method} ({', '.join(shown)})" if shown else row.method
