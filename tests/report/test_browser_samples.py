"""The page's sample browser in Debian's chromium, against what the store says."""

import shutil

import pandas as pd
import pytest
from playwright.sync_api import Page

from harness.report.page import render
from harness.report.results import read
from tests.report.pictured import DOCS, HARMFUL, PICTURED, RED, ROWS, SIDE, TASKS, kept, overlaid, score, store

pytestmark = pytest.mark.browser
PIXEL = "(canvas, at) => [...canvas.getContext('2d').getImageData(...at, 1, 1).data].slice(0, 3)"


def samples(page: Page) -> list[str]:
    """Every sample that matches, through all pages."""
    found: list[str] = []
    while True:
        found += page.locator("#list > li").evaluate_all("items => items.map(item => item.dataset.sample)")
        if page.locator(".next").first.is_disabled():
            break
        page.locator(".next").first.click()
    assert page.locator("#count").inner_text() == f"{len(found)} of {len(TASKS) * DOCS} samples"
    return found


def where(condition) -> list[str]:
    """The store's samples for which `condition(task, document)`, numbers of both, is true."""
    return [f"{TASKS[t]} {d}" for t in range(len(TASKS)) for d in range(DOCS) if condition(t, d)]


@pytest.mark.parametrize("row", range(1, len(ROWS)))
def test_full_right_method_wrong_are_the_stores_samples(mine, row):
    page, (method, tokens) = mine.page, ROWS[row]
    page.select_option("#budget", f"{tokens} tokens")
    assert page.locator("#method").is_disabled()
    page.select_option("#outcome", "lost")
    page.select_option("#method", method)
    lost = where(lambda t, d: score(0, t, d) > score(row, t, d))
    assert samples(page) == lost and 0 < len(lost) < 24
    page.select_option("#outcome", "gained")
    gained = where(lambda t, d: score(0, t, d) < score(row, t, d))
    assert samples(page) == gained and 0 < len(gained) < 24


def test_any_method_and_methods_that_disagree(mine):
    page = mine.page
    page.select_option("#budget", "16 tokens")
    page.select_option("#outcome", "lost")
    assert samples(page) == where(lambda t, d: score(0, t, d) > min(score(3, t, d), score(4, t, d)))
    page.select_option("#outcome", "split")
    assert samples(page) == where(lambda t, d: score(3, t, d) != score(4, t, d))
    page.locator("#shown summary").click()
    page.get_by_role("checkbox", name="random").uncheck()
    assert samples(page) == []
    page.select_option("#outcome", "lost")
    assert samples(page) == where(lambda t, d: score(0, t, d) > score(3, t, d))
    assert page.locator("#list > li").first.locator("figcaption").all_inner_texts() == ["full", "topk\n4 patches"]


def test_budgets_tasks_and_the_search(mine):
    page = mine.page
    assert samples(page) == where(lambda t, d: True)
    page.select_option("#budget", "")
    assert page.locator("#list > li").first.locator("figure").count() == len(ROWS)
    page.select_option("#task", TASKS[1])
    page.fill("#words", "SQUARES")
    assert samples(page) == where(lambda t, d: t == 1 and d % 2)
    page.fill("#words", "<b>")
    assert len(samples(page)) == DOCS
    page.fill("#words", "nowhere")
    assert samples(page) == []


def test_pages_of_ten_by_keyboard(mine):
    page = mine.page
    assert page.locator("#list > li").count() == 10 and page.locator(".previous").first.is_disabled()
    page.locator(".next").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.locator("#place").inner_text() == "21–24 of 24" and page.locator("#list > li").count() == 4
    page.select_option("#outcome", "gained")
    assert page.locator("#place").inner_text().startswith("1–")


def test_answers_show_as_text_whatever_is_in_them(mine):
    page = mine.page
    page.select_option("#task", TASKS[0])
    answers = page.locator("figure[data-row='2'] .answer")
    shown = [answers.nth(i).evaluate("answer => answer.textContent") for i in range(len(HARMFUL))]
    long = HARMFUL[4]
    assert shown == [f"{each[:2000]}… ({len(long):,} characters)" if each is long else each for each in HARMFUL]
    assert answers.nth(4).evaluate("answer => answer.clientHeight") < 200
    assert page.locator("#list h3").first.inner_text() == "how <b>many</b> rings of vqa_color?"
    assert page.title() == "mine · vtbench" and page.locator("#list script, #list a, #list img").count() == 0


def test_right_and_wrong_are_told_by_word_and_sign(mine):
    verdicts = mine.page.locator("figure[data-row='0'] .verdict").all_inner_texts()
    assert verdicts == ["✗ wrong"] + ["✓ right"] * 9


def test_patches_that_went_are_grey_and_those_kept_have_their_colours(mine):
    page = mine.page
    drawn = page.locator("#list > li:nth-child(3) canvas[data-drawn]")
    drawn.nth(2).wait_for()
    size = 320 // SIDE
    for number, (method, row) in enumerate((("full", 0), ("random", 1), ("topk", 2))):
        canvas = page.locator(f"#list > li:nth-child(3) figure[data-row='{row}'] canvas")
        middles = [
            canvas.evaluate(PIXEL, [(x + 0.5) * size, (y + 0.5) * size]) for y in range(SIDE) for x in range(SIDE)
        ]
        stays = range(SIDE**2) if number == 0 else kept(method, 2)
        assert [tuple(pixel) for pixel in middles] == [
            RED if patch in stays else overlaid() for patch in range(SIDE**2)
        ]


def test_only_samples_of_which_the_store_has_pictures_have_them(mine):
    page = mine.page
    counts = page.locator("#list > li").evaluate_all("items => items.map(i => i.querySelectorAll('canvas').length)")
    assert counts == [3] * PICTURED + [0] * 2
    assert page.get_by_text("16 samples have their picture").count() == 1


def test_a_picture_that_is_none_is_told(open_page, tmp_path):
    folder = store(tmp_path / "results" / "mine")
    (folder / "images" / "picture0.webp").write_bytes(b"half")
    path = tmp_path / "page.html"
    path.write_text(render(read(folder), "# mine", tmp_path), encoding="utf-8")
    page = open_page(path).page
    page.get_by_text("its picture cannot be read").first.wait_for()
    assert page.locator("#list > li").first.locator("canvas").count() == 0


def test_two_pictures_graded_scores_and_no_full_model(open_page, tmp_path):
    folder = store(tmp_path / "results" / "mine")
    shutil.rmtree(folder / f"{0:016x}")
    for row in range(1, len(ROWS)):
        path = folder / f"{row:016x}" / "samples.parquet"
        table = pd.read_parquet(path)
        table["pictures"] = [["picture1", "picture2"]] * len(table)
        table["kept"] = [[[0], [1, 2]]] * len(table)
        table["score"] = 0.25 * row
        table.to_parquet(path, index=False)
    path = tmp_path / "page.html"
    path.write_text(render(read(folder), "# mine", tmp_path), encoding="utf-8")
    seen = open_page(path)
    figures = seen.page.locator("#list > li").first.locator("figure")
    assert [text.replace("\n\n", "\n") for text in figures.all_inner_texts()] == [
        "",
        "random\n3 patches · merged\nscore 0.5\nrow 2",
        f"topk\n3 patches\nscore 0.25\n{HARMFUL[0]}\nguided by: rings",
    ]
    assert [figure.locator("canvas").count() for figure in figures.all()] == [2, 2, 2]
    assert seen.page.get_by_text("Where scores are graded").count() == 1
    seen.page.select_option("#outcome", "split")
    assert len(samples(seen.page)) == len(TASKS) * DOCS
    seen.page.select_option("#outcome", "lost")
    assert samples(seen.page) == [] and seen.trouble == []
