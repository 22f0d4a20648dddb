"""What methods keep of the same pictures, as IVTP's Figure 5: some questions that part them, chosen by rule."""

import warnings
from collections.abc import Collection, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from harness.panels import Panel, Strip, draw
from harness.report.compared import Compared
from harness.report.figures.style import full_rows, save, short_name
from harness.report.results import Results, Row
from harness.report.rows import in_main_table
from harness.report.stored import listed, pictures, side, there
from harness.report.tables import short_names

QUESTIONS, METHODS = 3, 4  # METHODS besides the full model
RIGHT = 0.5  # a score from which an answer counts as right where methods are told apart
LETTERS = 300
SIDE, DPI = 1.75, 150  # inches of a picture, and dots of an inch
WHO = (("right", True), ("wrong", False))
NEEDED = {"question", "target", "answer", "score", "pictures", "kept", "merged", "words"}


class Kept(NamedTuple):
    """What the figure shows: the budget, its methods, of so many, and a sentence for each question."""

    budget: str
    methods: list[str]
    of: int
    told: list[str]


def kept_patches(results: Results, compared: Compared, path: Path) -> Kept | None:
    """Draw what some methods keep on some questions; None where the store has no pictures that part them.

    Rows of one model, setting and budget: the budget of most methods, of several the one where they part on most
    questions. Of its methods METHODS, evenly from the best average to the worst, behind the full model.
    """
    stored = pictures(results.folder)
    shown = [i for i in in_main_table(results) if i in compared.average and NEEDED.issubset(results.rows[i].samples)]
    tables = {i: _pictured(results.scored(results.rows[i]), stored.keys()) for i in shown if stored}
    groups: dict[tuple[str, str, str], list[int]] = {}
    for i, row in ((i, results.rows[i]) for i in tables):
        if row.method != "full":
            groups.setdefault((row.model, str(row.setting), row.budget), []).append(i)
    if not groups:
        return None
    best = max(groups.values(), key=lambda rows: (len(rows), len(_parted(tables, rows))))
    order = sorted(best, key=lambda i: -compared.average[i].mean)
    count = min(METHODS, len(order))
    pruned = [order[round(k * (len(order) - 1) / max(1, count - 1))] for k in range(count)]
    row = results.rows[best[0]]
    alike = [i for i in full_rows(results, compared) if i in tables and compared.full[best[0]] is results.rows[i]]
    columns = [*alike, *pruned]
    strips, told = [], []
    for key, strip in _strips(results, stored, tables, columns, _ranked(tables, pruned, alike)):
        strips.append(strip)
        told.append(_told(results, tables, columns, key))
    if not strips:
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a script that the font has not: a box stands there
        save(draw(strips, f"Model: {row.model}.", columns=METHODS + 1, size=SIDE), path, DPI)
    return Kept(row.budget, [short_name(results, results.rows[i]) for i in columns], len(best), told)


def _pictured(samples: pd.DataFrame, pictured: Collection[str]) -> pd.DataFrame:
    """Return the samples of one picture that the store has, by task and document."""
    known = [len(names) == 1 and names[0] in pictured for names in map(listed, samples["pictures"])]
    return samples[known].set_index(["task", "doc_id"])


def _scores(tables: dict[int, pd.DataFrame], rows: list[int]) -> pd.DataFrame:
    """Return whether each row [columns] is right on every question that all of them answered."""
    return pd.concat([tables[i]["score"] for i in rows], axis=1, join="inner", keys=rows) >= RIGHT


def _parted(tables: dict[int, pd.DataFrame], rows: list[int]) -> pd.DataFrame:
    right = _scores(tables, rows)
    return right[right.any(axis=1) & ~right.all(axis=1)]


def _ranked(tables: dict[int, pd.DataFrame], pruned: list[int], full: list[int]) -> list[tuple[Any, ...]]:
    """Return the questions that part the methods, the best first: the full model is right, half of the methods are."""
    parted = _parted(tables, pruned)
    order = pd.DataFrame(
        {
            "full": [all(tables[i]["score"].get(key, 0) >= RIGHT for i in full) for key in parted.index],
            "uneven": (2 * parted.sum(axis=1) - len(pruned)).abs().tolist(),
        },
        index=parted.index,
    )
    keys = list(order.sort_values(["full", "uneven"], ascending=[False, True], kind="stable").index)
    first = {task: key for key in reversed(keys) for task in [key[0]]}
    return sorted(keys, key=lambda key: first[key[0]] != key)  # one of each task, then the others


def _strips(
    results: Results,
    stored: dict[str, Path],
    tables: dict[int, pd.DataFrame],
    columns: list[int],
    keys: list[tuple[Any, ...]],
) -> Iterator[tuple[tuple[Any, ...], Strip]]:
    """Yield up to QUESTIONS questions whose files can be read, and what is drawn of them."""
    names = short_names(results.tasks)
    along = side(results.rows[columns[-1]])
    if along is None:
        return
    found = 0
    for key in keys:
        asked = {i: tables[i].loc[key] for i in columns if key in tables[i].index}
        sample = next(iter(asked.values()))
        picture = _picture(stored[sample["pictures"][0]], along)
        if picture is None or len(asked) < len(columns):
            continue
        head = f"{names.get(key[0], key[0])}: {_plain(sample['question'])} Expected: {_plain(sample['target'])}"
        panels = [_panel(results, results.rows[i], each, along) for i, each in asked.items()]
        yield key, Strip(picture, len(picture) // along, panels, head)
        found += 1
        if found == QUESTIONS:
            return


def _picture(path: Path, along: int) -> NDArray[np.uint8] | None:
    """Return a picture [H, W, 3] if it can be read and patches fit into it."""
    try:
        with Image.open(path) as file:
            picture = np.asarray(file.convert("RGB"))
    except (OSError, ValueError):
        return None
    height, width = picture.shape[:2]
    return picture if height == width and height % along == 0 else None


def _panel(results: Results, row: Row, sample: pd.Series, along: int) -> Panel:
    whole = range(along * along)
    kept, words = listed(sample["kept"]), listed(sample["words"])
    patches = [int(patch) for patch in kept[0] if patch in whole] if kept else whole
    guiding = [_plain(word) for word in words]
    question = " ".join(["guided by:", *guiding]) if guiding else ""
    ends = list(accumulate((1 + len(word) for word in guiding), initial=len("guided by:")))
    score = float(sample["score"])
    verdict = {0.0: "✗ wrong", 1.0: "✓ right"}.get(score, f"score {score:.2f}")
    return Panel(
        label=short_name(results, row),
        tokens=len(patches),
        merged=there(sample["merged"]) and bool(sample["merged"]),
        kept=patches,
        answer=_plain(sample["answer"]),
        question=question,
        spans=[(end + 1, end + 1 + len(word)) for end, word in zip(ends, guiding, strict=False)],
        note="no word was relevant" if there(sample["words"]) and not words else "",
        verdict=verdict,
    )


def _plain(value: object) -> str:
    """Return a text of one line that a font can set."""
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(str(value).split()))
    return shown if len(shown) <= LETTERS else f"{shown[:LETTERS]}…"


def _told(results: Results, tables: dict[int, pd.DataFrame], columns: list[int], key: tuple[Any, ...]) -> str:
    """Say in words who is right."""
    right = {short_name(results, results.rows[i]): tables[i].loc[key, "score"] >= RIGHT for i in columns}
    sides = [(word, [name for name, is_right in right.items() if is_right == which]) for word, which in WHO]
    said = "; ".join(f"{word}: {', '.join(names)}" for word, names in sides if names)
    return f"{short_names(results.tasks).get(key[0], key[0])} {key[1]}, {said}"
