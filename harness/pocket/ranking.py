"""Compares how two trainings rank the methods: `python -m harness.pocket.ranking ONE.parquet OTHER.parquet`.

Both files are what `harness.pocket.separation --out` wrote of the same questions, each of its own weights.
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from scipy.stats import kendalltau

from harness.errors import VtbenchError
from harness.report.statistics import Interval, interval

Sorted = list[tuple[str, Interval, Interval]]


def averages(samples: pd.DataFrame) -> dict[str, Interval]:
    """Return every method's average over the families with its 95 % interval, by its label."""
    return {str(label): interval(rows) for label, rows in samples.groupby("method", sort=False)}


def ranked(one: pd.DataFrame, other: pd.DataFrame) -> tuple[Sorted, float]:
    """Return the methods from best to worst in `one`, and Kendall's τ between the two orders.

    Errors: VtbenchError for samples of other questions or methods.
    """
    keys = ["method", "doc_id"]
    if len(one) != len(other) or len(one.merge(other, on=keys)) != len(one):
        raise VtbenchError("ranking: the two files have other questions or methods")
    first, second = averages(one), averages(other)
    order = sorted(first, key=lambda label: -first[label].mean)
    tau = kendalltau([first[label].mean for label in order], [second[label].mean for label in order]).statistic
    return [(label, first[label], second[label]) for label in order], float(tau)


def main(
    one: Annotated[Path, typer.Argument(help="a parquet file of separation's")],
    other: Annotated[Path, typer.Argument(help="that of other weights")],
) -> None:
    """Print every method's average under both trainings, and how far they agree, at each budget."""
    samples = [pd.read_parquet(path) for path in (one, other)]
    budgets = samples[0]["method"].str.extract(r" (\d+)$")[0].dropna().unique()
    for budget in budgets:
        chosen = [each[each["method"].str.endswith(f" {budget}")] for each in samples]
        lines, tau = ranked(*chosen)
        print(f"\n{budget} tokens: Kendall's τ {tau:+.2f} over {len(lines)} methods")
        for label, first, second in lines:
            print(f"{label:<16}{_words(first)}   {_words(second)}")


def _words(found: Interval) -> str:
    return f"{100 * found.mean:5.1f} ({100 * found.low:.1f}–{100 * found.high:.1f})"


if __name__ == "__main__":
    typer.run(main)
