"""Writes PocketVQA's test split: `python -m harness.pocket.data`. The same code writes the same bytes.

`images.parquet` holds each picture once, as PNG; `<family>.parquet` the family's questions, which name their picture by
its scene seed, `image_id`. A family's answers are equally frequent, so that no constant answer beats chance. Most
families ask about the first scenes of the split as they come; `count` and `ocr`, whose answers "four" and letters are
rare, also about later scenes that were taken because they hold them.
"""

import io
from collections import Counter
from functools import cache
from itertools import count, islice, product
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from PIL import Image

from harness.pocket.questions import FAMILIES, NUMBERS, OPTIONS
from harness.pocket.scenes import COLORS, LETTERS, PLACES, SHAPES, draw, scene
from harness.pocket.train import TEST

FOLDER = Path(__file__).parents[1] / "lmms" / "pocketvqa" / "test"
SCENES, RICH, QUESTIONS = 300, 160, 520
ANSWERS = {
    "attribute": (*COLORS, *SHAPES),
    "existence": ("yes", "no"),
    "count": NUMBERS,
    "where": PLACES,
    "relation": ("left", "right", "above", "below"),
    "ocr": tuple(LETTERS),
    "choice": OPTIONS,
}
Row = dict[str, str | int | bytes]
_scene = cache(scene)


def is_rich(seed: int) -> bool:
    """Return whether a scene has three letters, or two of them and four things of one colour or shape."""
    things = _scene(seed).things
    letters = sum(thing.letter is not None for thing in things)
    alike = Counter(thing.color for thing in things) + Counter(thing.shape for thing in things)
    return letters >= 3 or (letters == 2 and 4 in alike.values())


@cache
def seeds() -> tuple[int, ...]:
    """Return the split's scenes: the first ones, and the next ones that are rich."""
    rich = filter(is_rich, count(TEST + SCENES))
    return *range(TEST, TEST + SCENES), *islice(rich, RICH)


def questions(family: str) -> list[Row]:
    """Return a family's questions, none twice.

    Every answer comes once before any comes again, so that the first so many questions are balanced too.
    """
    answers = ANSWERS[family]
    pool = seeds() if family in ("count", "ocr") else seeds()[:SCENES]
    rows: list[Row] = []
    given: Counter[str] = Counter()
    asked: set[tuple[int, str]] = set()
    for turn, seed in product(range(20), pool):
        rng = np.random.default_rng([seed, 3, turn, list(FAMILIES).index(family)])
        question = FAMILIES[family](_scene(seed), rng)
        if question is None or (seed, question.text) in asked or given[question.answer] > len(rows) // len(answers):
            continue
        given[question.answer] += 1
        asked.add((seed, question.text))
        rows.append(
            {
                "question_id": f"{family}-{len(rows):03d}",
                "image_id": seed,
                "question": question.text,
                "answer": question.answer,
            }
        )
        if len(rows) == QUESTIONS:
            return rows
    raise RuntimeError(f"{family}: only {len(rows)} of {QUESTIONS} questions, answers {dict(given)}")


def picture(seed: int) -> bytes:
    """Return a scene's picture as PNG."""
    file = io.BytesIO()
    Image.fromarray(draw(_scene(seed))[0]).save(file, "PNG")
    return file.getvalue()


def write(rows: list[Row], path: Path) -> None:
    """Write rows as parquet; uncompressed, so that the bytes do not depend on a codec's version."""
    pq.write_table(pa.Table.from_pylist(rows), path, compression="none")


def main(out: Annotated[Path, typer.Option(help="the parquet files go here")] = FOLDER) -> None:
    """Write the test split."""
    out.mkdir(parents=True, exist_ok=True)
    write([{"image_id": seed, "png": picture(seed)} for seed in seeds()], out / "images.parquet")
    for family in FAMILIES:
        write(questions(family), out / f"{family}.parquet")


if __name__ == "__main__":
    typer.run(main)
