"""Which differences are real: every row against the full model and the best of its budget, on the same samples."""

from statistics import median

from harness.report.compared import BASELINE, Compared
from harness.report.results import Results
from harness.report.statistics import Difference, detectable
from harness.report.tables import SAME, TIED, by_budget, in_main_table


def differences(results: Results, compared: Compared) -> str:
    """Return the table of paired differences and what the samples can tell apart; empty where nothing was compared."""
    if not compared.difference and not compared.from_best:
        return ""
    header = ["Method", "from the full model", "lost / gained", "from the best of the budget"]
    header += [f"where {BASELINE} is wrong"] if compared.hard else []
    rows = [i for i in in_main_table(results) if results.rows[i].method != "full" and i in compared.average]
    table = by_budget(results, rows, header, lambda index: _cells(compared, index)[: len(header) - 1])
    found = [*compared.difference.values(), *compared.from_best.values()]
    least = 100 * median(map(detectable, found))
    images = max(samples["image_id"].nunique() for samples in compared.scored.values())
    asked = max(map(len, compared.scored.values()))
    return (
        f"{table}\n"
        "Differences are of averages, in points, with paired 95 % bootstrap intervals over images. Lost: samples on "
        "which the full model scores higher; gained: lower. "
        f"With {asked} samples on {images} images a true difference of {least:.1f} points is found with a power of "
        f"80 % (median of these comparisons, before the correction).{_hard_words(compared)}\n"
    )


def _cells(compared: Compared, index: int) -> list[str]:
    full, best, hard = compared.difference.get(index), compared.from_best.get(index), compared.hard.get(index)
    is_best = compared.best.get(index) == index
    return [
        _written(full, SAME if index in compared.same else ""),
        f"{full.lost} / {full.gained}" if full else "",
        "**best**" if is_best else _written(best, TIED if index in compared.tied else ""),
        f"{100 * hard.mean:.1f} (n {hard.samples}, {BASELINE} {hard.tokens})" if hard else "",
    ]


def _written(found: Difference | None, sign: str) -> str:
    if found is None:
        return ""
    values = (100 * value for value in (found.mean, found.low, found.high))
    mean, low, high = (f"{value:+.1f}".replace("-", "−") for value in values)
    return f"{mean} ({low} to {high}){f' {sign}' if sign else ''}"


def _hard_words(compared: Compared) -> str:
    if not compared.hard:
        return ""
    return (
        " The last column is the score on the samples that the same model gets wrong when the image itself is merely "
        f"made smaller ({BASELINE}, to the nearest number of tokens). They were chosen by their failing there, so that "
        "any other method does better on them than there; random is the yardstick."
    )
