"""What the papers' printed figures say of themselves: averages and percentages that their own cells do not give, and
figures that are printed differently in two places. Rounding alone is no finding."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from harness.papers import AVERAGES, BENCHMARKS, PARTS, Figure

FULL = ("LLaVA-1.5-7B*", "LLaVA-1.5-13B*", "LLaVA-1.5-7B", "LLaVA-1.5-13B")
# Rows that are one and the same configuration: IVTP's defaults, the published LLaVA-1.5.
DEFAULTS = ("Rollout", "residual", "OTT+TE+RT", "group=3", "llm_layers=12", "tokens_into_llm=128", "threshold=0.2")
SAME = dict.fromkeys(DEFAULTS, "IVTP") | {"IVTP (Ours)": "IVTP", "LLaVA-1.5": "LLaVA-1.5-7B"}
OWN = {"avg", "avg_pi", "tflops", "tflops_change", "tflops_vit", "tflops_llm", "tflops_extra"}  # as each paper has them
EPS = 1e-9


class Finding(NamedTuple):
    """A printed figure that does not follow from its own table, in words without the table."""

    figure: Figure
    words: str


class Conflict(NamedTuple):
    """One quantity that is printed with different values, and every place that prints it."""

    model: str
    name: str
    title: str
    figures: tuple[Figure, ...]

    @property
    def words(self) -> str:
        """Every value with its sources."""
        places: dict[str, list[str]] = defaultdict(list)
        for figure in self.figures:
            places[figure.text.replace("-", "−")].append(
                figure.source if figure.row == self.name else f"{figure.source} ({figure.row})"
            )
        values = "; ".join(f"{value} in {', '.join(dict.fromkeys(those))}" for value, those in places.items())
        return f"{self.title} of {self.name} ({self.model}): {values}"


def findings(figures: Sequence[Figure]) -> list[Finding]:
    """Return the printed figures that the cells beside them do not give, whatever was rounded."""
    lines: dict[tuple[str, ...], dict[str, Figure]] = defaultdict(dict)
    for figure in figures:
        lines[_line(figure)][figure.metric] = figure
    found = []
    for line in lines.values():
        found += [*_average(line), *_rate(line, lines.values()), *_change(line, lines.values()), *_sum(line)]
    return found


def conflicts(figures: Iterable[Figure]) -> list[Conflict]:
    """Return what is printed with values that no rounding makes one: of one model, method, tokens and benchmark.

    Benchmarks are held across papers; averages and costs, which each paper defines for itself, within one.
    """
    places: dict[tuple[str | None, ...], list[Figure]] = defaultdict(list)
    for figure in figures:
        benchmark = BENCHMARKS.get(figure.metric)
        if benchmark or figure.metric in OWN:
            model, name = _what(figure)
            tokens = None if name in FULL else figure.setting.get("tokens")
            own = (figure.metric, figure.paper, *_length(figure))
            places[model, name, tokens, *(benchmark[1:3] if benchmark else own)].append(figure)
    found = []
    for those in places.values():
        ends = [_range(figure) for figure in those]
        if max(low for low, _ in ends) > min(high for _, high in ends) + EPS:
            found.append(Conflict(*_what(those[0]), title(those[0].metric), tuple(those)))
    return found


def title(metric: str) -> str:
    """Return a metric's name as tables head it."""
    others = AVERAGES | {"tflops": "TFLOPs", "tflops_change": "the change of TFLOPs"}
    return BENCHMARKS[metric].title if metric in BENCHMARKS else others.get(metric, metric)


def _line(figure: Figure) -> tuple[str, ...]:
    return figure.paper, figure.table, figure.model, figure.row, *_length(figure)


def _length(figure: Figure) -> tuple[str, ...]:
    return (figure.setting.get("text_tokens", ""),) if figure.metric.startswith("tflops") else ("",)


def _what(figure: Figure) -> tuple[str, str]:
    mixed = figure.model == "mixed" and figure.row.startswith("LVPruning")  # a table of models, in which it prunes this
    return "llava-1.5-7b" if mixed else figure.model, SAME.get(figure.row, figure.row)


def _range(figure: Figure) -> tuple[float, float]:
    """Return what the figure may have been before it was rounded, on the scale of its benchmark's metric."""
    scale = BENCHMARKS[figure.metric].scale if figure.metric in BENCHMARKS else 1
    return (figure.value - figure.half) / scale, (figure.value + figure.half) / scale


def _apart(figure: Figure, low: float, high: float) -> bool:
    """Whether a figure cannot be the rounding of anything from low to high."""
    return figure.value + figure.half < low - EPS or figure.value - figure.half > high + EPS


def _cells(line: dict[str, Figure]) -> list[Figure]:
    return [figure for metric, figure in line.items() if metric in BENCHMARKS]


def _average(line: dict[str, Figure]) -> Iterator[Finding]:
    cells, average = _cells(line), line.get("avg")
    if cells and average:
        mean, slack = (sum(values) / len(cells) for values in zip(*((f.value, f.half) for f in cells), strict=True))
        if _apart(average, mean - slack, mean + slack):
            yield Finding(average, f"the printed average is {average.text}, its {len(cells)} cells give {mean:.1f}")


def _rate(line: dict[str, Figure], lines: Iterable[dict[str, Figure]]) -> Iterator[Finding]:
    cells, rate = _cells(line), line.get("avg_rate")
    if cells and rate:
        full = next(
            (
                other
                for other in lines
                if (base := other.get("avg_rate")) and base.value == 100 and _of(base) == _of(rate)
            ),
            {},
        )
        if not all(figure.metric in full for figure in cells):
            return
        pairs = [(figure, full[figure.metric]) for figure in cells]
        mean, low, high = (
            100 * sum((a.value + sign * a.half) / (b.value - sign * b.half) for a, b in pairs) / len(pairs)
            for sign in (0, -1, 1)
        )
        if _apart(rate, low, high):
            yield Finding(rate, f"the printed rate is {rate.text} %, its {len(cells)} cells give {mean:.1f} %")


def _of(figure: Figure) -> tuple[str, str, str]:
    return figure.paper, figure.table, figure.model


def _change(line: dict[str, Figure], lines: Iterable[dict[str, Figure]]) -> Iterator[Finding]:
    change, here = line.get("tflops_change"), line.get("tflops")
    if change and here:
        costs = [other["tflops"] for other in lines if "tflops" in other]
        full = [cost for cost in costs if cost.row in FULL and (cost.paper, cost.model) == (here.paper, here.model)]
        # a table without the full model is held against the first one's
        base = next((f for f in full if f.table == here.table and _length(f) == _length(here)), next(iter(full), None))
        if base is None:
            return
        value, low, high = (
            100 * ((here.value + sign * here.half) / (base.value - sign * base.half) - 1) for sign in (0, -1, 1)
        )
        if _apart(change, low, high):
            length = here.setting.get("text_tokens")
            place = f"at {length} text tokens " if length else ""
            words = f"{place}the printed change is {change.text} %, {here.text} of {base.text} TFLOPs is {value:.1f} %"
            yield Finding(change, words.replace(" -", " −"))


def _sum(line: dict[str, Figure]) -> Iterator[Finding]:
    total, parts = line.get("tflops"), [line[metric] for metric in PARTS if metric != "tflops" and metric in line]
    if total and parts:
        value, slack = sum(part.value for part in parts), sum(part.half for part in parts)
        if _apart(total, value - slack, value + slack):
            yield Finding(total, f"the printed total is {total.text} TFLOPs, its parts add up to {value:.3f}")
