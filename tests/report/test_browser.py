"""The page in Debian's chromium, as a reader has it: from a file, without a network."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator

from harness.report.page import render
from harness.report.results import read
from tests.report.pictured import store

pytestmark = pytest.mark.browser
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
| c | – | 4.5e3 |
"""


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


def test_nothing_is_wider_than_a_phone(open_page, tmp_path):
    path = tmp_path / "long.html"
    words = f"# {'sweep' * 20}\n\n- commit: {'a1b2c3d4' * 10}-dirty\n\n{'path/' * 40}\n\n{TABLE}"
    path.write_text(render(read(store(tmp_path / "mine")), words, tmp_path), encoding="utf-8")
    page = open_page(path, viewport={"width": 390, "height": 800}).page
    assert page.evaluate("document.documentElement.scrollWidth") == 390


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
    assert column(table, 2) == ["−3.5 (−4.0 to −3.0) ≈", "12.25 %", "90.0", "best", "–"]
    head.click()
    assert column(table, 2) == ["90.0", "12.25 %", "−3.5 (−4.0 to −3.0) ≈", "best", "–"]


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
