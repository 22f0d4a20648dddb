"""A sweep with scores; and what opens a report's page in Debian's chromium, as a reader has it: without a network."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from harness import report
from tests.report import scored
from tests.report.pictured import store

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


class Seen(NamedTuple):
    """A page and what it did besides being shown."""

    page: Page
    trouble: list[str]
    requests: list[str]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return scored.mine(tmp_path / "results" / "mine")


@pytest.fixture(scope="module")  # its event loop must not outlive the module
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium here; Debian's is installed by: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return report.write(store(folder / "results" / "mine"), folder / "reports").with_suffix(".html")


@pytest.fixture
def open_page(chromium) -> Iterator[Callable[..., Seen]]:
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
