"""Draws what methods keep of an image, as IVTP's Figure 5 does: the patches that went are grey, the others in colour.

Under each picture stand the model's answer and the question, with the words that guided the choice marked.
"""

import re
import warnings
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from harness.asked import method_of
from harness.errors import VtbenchError
from harness.model.attach import attach
from harness.model.guide import Span, question
from harness.model.ledger import Ledger
from harness.model.load import RANDOM, shape_of
from harness.store import write_atomically
from methods.interface import Method, Need, Shape

if TYPE_CHECKING:
    from harness.lmms.model import VtBench

FORMATS = (".png", ".pdf", ".svg")
NARROWEST = 100  # the processor makes the shorter side the tower's: a thread of an image would become huge
NEW_TOKENS = 64
READS_THE_PROMPT: frozenset[Need] = frozenset({"last_row", "next_last_row", "rater_row"})

DPI = 200
COLUMNS = 4
PANEL, GAP, LINE = 2.3, 0.22, 0.165  # inches: a picture's side, the space around it, a line of text
LINES = 8  # of a text at most
INK, PALE, MARK = "#000000", "#555555", "#F7D58B"  # a mark is a light tint of Okabe and Ito's orange

Word = list[tuple[str, bool]]  # its characters, and which of them are marked


class Asked(NamedTuple):
    """A method as it is asked for, and as the picture calls it."""

    label: str
    method: Method


class Panel(NamedTuple):
    """One picture and what stands over and under it."""

    label: str
    tokens: int
    merged: bool
    kept: Tensor  # the patches at which the last LLM layer's tokens stand
    answer: str
    question: str  # as the tokenizer reads it
    spans: list[Span]  # character ranges of it that guide
    note: str


def show(
    image: Path,
    ask: str,
    methods: list[str],
    out: Path,
    *,
    tokens: int | None = None,
    model: str = "pocket",
    text_encoder: str | None = None,
    seed: int = 0,
) -> None:
    """Draw the whole image and what each method keeps of it, and write that to `out`.

    methods: `name` or `name:key=value,key=value`; tokens: the budget of those that set none.
    Errors: VtbenchError, before anything is written.
    """
    check_place(out, image)
    if not ask.strip():
        raise VtbenchError("--question: is empty")
    picture = open_image(image)
    shape = shape_of(model)
    asked = [read_method(text, tokens, shape) for text in ("full", *methods)]
    if model in RANDOM and model != "random:pocket":  # told before its weights are made
        raise VtbenchError(f"--model: {model!r} has no processor, so it cannot answer; it serves for costs only")
    from harness.lmms.images import unnormalised
    from harness.lmms.model import VtBench  # takes seconds, a mistake need not wait for it

    reads_clip = any(each.method.reads_clip for each in asked)
    lm = VtBench(model, asked[0].method, seed=seed, text_encoder=text_encoder if reads_clip else None)
    inputs = lm.inputs([lm.prompt(ask, 1)], [picture])
    panels = [look(lm, each, inputs) for each in asked]
    seen = unnormalised(inputs["pixel_values"][0], lm.loaded.processor.image_processor)
    figure = draw(seen, panels, lm.loaded.model.config.vision_config.patch_size, f"Model: {model}.")
    kind = out.suffix.lower()[1:]
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    try:
        with matplotlib.rc_context({"svg.hashsalt": "vtbench"}):
            write_atomically(out, lambda path: figure.savefig(path, format=kind, facecolor="white", metadata=metadata))
    except OSError as error:
        raise VtbenchError(f"{out}: {(error.strerror or str(error)).lower()}") from None


def check_place(out: Path, image: Path) -> None:
    """Refuse a place where the figure cannot go. Errors: VtbenchError."""
    if out.suffix.lower() not in FORMATS:
        raise VtbenchError(f"{out}: {out.suffix or 'no extension'} is not possible; allowed are {', '.join(FORMATS)}")
    try:
        if out.is_dir() or not out.parent.is_dir():
            raise VtbenchError(f"{out}: {'is a folder' if out.is_dir() else f'there is no folder {out.parent}'}")
        if out.exists() and image.exists() and out.samefile(image):
            raise VtbenchError(f"{out}: is the image itself")
    except OSError as error:
        raise VtbenchError(f"{out}: {(error.strerror or str(error)).lower()}") from None


def read_method(text: str, tokens: int | None, shape: Shape) -> Asked:
    """Read `name` or `name:key=value,key=value`. Errors: VtbenchError for what is unknown or impossible."""
    name, _, given = text.partition(":")
    pairs = given.split(",") if given else []
    wrong = f"--method: {text!r} is not possible; it should be name or name:key=value,key=value"
    method = method_of(name, pairs, tokens, shape, not_pairs=wrong)
    return Asked(", ".join([name, *(pair.replace("=", " ") for pair in pairs if pair)]), method)


def open_image(path: Path) -> Image.Image:
    """Return an image file's first frame as people see it, in RGB. Errors: VtbenchError for what is no such image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                mode = file.mode
                picture = ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError:
        raise VtbenchError(f"{path}: there is no such file") from None
    except Image.UnidentifiedImageError:
        raise VtbenchError(f"{path}: is not an image that can be read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise VtbenchError(f"{path}: is too large; allowed are {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except Exception as error:  # decoders raise what they like at a damaged file
        reason = ((getattr(error, "strerror", None) or "").lower() or str(error) or type(error).__name__).splitlines()[
            0
        ]
        raise VtbenchError(f"{path}: cannot be read: {reason}") from None
    if mode[0] in "IF":  # Pillow would clip them to white
        raise VtbenchError(f"{path}: has more than 8 bits a channel ({mode}); allowed are 8")
    if max(picture.size) > NARROWEST * min(picture.size):
        width, height = picture.size
        raise VtbenchError(f"{path}: {width}×{height} pixels are too narrow; allowed are sides up to 1:{NARROWEST}")
    return picture


def look(lm: "VtBench", asked: Asked, inputs: Any) -> Panel:
    """Have the model answer a prompt with the method attached, and note what it kept and by which words."""
    loaded, method = lm.loaded, asked.method
    tokenizer = loaded.processor.tokenizer
    with (
        attach(loaded.model, method, text_encoder=lm.encoder, tokenizer=tokenizer, seed=lm.seed) as attached,
        torch.inference_mode(),
    ):
        new = loaded.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1)
    answer = tokenizer.decode(new[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ledger = attached.ledger
    (kept,) = ledger.kept
    size = ledger.frames[-1].size[0]
    ids = inputs["input_ids"][0]
    text, _, _ = question(tokenizer, tuple(ids[ids != loaded.model.config.image_token_id].tolist()))
    return Panel(
        label=asked.label,
        tokens=len(kept),
        merged=bool(((size != 0) & (size != 1)).any()),
        kept=kept.cpu(),
        answer=answer.strip(),
        question=text,
        spans=ledger.guides[0].spans if ledger.guides else [],
        note=_note(method, loaded.shape, ledger),
    )


def _note(method: Method, shape: Shape, ledger: Ledger) -> str:
    """Say what the choice was guided by."""
    if ledger.guides and ledger.guides[0].spans:
        return "the marked words guide"
    if ledger.guides:
        return ("no word was relevant: " if method.reads_question else "") + "the visual CLS guides"
    if any(stage.needs & READS_THE_PROMPT for stage in method.stages(shape)):
        return "guided by attention from the prompt"
    return "" if method.name == "full" else "not guided by the question"


def kept_grid(kept: Tensor, side: int) -> NDArray[np.bool_]:
    """Return which patches [side, side] are among those kept."""
    grid = np.zeros(side * side, dtype=bool)
    grid[kept.numpy()] = True
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


def words(text: str, spans: list[Span]) -> list[Word]:
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


def draw(picture: NDArray[np.uint8], panels: list[Panel], patch: int, caption: str) -> Figure:
    """Return the figure: panels side by side, of a picture [H, W, 3] of patches so many pixels wide."""
    head, plain, note = Type(9, weight="bold"), Type(8.5), Type(7.5, PALE)
    texts = []
    for panel in panels:
        tokens = f"{panel.tokens} tokens{', merged' if panel.merged else ''}"
        over = [
            (head, head.lines(words("whole image" if panel.label == "full" else panel.label, []), PANEL, 3)),
            (note, note.lines(words(tokens, []), PANEL)),
        ]
        under = [
            (plain, plain.lines(words(panel.question, panel.spans), PANEL)),
            (plain, plain.lines(words(f"answer: {panel.answer or '(empty)'}", []), PANEL, 3)),
            (note, note.lines(words(panel.note, []), PANEL)),
        ]
        texts.append((over, under))
    columns = min(COLUMNS, len(panels))
    width = columns * (PANEL + GAP) + GAP
    merged = (
        " A merged token stands for more than the patch at which it is drawn."
        if any(panel.merged for panel in panels)
        else ""
    )
    legend = note.lines(
        words(f"In colour: the patches at which the last LLM layer's tokens stand.{merged} {caption}", []),
        width - 2 * GAP,
    )

    def height(blocks: list[tuple[Type, list[list[Word]]]]) -> float:
        return LINE * sum(len(lines) for _, lines in blocks)

    rows = [texts[start : start + columns] for start in range(0, len(texts), columns)]
    tops = [max(height(over) for over, _ in row) for row in rows]
    bottoms = [max(height(under) for _, under in row) for row in rows]
    total = sum(tops) + sum(bottoms) + len(rows) * (PANEL + 2 * GAP) + LINE * len(legend) + GAP
    figure = Figure(figsize=(width, total), dpi=DPI)
    y = GAP
    for number, row in enumerate(rows):
        for column, (over, under) in enumerate(row):
            panel = panels[number * columns + column]
            x = GAP + column * (PANEL + GAP)
            at = y + tops[number] - height(over)
            for kind, lines in over:
                at = kind.set(figure, lines, x, at)
            at += GAP / 4
            side = len(picture) // patch
            grid = kept_grid(panel.kept, side)
            axes = figure.add_axes((x / width, 1 - (at + PANEL) / total, PANEL / width, PANEL / total))
            axes.imshow(overlay(picture, grid), interpolation="none", extent=(0, side, side, 0))
            axes.add_collection(
                LineCollection(borders(grid), colors=INK, linewidths=0.4, capstyle="projecting", clip_on=False)
            )
            axes.set_axis_off()
            at += PANEL + GAP / 4
            for kind, lines in under:
                at = kind.set(figure, lines, x, at)
        y += tops[number] + PANEL + bottoms[number] + 1.5 * GAP
    note.set(figure, legend, GAP, y)
    return figure
