import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness import panels
from harness.report import figures
from harness.report.compared import Compared
from harness.report.figures import kept
from harness.report.results import SETTING, Results, Row

SAME_SETTING = dict.fromkeys((*SETTING, "weights", "task files"))
TASKS = ("vqa_count", "vqa_where")
PATCHES = 16


def row(method: str, wrong: set[tuple[str, int]], tokens: int | None = 64, **changed) -> Row:
    """A row that errs on these of three questions a task; changed: columns of its samples."""
    asked = [(task, number) for task in TASKS for number in range(3)]
    samples = pd.DataFrame(
        {
            "task": [task for task, _ in asked],
            "doc_id": [number for _, number in asked],
            "image_id": [str(number) for _, number in asked],
            "question": [f"what $is$ {number}?" for _, number in asked],
            "target": "yes",
            "answer": ["no" if each in wrong else "yes" for each in asked],
            "score": [float(each not in wrong) for each in asked],
            "pictures": [[f"p{number}"] for _, number in asked],
            "kept": [None if method == "full" else [[5, 0, 10]]] * len(asked),
            "merged": method == "tome",
            "words": [["two", "words"] if method == "ivtp" else [] if method == "topk" else None] * len(asked),
        }
    )
    samples = samples.assign(**changed)
    scores = {task: {"exact_match": float(samples.score[samples.task == task].mean()), "n": 3} for task in TASKS}
    record = {"id": method, "trial": {}, "scores": scores, "tokens": {"patches": PATCHES, "mean_llm": 3}}
    parameters = {} if method == "full" else {"tokens": tokens}
    return Row("pocket", method, parameters, SAME_SETTING, [record], samples)


FULL = row("full", {("vqa_count", 0)})
IVTP = row("ivtp", {("vqa_count", 0), ("vqa_where", 1)})
TOPK = row("topk", {("vqa_count", 1), ("vqa_where", 2), ("vqa_where", 1)})


@pytest.fixture
def folder(tmp_path) -> Path:
    images = tmp_path / "store" / "images"
    images.mkdir(parents=True)
    for number in range(3):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (50 * number, 100, 100)).save(file, "webp", lossless=True)
        (images / f"p{number}.webp").write_bytes(file.getvalue())
    return images.parent


@pytest.fixture
def strips(monkeypatch) -> list[panels.Strip]:
    """What is drawn."""
    found = []
    draw = panels.draw
    monkeypatch.setattr(kept, "draw", lambda each, *a, **k: found.extend(each) or draw(each, *a, **k))
    return found


def section(folder: Path, *rows: Row) -> str:
    out = folder.parent / "out"
    out.mkdir(exist_ok=True)
    results = Results("mine", list(rows), [], folder)
    return figures.kept_section(results, Compared(results), out, "mine")


def test_the_questions_that_part_the_methods_are_drawn_one_a_task_first(folder, strips):
    said = section(folder, FULL, IVTP, TOPK)
    # both err on where 1; that the full model errs on count 0 puts it last, though it parts them as evenly
    assert [strip.head for strip in strips] == [
        "count: what $is$ 1? Expected: yes",
        "where: what $is$ 2? Expected: yes",
        "count: what $is$ 0? Expected: yes",
    ]
    assert "count 1, right: full, ivtp; wrong: topk" in said and "count 0, right: topk; wrong: full, ivtp" in said
    assert said.startswith("## What the methods keep\n\n![") and "](mine/kept.png)" in said
    assert "64 tokens, where most methods stand. Of the questions" in said
    assert (folder.parent / "out" / "kept.png").exists()


def test_a_panel_has_the_patches_the_answer_whether_it_is_right_and_the_words(folder, strips):
    section(folder, FULL, IVTP, row("tome", set(), merged=True), TOPK)
    (strip,) = [strip for strip in strips if strip.head.startswith("where: what $is$ 2")]
    full, tome, ivtp, topk = strip.panels
    assert (strip.picture == [100, 100, 100]).all() and strip.patch == 8
    assert [panel.label for panel in strip.panels] == ["full", "tome", "ivtp", "topk"]
    assert list(full.kept) == list(range(PATCHES)) and ivtp.kept == topk.kept == [5, 0, 10]
    assert [panel.verdict for panel in strip.panels] == ["✓ right"] * 3 + ["✗ wrong"]
    assert [panel.answer for panel in strip.panels] == ["yes"] * 3 + ["no"]
    assert ivtp.question == "guided by: two words" and full.question == topk.question == ""
    assert [ivtp.question[start:stop] for start, stop in ivtp.spans] == ["two", "words"]
    assert topk.note == "no word was relevant" and (tome.merged, ivtp.merged) == (True, False)


def test_of_many_methods_some_from_the_best_to_the_worst_are_drawn(folder, strips):
    wrong = [("vqa_where", number) for number in range(3)] + [("vqa_count", number) for number in (1, 2)]
    rows = [row(f"m{i}", set(wrong[:i])) for i in range(6)]
    said = section(folder, FULL, *reversed(rows))
    assert [panel.label for panel in strips[0].panels] == ["full", "m0", "m2", "m3", "m5"]
    assert "of its 6 methods these stand evenly from the best average to the worst." in said


def test_the_budget_of_most_methods_is_drawn_and_of_two_that_where_they_part_more_often(folder, strips):
    parted = [row("ivtp", set(), 16), row("topk", {(task, n) for task in TASKS for n in range(3)}, 16)]
    assert "16 tokens" in section(folder, FULL, IVTP, TOPK, *parted)
    assert "64 tokens" in section(folder, FULL, IVTP, TOPK, row("tome", set()), *parted)


def test_without_pictures_columns_or_a_question_that_parts_there_is_no_section(folder, tmp_path):
    lacking = [
        Row(r.model, r.method, r.parameters, r.setting, r.records, r.samples.drop(columns=["kept", "words"]))
        for r in (FULL, IVTP, TOPK)
    ]
    assert section(folder, *lacking) == ""
    assert section(folder, FULL) == section(folder, IVTP) == ""
    assert section(folder, FULL, IVTP, row("topk", {("vqa_count", 0), ("vqa_where", 1)})) == ""
    assert section(tmp_path / "elsewhere", FULL, IVTP, TOPK) == ""
    assert not (tmp_path / "out" / "kept.png").exists()


def test_a_row_half_of_an_older_store_shows_what_it_has(folder, strips):
    older = [row(m, set()) for m in ("full", "ivtp", "topk")]
    both = []
    for new, old in zip((FULL, IVTP, TOPK), older, strict=True):
        few = old.samples[["task", "doc_id", "image_id", "question", "target", "answer", "score"]]
        together = pd.concat([few.assign(task="vqa_older"), new.samples])
        both.append(replace(new, samples=together))
    said = section(folder, *both)
    assert "older" not in said and [strip.head[:5] for strip in strips] == ["count", "where", "count"]
    assert not any(panel.merged for strip in strips for panel in strip.panels)


def test_a_task_whose_scores_are_of_no_known_scale_is_not_drawn(folder, strips):
    for each in (rows := [row("full", set()), row("ivtp", {("vqa_count", 1)}), row("topk", {("vqa_where", 1)})]):
        each.samples.loc[each.samples.task == "vqa_where", "score"] *= 5
    section(folder, *rows)
    assert [strip.head for strip in strips] == ["count: what $is$ 1? Expected: yes"]


def test_patches_that_make_no_square_are_not_drawn(folder):
    rows = [row(*each) for each in (("full", set()), ("ivtp", {("vqa_count", 1)}), ("topk", set()))]
    for each in rows:
        each.records[0]["tokens"]["patches"] = 20
    assert section(folder, *rows) == ""


def test_pictures_that_cannot_be_read_or_are_not_there_are_passed_over(folder, strips):
    (folder / "images" / "p1.webp").write_bytes(b"half")
    (folder / "images" / "p2.webp").unlink()
    section(folder, FULL, IVTP, TOPK)
    assert [strip.head for strip in strips] == ["count: what $is$ 0? Expected: yes"]


def test_answers_of_any_kind_are_set_as_text(folder, strips):
    harmful = ["long " * 4000, "w" * 9000, "\x07 \u202e \u2028", "$\\frac$ **bold**", "日本", ""]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        section(folder, FULL, IVTP, row("topk", {("vqa_count", 1)}, answer=harmful, score=np.linspace(0, 0.4, 6)))
    answers = {panel.answer for strip in strips for panel in strip.panels}
    assert all(len(answer) <= 301 for answer in answers) and "w" * 300 + "…" in answers
    assert "score 0.08" in {panel.verdict for strip in strips for panel in strip.panels}


def test_the_same_store_gives_the_same_picture(folder):
    written = []
    for _ in range(2):
        section(folder, FULL, IVTP, TOPK)
        written.append((folder.parent / "out" / "kept.png").read_bytes())
    assert written[0] == written[1]
