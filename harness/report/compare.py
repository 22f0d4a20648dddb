"""Two rows of a sweep held against each other: `vtbench compare SWEEP A B`."""

from typing import Any

import pandas as pd

from harness.errors import VtbenchError
from harness.reading import read_pairs
from harness.report.cells import points
from harness.report.results import Results, Row
from harness.report.statistics import interval, paired
from harness.report.stored import there

EXAMPLES = 5  # of each kind
COLUMNS = ["task", "doc_id", "image_id", "score", "question", "target", "answer"]


def chosen(results: Results, text: str) -> Row:
    """Return the one row that `name` or `name:key=value,key=value` names, by parameters, setting or model.

    Errors: VtbenchError when there is none, or several, with what would tell them apart.
    """
    name, _, given = text.partition(":")
    wrong = f"{text!r} is not possible; it should be name or name:key=value,key=value, each key once"
    wanted = read_pairs(name, given.split(",") if given else (), not_pairs=wrong)
    named = [row for row in results.rows if row.method == name]
    found = [row for row in named if all(_known(row).get(key, ...) == value for key, value in wanted.items())]
    if len(found) == 1:
        return found[0]
    if not named:
        methods = ", ".join(dict.fromkeys(row.method for row in results.rows))
        raise VtbenchError(f"{text!r}: {results.name} has no {name}; allowed are {methods}")
    apart = {
        key: list(dict.fromkeys(str(_known(row)[key]) for row in found or named))
        for key in _known(named[0])
        if len({str(_known(row)[key]) for row in found or named}) > 1
    }
    choices = "; ".join(f"{key}={'|'.join(values)}" for key, values in apart.items())
    problem = f"names {len(found)} rows" if found else "names none"
    raise VtbenchError(f"{text!r} {problem} of {results.name}; say which with {choices or 'its parameters'}")


def _known(row: Row) -> dict[str, Any]:
    return {"model": row.model} | row.setting | row.parameters


def compare(results: Results, one: str, other: str) -> str:
    """Return both averages, their paired difference, and examples that one alone gets right.

    one, other: as `chosen` reads them. Errors: VtbenchError as `chosen`, and for rows without scores in common.
    """
    names, rows = (one, other), [chosen(results, text) for text in (one, other)]
    for name, row in zip(names, rows, strict=True):
        if results.scored(row).empty:
            raise VtbenchError(f"{name!r} has no scores to compare in {results.name}")
    mine, theirs = (results.scored(row).reindex(columns=COLUMNS) for row in rows)  # older stores lack some
    both = mine.merge(theirs, on=["task", "doc_id"], suffixes=("", "_other"))
    if both.empty:
        raise VtbenchError(f"{one!r} and {other!r} answered no question in common")
    left = sorted(results.off_scale)
    others = both.assign(score=both["score_other"])
    difference = paired(both, others)
    test = "McNemar exact" if difference.exact else "sign-flip by image"
    lines = [
        f"{results.name}: {len(both)} samples that both answered, on {both['image_id'].nunique()} images",
        f"  A  {one}: {points(*interval(both))}",
        f"  B  {other}: {points(*interval(others))}",
        f"  A − B: {points(*difference[:3], signed=True)} points, p {difference.p:.2g} ({test}, uncorrected)",
        f"  A alone is better on {difference.gained}, B alone on {difference.lost}",
        *([f"  left out, their scores are not from 0 to 1: {', '.join(left)}"] if left else []),
        "",
    ]
    width = max(map(len, both["task"]))
    for task, samples in both.groupby("task"):
        change = samples["score"] - samples["score_other"]
        lines.append(
            f"  {task:<{width}}  A {100 * samples['score'].mean():5.1f}  B {100 * samples['score_other'].mean():5.1f}  "
            f"A alone {int((change > 0).sum())}, B alone {int((change < 0).sum())}"
        )
    for better, sign in (("A", 1), ("B", -1)):
        change = sign * (both["score"] - both["score_other"])
        lines += ["", f"Better with {better} alone:"]
        lines += _examples(both[change > 0]) or ["  none"]
    return "\n".join(lines)


def _examples(samples: pd.DataFrame) -> list[str]:
    """Return the first samples, taken from the tasks in turn, each in one line."""
    turn = samples.groupby("task").cumcount()
    picked = samples.assign(turn=turn).sort_values(["turn", "task"], kind="stable").head(EXAMPLES)
    return [
        f"  {_line(each['task'])} {_line(each['doc_id'])}: {_line(each['question'])} → {_line(each['target'])}; "
        f"A: {_line(each['answer'])}; B: {_line(each['answer_other'])}"
        for each in picked.to_dict(orient="records")
    ]


def _line(value: object) -> str:
    """Return a text in one line, without what a terminal would obey."""
    if not there(value):
        return "not stored"
    shown = "".join(character if character.isprintable() else " " for character in str(value))
    return " ".join(shown.split())[:200]
