"""Which differences are real: every row against the full model and the best of its budget, on the same samples."""

from collections.abc import Iterable
from statistics import median

from harness.report.cells import points
from harness.report.compared import BASELINE, Compared
from harness.report.results import Results
from harness.report.rows import in_main_table
from harness.report.statistics import Difference
from harness.report.tables import NONE, SAME, TIED, by_budget


def differences(results: Results, compared: Compared) -> str:
    """Return the table of paired differences and what the samples can tell apart; empty where nothing was compared."""
    if not compared.difference and not compared.from_best:
        return ""
    header = ["Method", "from the full model", "lost / gained", "from the best of the budget"]
    header += [f"where {BASELINE} is wrong"] if compared.hard else []
    rows = [i for i in in_main_table(results) if results.rows[i].method != "full" and i in compared.average]
    table = by_budget(results, rows, header, lambda index: _cells(compared, index)[: len(header) - 1])
    return (
        f"{table}\n"
        "Differences are of averages, in points, with paired 95 % bootstrap intervals over images. Lost: samples on "
        "which the full model scores higher; gained: lower. Each interval is 95 % by itself, while the signs are "
        f"corrected for all comparisons together, so that a difference whose interval leaves out 0 may bear {SAME} or "
        f"{TIED}; that from the best is not corrected for its having been chosen."
        f"{_power(compared)}{_hard_words(results, compared)}\n"
    )


def _power(compared: Compared) -> str:
    """Say what the comparisons can find; nothing where none of their intervals has a width."""
    found = [
        (i, 100 * least)
        for each in (compared.least, compared.least_best)
        for i, least in each.items()
        if least and i in compared.main
    ]
    if not found:
        return ""
    samples = _range(len(compared.scored[i]) for i, _ in found)
    images = _range(compared.scored[i]["image_id"].nunique() for i, _ in found)
    return (
        f" With {samples} samples on {images} images a comparison finds a true difference of {_points(found)} with a "
        "power of 80 %, at the strictest level of the correction: less where two rows answer much alike, more where "
        "they do not."
    )


def _points(found: list[tuple[int, float]]) -> str:
    least = [least for _, least in found]
    spread = f"{min(least):.1f} to {max(least):.1f} points, median {median(least):.1f},"
    return spread if len(least) > 1 else f"{least[0]:.1f} points"


def _range(counts: Iterable[int]) -> str:
    found = sorted(set(counts))
    return "–".join(str(count) for count in dict.fromkeys((found[0], found[-1])))


def _cells(compared: Compared, index: int) -> list[str]:
    """Return a row's cells; none is empty, for a row with a first cell alone is a heading."""
    full, best, hard = compared.difference.get(index), compared.from_best.get(index), compared.hard.get(index)
    is_best = compared.best.get(index) == index
    return [
        _written(full, SAME if index in compared.same else ""),
        f"{full.lost} / {full.gained}" if full else NONE,
        "**best**" if is_best else _written(best, TIED if index in compared.tied else ""),
        f"{points(*hard.score)}, n {hard.samples}, {BASELINE} {hard.tokens}" if hard else NONE,
    ]


def _written(found: Difference | None, sign: str) -> str:
    if found is None:
        return NONE
    return " ".join([points(*found[:3], signed=True), *([sign] if sign else [])])


def _hard_words(results: Results, compared: Compared) -> str:
    if not compared.hard:
        return ""
    yardstick = "; random is the yardstick" if any(results.rows[i].method == "random" for i in compared.hard) else ""
    return (
        " The last column is the score, with its interval, on the samples that the same model gets wrong (a score "
        f"below 1) when the image itself is merely made smaller ({BASELINE}, to the nearest number of tokens). They "
        f"were chosen by their failing there, so that any other method does better on them than there{yardstick}."
    )
