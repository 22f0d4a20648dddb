"""What the page's sample browser knows: questions, pictures, and every row's answer and kept patches, as plain data."""

import base64
import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.report.results import Results
from harness.report.rows import in_main_table, row_name
from harness.report.stored import listed, side, there
from harness.report.stored import pictures as stored_pictures

ANSWERS = 100_000  # samples × rows
BYTES = 16_000_000  # of samples and pictures: what a browser opens at once
LETTERS = 2_000  # of a question, a target or an answer
COLUMNS = ("question", "target", "answer", "pictures", "kept", "merged", "words", "score")


def browsed(results: Results) -> dict[str, Any] | None:
    """Return what the browser shows, None where no trial left samples; the same results give the same data.

    rows: name, budget, whether it is the full model, that row's number, whether the main table has it, patches a side.
    samples: task, id, question, target, numbers of pictures (null: the store has none), one answer a row (null: not
    asked): text, score (null: not scored), bit masks of the kept patches by picture (null: all), merged, words.
    pictures: data URIs. samples are taken from the tasks in turn, up to ANSWERS and BYTES; total: all there are.
    """
    turns = _in_turn([row.samples for row in results.rows])
    if not turns:
        return None
    taken = turns[: max(1, ANSWERS // len(results.rows))]
    tables = [_by_sample(row.samples, set(taken)) for row in results.rows]
    rows = _rows(results)
    stored = stored_pictures(results.folder)
    numbers: dict[str, int] = {}
    pictures: list[str] = []
    samples: list[dict[str, Any]] = []
    size = 0
    for key in taken:
        found = [table.get(key) for table in tables]
        sample = _sample(key, found, [row["side"] for row in rows])
        names = [name for name in sample["pictures"] if name in stored]
        new = {name: _data_uri(stored[name]) for name in dict.fromkeys(names) if name not in numbers}
        size += len(json.dumps(sample)) + sum(map(len, new.values()))
        if samples and size > BYTES:
            break
        for name, uri in new.items():
            numbers[name] = len(pictures)
            pictures.append(uri)
        sample["pictures"] = [numbers.get(name) for name in sample["pictures"]]
        samples.append(sample)
    place = {task: number for number, task in enumerate(dict.fromkeys(task for task, _ in turns))}
    samples.sort(key=lambda sample: place[sample["task"]])
    return {"rows": rows, "samples": samples, "pictures": pictures, "total": len(turns)}


def _rows(results: Results) -> list[dict[str, Any]]:
    keys = [(row.model, str(row.setting)) for row in results.rows]
    full = {key: i for i, (key, row) in enumerate(zip(keys, results.rows, strict=True)) if row.method == "full"}
    main = set(in_main_table(results))
    return [
        {
            "name": row_name(results, row),
            "budget": row.budget,
            "is_full": row.method == "full",
            "full": full.get(key),
            "main": i in main,
            "side": side(row),
        }
        for i, (key, row) in enumerate(zip(keys, results.rows, strict=True))
    ]


def _keys(samples: pd.DataFrame) -> list[tuple[str, str]]:
    """Return every sample's task and document."""
    if samples.empty:
        return []
    return list(zip(map(str, samples["task"].tolist()), map(str, samples["doc_id"].tolist()), strict=True))


def _by_sample(samples: pd.DataFrame, taken: set[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return a row's answers to these samples; a column that older stores lack is None."""
    places = {key: place for place, key in enumerate(_keys(samples)) if key in taken}
    columns = {name: samples[name].array for name in COLUMNS if name in samples}
    return {
        key: {name: columns[name][place] if name in columns else None for name in COLUMNS}
        for key, place in places.items()
    }


def _in_turn(tables: list[pd.DataFrame]) -> list[tuple[str, str]]:
    """Return every sample that any row has, the first of each task, then the second of each, and so on."""
    tasks: dict[str, list[tuple[str, str]]] = {}
    for key in dict.fromkeys(key for table in tables for key in _keys(table)):
        tasks.setdefault(key[0], []).append(key)
    return [key for turn in zip_longest(*tasks.values()) for key in turn if key]


def _sample(key: tuple[str, str], found: list[dict[str, Any] | None], sides: list[int | None]) -> dict[str, Any]:
    first = next(each for each in found if each)
    return {
        "task": key[0],
        "id": key[1],
        "question": _clipped(first["question"]),
        "target": _clipped(first["target"]),
        "pictures": [str(name) for name in listed(first["pictures"])],
        "answers": [each and _answer(each, side) for each, side in zip(found, sides, strict=True)],
    }


def _answer(sample: dict[str, Any], side: int | None) -> list[Any]:
    score, kept = sample["score"], sample["kept"]
    masks = None if side is None or not there(kept) else [_mask(patches, side) for patches in kept]
    return [
        _clipped(sample["answer"]),
        float(score) if there(score) else None,
        masks,
        bool(there(sample["merged"]) and sample["merged"]),
        [str(word) for word in listed(sample["words"])],
    ]


def _mask(patches: Any, side: int) -> str:
    """Return which patches are there as bits, the first patch the lowest bit of the first byte, in base64."""
    bits = np.zeros(side * side, dtype=bool)
    places = np.asarray(patches, dtype=int)
    bits[places[(places >= 0) & (places < len(bits))]] = True
    return base64.b64encode(np.packbits(bits, bitorder="little").tobytes()).decode()


def _clipped(value: Any) -> str:
    shown = str(value) if there(value) else ""
    return shown if len(shown) <= LETTERS else f"{shown[:LETTERS]}… ({len(shown):,} characters)"


def _data_uri(path: Path) -> str:
    return f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode()}"


def words(data: dict[str, Any]) -> Iterator[str]:
    """Yield what a reader must know of these samples: how many there are, how many have pictures, what right means."""
    samples, total = data["samples"], data["total"]
    if len(samples) < total:
        yield f"The page has {len(samples):,} of {total:,} samples, from the tasks in turn, so that it stays small."
    pictured = sum(any(number is not None for number in sample["pictures"]) for sample in samples)
    if not pictured:
        yield "The store has no pictures of these samples."
    elif pictured < len(samples):
        yield f"{pictured:,} samples have their picture: the store keeps those of the first samples of each task."
    scores = {answer[1] for sample in samples for answer in sample["answers"] if answer}
    if scores - {0.0, 1.0, None}:
        yield "Where scores are graded, right and wrong mean the higher and the lower score."
