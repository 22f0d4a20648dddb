"""The page in Debian's chromium, as a reader has it: from a file, without a network."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from harness import report
from harness.report.page import render
from harness.report.results import read
from tests.report.pictured import DOCS, HARMFUL, PICTURED, RED, ROWS, SIDE, TASKS, kept, overlaid, score, store

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
PIXEL = "(canvas, at) => [...canvas.getContext('2d').getImageData(...at, 1, 1).data].slice(0, 3)"
TABLE = """# A table

| Method | score | cost |
| --- | ---: | ---: |
| **all tokens** |  |  |
| full | 90.0 | 1,200 |
| **64 tokens** |  |  |
| b10 | −3.5 (−4.0 to −3.0) ≈ | not measured |
| b9 | **best** |  |
| **16 tokens** |  |  |
| a | 12.25 % | 30 |
| c |  | 4.5e3 |
"""


class Seen(NamedTuple):
    """A page and what it did besides being shown."""

    page: Page
    trouble: list[str]
    requests: list[str]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium here; Debian's is installed by: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return report.write(store(folder / "results" / "mine"), folder / "reports").with_suffix(".html")


@pytest.fixture
def open_page(chromium):
    contexts = []

    def opened(path: Path, **options) -> Seen:
        contexts.append(chromium.new_context(**options))
        seen = Seen(contexts[-1].new_page(), [], [])
        seen.page.set_default_timeout(10_000)
        seen.page.on("console", lambda message: seen.trouble.append(message.text))
        seen.page.on("pageerror", lambda error: seen.trouble.append(str(error)))
        seen.page.on("dialog", lambda dialog: seen.trouble.append(dialog.message))
        seen.page.on("request", lambda request: seen.requests.append(request.url.split(",")[0]))
        seen.page.goto(path.as_uri())
        return seen

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def mine(open_page, written) -> Iterator[Seen]:
    """The page of the small store, which must stay without trouble whatever a test does with it."""
    seen = open_page(written)
    yield seen
    assert seen.trouble == []
    assert {url for url in seen.requests if not url.startswith("data:image/")} == {written.as_uri()}


@pytest.fixture
def table(open_page, tmp_path) -> Locator:
    path = tmp_path / "table.html"
    path.write_text(render(read(store(tmp_path / "mine")), TABLE, tmp_path), encoding="utf-8")
    return open_page(path).page.locator("main table").first


def column(table: Locator, number: int) -> list[str]:
    return table.locator(f"tbody tr td:nth-child({number})").all_inner_texts()


def figures(written: Path) -> int:
    """How many figures the report has."""
    return written.with_suffix(".md").read_text(encoding="utf-8").count("![")


def test_it_opens_without_trouble_and_shows_every_figure(mine, written):
    assert mine.page.title() == "mine · vtbench"
    images = mine.page.locator("main img").all()
    assert len(images) == figures(written) > 1
    assert min(image.evaluate("image => image.decode().then(() => image.naturalWidth)") for image in images) > 500


def test_a_column_sorts_up_down_and_back(table):
    before = table.locator("tbody tr").all_inner_texts()
    head = table.locator("th").nth(2)
    table.get_by_role("button", name="cost", exact=True).click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(table, 3) == ["30", "1,200", "4.5e3", "not measured", ""]
    assert [name.split() for name in column(table, 1)] == [
        ["a", "16", "tokens"],
        ["full", "all", "tokens"],
        ["c", "16", "tokens"],
        ["b10", "64", "tokens"],
        ["b9", "64", "tokens"],
    ]
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(table, 3) == ["4.5e3", "1,200", "30", "not measured", ""]
    head.locator("button").click()
    assert head.get_attribute("aria-sort") is None
    assert table.locator("tbody tr").all_inner_texts() == before and len(before) == 8


def test_numbers_stand_before_words_and_what_was_not_measured_last(table):
    head = table.locator("th").nth(1).locator("button")
    head.click()
    assert column(table, 2) == ["−3.5 (−4.0 to −3.0) ≈", "12.25 %", "90.0", "best", ""]
    head.click()
    assert column(table, 2) == ["90.0", "12.25 %", "−3.5 (−4.0 to −3.0) ≈", "best", ""]


def test_the_keyboard_sorts_too_and_one_column_at_a_time(table):
    table.locator("th button").nth(2).focus()
    table.page.keyboard.press("Enter")
    table.page.keyboard.press("Shift+Tab")
    table.page.keyboard.press("Shift+Tab")
    table.page.keyboard.press("Space")
    assert [head.get_attribute("aria-sort") for head in table.locator("th").all()] == ["ascending", None, None]
    assert [name.split()[0] for name in column(table, 1)] == ["a", "b9", "b10", "c", "full"]


def test_wide_tables_scroll_within_themselves_under_their_heads(open_page, written):
    page = open_page(written, viewport={"width": 700, "height": 300}).page
    scroll = page.locator(".scroll").first
    assert scroll.evaluate("box => box.scrollWidth > box.clientWidth && box.scrollHeight > box.clientHeight")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    before = scroll.locator("th").first.bounding_box()
    scroll.evaluate("box => box.scrollTo(60, 60)")
    assert scroll.locator("th").first.bounding_box() == before


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


def test_without_javascript_tables_and_figures_are_there(open_page, written):
    seen = open_page(written, java_script_enabled=False)
    assert seen.page.locator("main table").first.is_visible() and seen.page.locator("main img").count() == figures(
        written
    )
    assert seen.page.locator("noscript p").is_visible()
    assert not seen.page.locator("#filters").is_visible() and seen.trouble == []


def test_a_script_that_is_not_the_pages_own_does_not_run(open_page, written, tmp_path):
    path = tmp_path / "altered.html"
    text = written.read_text(encoding="utf-8")
    path.write_text(text.replace("</main>", "<script>document.title = 'harmed'</script></main>"), encoding="utf-8")
    seen = open_page(path)
    assert seen.page.title() == "mine · vtbench"
    assert [bool(re.search("Content Security Policy", text)) for text in seen.trouble] == [True]


CONTRASTS = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => parse(color).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return (parse(color)[3] ?? 1) ? color : behind(element.parentElement);
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const says = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!says || !element.checkVisibility() || element.disabled || element.tagName === "NOSCRIPT") continue;
    const [one, other] = [getComputedStyle(element).color, behind(element)].map(light).sort((a, b) => b - a);
    found.push((one + 0.05) / (other + 0.05));
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_in_the_dark(open_page, written, scheme):
    page = open_page(written, color_scheme=scheme).page
    page.locator("#shown summary").click()
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100 and min(contrasts) >= 4.5
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.locator("main img").first.evaluate("i => getComputedStyle(i).backgroundColor") == "rgb(255, 255, 255)"
