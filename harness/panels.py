"""Draws what methods keep of an image, as IVTP's Figure 5 does: the patches that went are grey, the others in colour.

Under each picture stand the answer and the question, with the words that guided the choice marked. Needs no torch:
reports draw with it.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from numpy.typing import NDArray

DPI = 200
SIDE, GAP, LINE = 2.3, 0.22, 0.165  # inches: a picture's side, the space around it, a line of text
LINES = 8  # of a text at most
INK, PALE, MARK = "#000000", "#555555", "#F7D58B"  # a mark is a light tint of Okabe and Ito's orange

Word = list[tuple[str, bool]]  # its characters, and which of them are marked
Block = tuple["Type", list[list[Word]]]  # lines of one size
Span = tuple[int, int]  # a range of characters


class Panel(NamedTuple):
    """One picture and what stands over and under it."""

    label: str
    tokens: int
    merged: bool  # a token stands for more than its own patch
    kept: Sequence[int]  # the patches at which the last LLM layer's tokens stand
    answer: str
    question: str  # or what of it is to stand here
    spans: Sequence[Span]  # character ranges of it that guide
    note: str
    verdict: str = "answer"  # what the answer is called


class Strip(NamedTuple):
    """Panels of one picture and question, side by side."""

    picture: NDArray[np.uint8]  # [H, W, 3]
    patch: int  # pixels that one is wide
    panels: Sequence[Panel]
    head: str = ""  # what stands over them all


def kept_grid(kept: Sequence[int], side: int) -> NDArray[np.bool_]:
    """Return which patches [side, side] are among those kept."""
    grid = np.zeros(side * side, dtype=bool)
    grid[list(kept)] = True
    return grid.reshape(side, side)


def overlay(picture: NDArray[np.uint8], grid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the picture [H, W, 3] with the patches that are not in the grid grey and pale."""
    p = len(picture) // len(grid)
    stays = grid.repeat(p, axis=0).repeat(p, axis=1)[:, :, None]
    pale = (0.35 * picture @ np.array([0.299, 0.587, 0.114]) + 0.65 * 255).round().astype(np.uint8)[:, :, None]
    return np.where(stays, picture, pale)


def borders(grid: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Return the edges, in patches from the top left, between what is kept and what is not."""
    padded = np.pad(grid, 1)
    rows, columns = np.nonzero(padded[:-1, 1:-1] != padded[1:, 1:-1])
    edges = [[(int(x), int(y)), (int(x) + 1, int(y))] for y, x in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(padded[1:-1, :-1] != padded[1:-1, 1:])
    return edges + [[(int(x), int(y)), (int(x), int(y) + 1)] for y, x in zip(rows, columns, strict=True)]


def words(text: str, spans: Sequence[Span]) -> list[Word]:
    """Return the words of a text, their characters marked where a span covers them."""
    marked = {index for start, stop in spans for index in range(start, stop)}
    return [[(text[index], index in marked) for index in range(*match.span())] for match in re.finditer(r"\S+", text)]


class Type:
    """A type size: measures in inches, breaks lines and sets them."""

    def __init__(self, size: float, color: str = INK, weight: str = "normal") -> None:
        self.size, self.color, self.weight = size, color, weight
        self.renderer = FigureCanvasAgg(Figure(dpi=DPI)).get_renderer()

    def font(self, marked: bool) -> FontProperties:
        """Return the font; what is marked is bold."""
        return FontProperties(size=self.size, weight="bold" if marked else self.weight)

    def width(self, word: Word) -> float:
        """Return how wide a word is set."""
        return sum(
            self.renderer.get_text_width_height_descent(run, self.font(marked), False)[0] / DPI
            for run, marked in _runs(word)
        )

    def lines(self, text: list[Word], width: float, most: int = LINES) -> list[list[Word]]:
        """Break a text into lines, at most so many; one that goes on ends in an ellipsis."""
        space = self.width([(" ", False)])
        lines: list[list[Word]] = [[]]
        free = width
        for part in [part for word in text for part in self._parts(word, width)]:
            needed = self.width(part) + (space if lines[-1] else 0)
            if needed > free and lines[-1]:
                if len(lines) == most:
                    lines[-1][-1] = [*lines[-1][-1][:-1], ("…", False)]
                    return lines
                lines.append([])
                needed, free = needed - space, width
            lines[-1].append(part)
            free -= needed
        return lines if lines[0] else []

    def _parts(self, word: Word, width: float) -> Iterator[Word]:
        """Cut a word that is wider than a line."""
        while len(word) > 1 and self.width(word) > width:
            end = next((end for end in range(2, len(word)) if self.width(word[:end]) > width), len(word)) - 1
            yield word[:end]
            word = word[end:]
        yield word

    def set(self, figure: Figure, lines: list[list[Word]], x: float, y: float) -> float:
        """Put lines at x and below y, in inches from the top left, and return where they end."""
        width, height = figure.get_size_inches()
        space = self.width([(" ", False)])
        for line in lines:
            at = x
            for word in line:
                for run, marked in _runs(word):
                    figure.text(
                        at / width,
                        1 - (y + 0.75 * LINE) / height,
                        run,
                        parse_math=False,
                        fontproperties=self.font(marked),
                        color=self.color,
                        bbox={"facecolor": MARK, "edgecolor": "none", "pad": 1.2} if marked else None,
                    )
                    at += self.width([(letter, marked) for letter in run])
                at += space
            y += LINE
        return y


def _runs(word: Word) -> list[tuple[str, bool]]:
    return [("".join(letter for letter, _ in run), marked) for marked, run in groupby(word, key=lambda pair: pair[1])]


def draw(strips: Sequence[Strip], caption: str, *, columns: int, size: float = SIDE) -> Figure:
    """Return the figure: strips one under the other, so many panels in a row at most, pictures `size` inches wide."""
    title, head, plain, note = Type(10), Type(9, weight="bold"), Type(8.5), Type(7.5, PALE)
    width = min(columns, max(len(strip.panels) for strip in strips)) * (size + GAP) + GAP

    def over(panel: Panel) -> list[Block]:
        tokens = f"{panel.tokens} tokens{', merged' if panel.merged else ''}"
        return [
            (head, head.lines(words("whole image" if panel.label == "full" else panel.label, []), size, 3)),
            (note, note.lines(words(tokens, []), size)),
        ]

    def under(panel: Panel) -> list[Block]:
        return [
            (plain, plain.lines(words(f"{panel.verdict}: {panel.answer or '(empty)'}", []), size, 3)),
            (plain, plain.lines(words(panel.question, panel.spans), size)),
            (note, note.lines(words(panel.note, []), size)),
        ]

    rows = []
    for strip in strips:
        for start in range(0, len(strip.panels), columns):
            panels = strip.panels[start : start + columns]
            asked = title.lines(words("" if start else strip.head, []), width - 2 * GAP)
            rows.append((strip, asked, panels, [over(panel) for panel in panels], [under(panel) for panel in panels]))
    merged = (
        " A merged token stands for more than the patch at which it is drawn."
        if any(panel.merged for strip in strips for panel in strip.panels)
        else ""
    )
    told = f"In colour: the patches at which the last LLM layer's tokens stand.{merged} {caption}"
    foot = note.lines(words(told, []), width - 2 * GAP)
    total = LINE * len(foot) + GAP
    for _, asked, _, overs, unders in rows:
        total += LINE * len(asked) + max(map(_height, overs)) + size + max(map(_height, unders)) + 2.25 * GAP

    figure = Figure(figsize=(width, total), dpi=DPI)
    y = GAP
    for strip, asked, panels, overs, unders in rows:
        y = title.set(figure, asked, GAP, y) + max(map(_height, overs)) + GAP / 2
        for column, (panel, above, below) in enumerate(zip(panels, overs, unders, strict=True)):
            x = GAP + column * (size + GAP)
            _put(figure, above, x, y - GAP / 4 - _height(above))
            side = len(strip.picture) // strip.patch
            grid = kept_grid(panel.kept, side)
            axes = figure.add_axes((x / width, 1 - (y + size) / total, size / width, size / total))
            axes.imshow(overlay(strip.picture, grid), interpolation="none", extent=(0, side, side, 0))
            axes.add_collection(
                LineCollection(borders(grid), colors=INK, linewidths=0.4, capstyle="projecting", clip_on=False)
            )
            axes.set_axis_off()
            _put(figure, below, x, y + size + GAP / 4)
        y += size + max(map(_height, unders)) + 1.75 * GAP
    note.set(figure, foot, GAP, y)
    return figure


def _height(blocks: list[Block]) -> float:
    return LINE * sum(len(lines) for _, lines in blocks)


def _put(figure: Figure, blocks: list[Block], x: float, y: float) -> None:
    for kind, lines in blocks:
        y = kind.set(figure, lines, x, y)
