"""A paper's printed scores, what was measured and the difference, in the paper's layout: rows methods, columns
benchmarks, average, average rate, TFLOPs."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from harness.findings import Conflict, conflicts
from harness.papers import AVERAGED, AVERAGES, BENCHMARKS, NOTES, Figure, read_figures
from harness.report.compared import Compared
from harness.report.printed_costs import UNREPRODUCED, Fit, ours_of
from harness.report.results import Results, Row, rank
from harness.report.tables import NONE, table, text
from harness.shown import Published

CONFLICT = "§"
OUTSIDE = "≠"
RATE = "avg_rate"


class Measured(NamedTuple):
    """A measured number on the paper's scale with its 95 % interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None
    part: str = ""  # what it is of, where it is not all

    @property
    def shown(self) -> str:
        """The number with its interval."""
        spread = "" if self.low is None else f" ({self.low:.1f}–{self.high:.1f})"
        return _minus(f"{self.value:.1f}{spread}{self.part}")


class Line(NamedTuple):
    """A printed row: its figures by metric, which row is ours, and its numbers by metric, if it ran."""

    row: str
    printed: dict[str, Figure]
    fit: Fit
    measured: dict[str, Measured]


def scores_table(
    results: Results,
    compared: Compared,
    published: Published,
    figures: list[Figure],
    convention: str,
    asked: Collection[str],
) -> str:
    """Return a printed table with three lines a method, and what its signs say. asked: ids of the sweep's trials."""
    lines = list(_lines(results, compared, published, figures, asked))
    found = [conflict for conflict in conflicts(read_figures()) if any(each in figures for each in conflict.figures)]
    marked = [figure for conflict in found for figure in conflict.figures]
    rates = _rates(lines, published, _shared(lines))
    metrics = {figure.metric for figure in figures} | ({RATE} if rates else set())
    heads = [metric for metric in [*BENCHMARKS, *AVERAGES] if metric in metrics]
    titles = [BENCHMARKS[metric].title if metric in BENCHMARKS else AVERAGES[metric] for metric in heads]
    costs = ["TFLOPs (%)"] if "tflops" in metrics else []
    rows = []
    for line in lines:
        printed, ours = rates.get(line.row, (None, None))
        first = [_rate(line, printed) if metric == RATE else _printed(line, metric, marked) for metric in heads]
        rows.append([text(line.row), "**published**", *first, *(_cost(line) for _ in costs)])
        if line.row not in published.missing:
            second = [_percent(ours) or NONE if metric == RATE else _shown(line, metric) for metric in heads]
            third = [
                _points(ours, printed) if metric == RATE else _difference(line, metric, published) for metric in heads
            ]
            spent = [_spent(results, compared, line.fit.at, convention) for _ in costs]
            rows.append([text(line.row), "measured", *second, *spent])
            rows.append([text(line.row), "difference", *third, *("" for _ in costs)])
    return (
        table(["Method", "What", *map(text, titles), *costs], rows)
        + "\n"
        + "\n\n".join(_words(results, published, lines, heads, found, convention if costs else ""))
        + "\n"
    )


def _lines(
    results: Results, compared: Compared, published: Published, figures: list[Figure], asked: Collection[str]
) -> Iterator[Line]:
    by_row: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        by_row.setdefault(figure.row, {})[figure.metric] = figure
    printed_metrics = {figure.metric for figure in figures}
    cells = [metric for metric in BENCHMARKS if metric in printed_metrics] or list(AVERAGED)
    for row, printed in by_row.items():
        entry = published.rows.get(row)
        fit = Fit(None) if entry is None else ours_of(results, entry, next(iter(printed.values())), asked)
        measured = {} if fit.at is None else _measured(results.rows[fit.at], compared, fit.at, cells)
        yield Line(row, printed, fit, measured)


def _measured(row: Row, compared: Compared, index: int, cells: list[str]) -> dict[str, Measured]:
    """Return a row's benchmarks and the average of all or of those that it has; POPE and MME leave it no interval."""
    found = {metric: value for metric in cells if (value := _score(row, compared, index, metric)) is not None}
    if found:
        mean = sum(value.value for value in found.values()) / len(found)
        part = f", {len(found)} of {len(cells)}" if len(found) < len(cells) else ""
        found |= dict.fromkeys(("avg", "avg_pi"), Measured(mean, part=part))
    return found


def _score(row: Row, compared: Compared, index: int, metric: str) -> Measured | None:
    """Return one benchmark; the samples' interval is its own where their mean is the metric, as it is not for F1."""
    benchmark = BENCHMARKS[metric]
    values = [(record["scores"] or {}).get(benchmark.task, {}).get(benchmark.metric) for record in row.records]
    value = next((value for value in values if value is not None), None)
    if value is None:
        return None
    found = compared.scores.get(index, {}).get(benchmark.task)
    for times in (1, 100):
        if found and found.low == found.low and abs(times * found.mean - value) < 1e-6 * max(1, value):
            scale = times * benchmark.scale
            return Measured(value * benchmark.scale, found.low * scale, found.high * scale)
    return Measured(value * benchmark.scale)


def _shared(lines: list[Line]) -> list[str]:
    """Return the benchmarks that every row that ran has, and that are printed."""
    ran = [line for line in lines if line.measured]
    return [m for m in BENCHMARKS if ran and all(m in line.measured and m in line.printed for line in ran)]


def _full(line: Line, published: Published) -> bool:
    return published.rows.get(line.row) == "full"


def _rates(lines: list[Line], published: Published, shared: list[str]) -> dict[str, tuple[float | None, float | None]]:
    """Return the printed and the measured average rate of each row, over the benchmarks that were measured.

    The paper's full model is the last row that is ours: what it ran itself. Nothing measured: over all printed ones.
    """
    full = [line for line in lines if _full(line, published)]
    if not full:
        return {}
    base, found = full[-1], {}
    for line in lines:
        cells = [m for m in shared or BENCHMARKS if m in line.printed and m in base.printed]
        ours = [m for m in cells if m in line.measured and m in base.measured]
        found[line.row] = (
            _mean_rate(cells, lambda m, line=line: (line.printed[m].value, base.printed[m].value)),  # type: ignore[misc]
            _mean_rate(ours, lambda m, line=line: (line.measured[m].value, base.measured[m].value)),  # type: ignore[misc]
        )
    return found


def _mean_rate(metrics: list[str], pair: Callable[[str], tuple[float, float]]) -> float | None:
    ratios = [here / there for here, there in map(pair, metrics) if there]
    return 100 * sum(ratios) / len(ratios) if ratios else None


def _printed(line: Line, metric: str, marked: Sequence[Figure]) -> str:
    figure = line.printed.get(metric)
    return "" if figure is None else f"{figure.text} {CONFLICT}" if figure in marked else figure.text


def _shown(line: Line, metric: str) -> str:
    """Return the measured number; beside an average of pure inference that of retrained models has none."""
    elsewhere = metric == "avg" and "avg_pi" in line.printed
    return "" if elsewhere else line.measured[metric].shown if metric in line.measured else NONE


def _rate(line: Line, worked_out: float | None) -> str:
    if RATE in line.printed:
        return f"{line.printed[RATE].text} %"
    return _percent(worked_out)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} %"


def _cost(line: Line) -> str:
    cost, change = line.printed.get("tflops"), line.printed.get("tflops_change")
    return "" if cost is None else _minus(f"{cost.text} ({change.text})" if change else cost.text)


def _spent(results: Results, compared: Compared, index: int | None, convention: str) -> str:
    rows = [] if index is None else [results.rows[index], compared.full[index]]
    here, full = [row.mean("flops", "total", convention) if row else None for row in rows] or (None, None)
    if here is None:
        return NONE
    change = f" ({100 * (here / full - 1):+z.1f})" if full and here != full else ""
    return _minus(f"{here / 1e12:.3f}{change}")


def _compared_with(line: Line, metric: str) -> Figure | None:
    """Return the printed figure that a measured one is held against: of averages that of pure inference, if printed."""
    return None if metric == "avg" and "avg_pi" in line.printed else line.printed.get(metric)


def _outside(line: Line, metric: str) -> bool | None:
    """Whether the printed figure lies outside the measured interval; None where either is not there."""
    figure, ours = _compared_with(line, metric), line.measured.get(metric)
    if figure is None or ours is None or ours.low is None or ours.high is None:
        return None
    return figure.value + figure.half < ours.low or figure.value - figure.half > ours.high


def _difference(line: Line, metric: str, published: Published) -> str:
    figure, ours = _compared_with(line, metric), line.measured.get(metric)
    if figure is None or ours is None or ours.part:
        return ""
    sign = f" {OUTSIDE}" if _outside(line, metric) else ""
    known = sign and any(figure.fits(entry.where) for entry in published.unreproduced)
    return _points(ours.value, figure.value) + sign + (UNREPRODUCED if known else "")


def _points(ours: float | None, printed: float | None) -> str:
    return "" if ours is None or printed is None else _minus(f"{ours - printed:+z.1f}")


def _minus(words: str) -> str:
    return words.replace("-", "−")


def _words(
    results: Results, published: Published, lines: list[Line], heads: list[str], found: list[Conflict], convention: str
) -> Iterator[str]:
    """Yield what the table's signs and numbers mean, and why some are not there."""
    limits = {results.rows[line.fit.at].setting["limit"] for line in lines if line.fit.at is not None}
    several = " and ".join("all" if limit is None else f"the first {limit}" for limit in sorted(limits, key=rank))
    measured = "Measured: lmms-eval" if limits <= {None} else f"Measured: {several} samples of lmms-eval's tasks"
    notes = [f"{each.title} is {each.task}, {each.note}" for m in heads if (each := BENCHMARKS.get(m)) and each.note]
    yield " ".join([*NOTES.get(published.paper, ()), "; ".join([measured, *map(text, notes)]) + "."])
    known = [_outside(line, metric) for line in lines for metric in heads if line.measured.get(metric)]
    held = [outside for outside in known if outside is not None]
    yield (
        f"{NONE}: not measured. {OUTSIDE}: the published figure lies outside the measured 95 % interval (by bootstrap "
        f"over images), as {sum(held)} of {len(held)} do; a score that is no mean of its samples has no interval, nor "
        "has an average with one. Differences are in points."
    )
    if RATE in heads:
        shared = [BENCHMARKS[metric].title for metric in _shared(lines)]
        part = f" over what was measured ({', '.join(shared)})" if shared else ""
        yield f"{AVERAGES[RATE]} is the mean{part} of the score relative to the full model's, in print the last one's."
    if convention:
        lengths = {f.setting.get("text_tokens") for line in lines if (f := line.printed.get("tflops"))}
        prompts = (
            f"{', '.join(sorted(filter(None, lengths), key=int))} text tokens"
            if any(lengths)
            else "the paper's prompts"
        )
        yield (
            f"Published TFLOPs are of {prompts}, measured ones of the tasks' own under the convention `{convention}`."
        )
    for conflict in found:
        yield f"{CONFLICT} {text(conflict.words)}."
    outside = [
        figure
        for line in lines
        for metric in heads
        if _outside(line, metric) and (figure := _compared_with(line, metric))
    ]
    for entry in published.unreproduced:
        if any(figure.fits(entry.where) for figure in outside):
            yield f"{UNREPRODUCED} {text(entry.reason)}"
    for line in lines:
        if line.fit.several:
            yield f"{text(line.row)}: {text(line.fit.several)}."
    for row, reason in published.missing.items():
        if any(line.row == row for line in lines):
            yield f"{text(row)}: not measured, {text(reason)}."
