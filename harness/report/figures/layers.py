"""Visual tokens per layer: through the ViT, then through the LLM, as steps."""

from collections import Counter
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from harness.report.figures.style import COLORS, FULL, MARKERS, WIDTH, line_name, plt, save, short_name
from harness.report.results import Results, Row, dig
from harness.report.rows import in_main_table

PANELS = 3
NAME = 34  # characters of a line of the legend
APART = 5  # layers between the markers of a line
HAIR = 1.3 / 72  # inches
DASHES = ("-", (0, (3, 1.5)))  # of the lines that have the colours first, and of those that have them again

Profile = tuple[tuple[float, ...], tuple[float, ...]]  # tokens into each layer of the ViT, and of the LLM
Lines = dict[Profile, str]  # the names of all that keep so many


class Drawn(NamedTuple):
    """Which panels the figure has, of how many, and the most lines of one; a figure of too many is not there."""

    panels: list[str]
    of: int
    lines: int
    there: bool


def tokens_per_layer(results: Results, path: Path) -> Drawn | None:
    """Draw tokens per layer, a panel a budget and what keeps the same as one line; None where no record has them.

    Budgets of fewer than half as many methods as others are left out, then all but the first, the middle and the last;
    so is a row whose trials, or whose model's other rows, have another number of layers.
    """
    rows: dict[tuple[str, str], list[Row]] = {}
    whole: dict[str, Profile] = {}
    found = [(row, profile) for i in in_main_table(results) if (profile := _profile(row := results.rows[i]))]
    depths = Counter((row.model, _depth(profile)) for row, profile in found)
    depth = {model: depth for (model, depth), _ in reversed(depths.most_common())}
    for row, profile in found:
        if _depth(profile) != depth[row.model]:
            continue
        if row.method == "full":
            whole.setdefault(row.model, profile)
        else:
            rows.setdefault((row.model, row.budget), []).append(row)
    if not rows:
        return None
    methods = {key: len({short_name(results, row) for row in peers}) for key, peers in rows.items()}
    chosen = [key for key in rows if 2 * methods[key] >= max(methods.values())]
    if len(chosen) > PANELS:
        chosen = [chosen[0], chosen[len(chosen) // 2], chosen[-1]]
    lines = [_lines(results, rows[key]) for key in chosen]
    several = len({model for model, _ in rows}) > 1
    titles = [f"{budget}, {model}" if several else budget for model, budget in chosen]
    most = max(map(len, lines))
    drawn = Drawn(titles, len(rows), most, most <= len(COLORS) * len(DASHES))
    if not drawn.there:
        return drawn
    heights = [max(2.4, 0.5 + 0.18 * sum(1 + name.count("\n") for name in each.values())) for each in lines]
    figure, grid = plt.subplots(
        len(chosen), 1, figsize=(WIDTH, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    figure.supylabel("visual tokens into the layer", fontsize=10)
    styles = _styles(lines)
    for axes, (model, _), each, title in zip(grid.flat, chosen, lines, titles, strict=True):
        _draw(figure, axes, each, styles or _styles([each]), whole.get(model))
        axes.set_title(title, loc="left", fontsize=10)
    save(figure, path)
    return drawn


def _profile(row: Row) -> Profile | None:
    """Return a row's tokens to the tenth, for they are means; None where its trials have none or of other layers."""
    vit, llm = ([found for record in row.records if (found := dig(record, "tokens", key))] for key in ("vit", "llm"))
    alike = len(set(map(len, vit))) == len(set(map(len, llm))) == 1
    return (_mean(vit), _mean(llm)) if alike else None


def _depth(profile: Profile) -> tuple[int, int]:
    return len(profile[0]), len(profile[1])


def _mean(towers: list[list[float]]) -> tuple[float, ...]:
    return tuple(round(sum(layer) / len(layer), 1) for layer in zip(*towers, strict=True))


def _lines(results: Results, rows: list[Row]) -> Lines:
    """Return the lines of a panel, those that keep more first."""
    profiles = [(row, short_name(results, row), profile) for row in rows if (profile := _profile(row))]
    different = {(name, profile) for _, name, profile in profiles}
    alike = {name for name, count in Counter(name for name, _ in different).items() if count == 1}
    names: dict[Profile, list[str]] = {}
    for row, short, profile in profiles:  # what else differs counts only where it changes the tokens
        shared = names.setdefault(profile, [])
        name = short if short in alike else line_name(results, row)
        shared += [] if name in shared else [name]
    order = sorted(names, key=lambda profile: (-sum(map(sum, profile)), names[profile]))
    return {profile: fill("; ".join(sorted(names[profile])), NAME) for profile in order}


def _styles(panels: list[Lines]) -> dict[str, int]:
    """Number the names, so that one looks alike in every panel; empty where there are more than can be told apart."""
    names = dict.fromkeys(name for lines in panels for name in lines.values())
    return {name: i for i, name in enumerate(names)} if len(names) <= len(COLORS) * len(DASHES) else {}


def _draw(figure: plt.Figure, axes: Axes, lines: Lines, styles: dict[str, int], whole: Profile | None) -> None:
    vit, llm = map(len, next(iter(lines)))
    keys = []
    if whole:
        keys += axes.step(range(vit + llm + 1), _steps(whole), where="post", color=FULL, ls=":", lw=1, label="full")
    for number, (profile, name) in enumerate(lines.items()):
        style = styles[name]
        color, marker, dash = COLORS[style % len(COLORS)], MARKERS[style % len(MARKERS)], DASHES[style // len(COLORS)]
        tokens = _steps(profile)
        # A hair apart, and their markers on layers of their own, so that lines that coincide can be followed.
        up = ScaledTranslation(0, HAIR * (number - (len(lines) - 1) / 2), figure.dpi_scale_trans)
        marked = range(number % APART, vit + llm, APART)
        at = axes.transData + up
        axes.step(range(vit + llm + 1), tokens, where="post", color=color, ls=dash, lw=1.3, transform=at)
        middles, there = [i + 0.5 for i in marked], [tokens[i] for i in marked]
        axes.plot(middles, there, color=color, marker=marker, ms=4.5, ls="none", transform=at)
        keys.append(Line2D([], [], color=color, ls=dash, lw=1.3, marker=marker, ms=4.5, label=name))
    every = 1 if vit + llm <= 20 else 4
    axes.set_xticks(
        [i + 0.5 for tower in (range(vit), range(vit, vit + llm)) for i in tower[::every]],
        [str(i + 1) for tower in (range(vit), range(llm)) for i in tower[::every]],
    )
    axes.set_xlim(0, vit + llm)
    axes.axvline(vit, color=FULL, linewidth=0.8)
    values = [value for profile in [*lines, *([whole] if whole else [])] for value in _steps(profile)]
    if max(values) > 4 * min(values):
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(min(values) / 1.2, max(values) * 1.2)
    axes.grid(color="#dddddd", linewidth=0.6, axis="y")
    axes.set_axisbelow(True)
    for middle, name in ((vit / 2, "ViT layer"), (vit + llm / 2, "LLM layer")):
        at = axes.get_xaxis_transform() + ScaledTranslation(0, -19 / 72, figure.dpi_scale_trans)
        axes.text(middle, 0, name, transform=at, ha="center", va="top", fontsize=9)
    axes.legend(handles=keys, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)


def _steps(profile: Profile) -> list[float]:
    """Return the tokens into each layer, the last once more, for a step has two ends; none are drawn as one."""
    tokens = [*profile[0], *profile[1]]
    return [max(1.0, each) for each in [*tokens, tokens[-1]]]
