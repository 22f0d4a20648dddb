"""A report as one page that needs nothing beside it: the markdown's own words, its figures, and the sample browser."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token

from harness.report import browser
from harness.report.results import Results

HERE = Path(__file__).parent
SCRIPTS = ("page_tables.js", "page_samples.js")
KINDS = {".png": "image/png", ".svg": "image/svg+xml", ".webp": "image/webp", ".jpg": "image/jpeg"}


def render(results: Results, markdown: str, folder: Path) -> str:
    """Return the page of a report. folder: where the figures lie that the markdown links to.

    It says what the markdown says and loads nothing: a browser that obeys its policy runs its own script alone.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = list(_prepared(parser.parse(markdown), folder))
    sections = [
        (token.attrGet("id"), tokens[index + 1].content)
        for index, token in enumerate(tokens)
        if token.type == "heading_open" and token.tag == "h2"
    ]
    data = browser.browsed(results)
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    return environment.get_template("page.html.jinja").render(
        title=results.name,
        body=parser.renderer.render(tokens, parser.options, {}),
        sections=[(name, _words(parser, words)) for name, words in sections],
        data=data,
        notes=list(browser.words(data)) if data else [],
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _words(parser: MarkdownIt, markdown: str) -> str:
    """Return a line of markdown without its marks."""
    return "".join(token.content for token in parser.parseInline(markdown)[0].children or [])


def _prepared(tokens: Sequence[Token], folder: Path) -> Iterator[Token]:
    """Yield the tokens: headings with ids, tables that scroll within themselves, figures on cards, no inline styles."""
    number = 0
    for token in tokens:
        if token.type == "heading_open":
            number += 1
            token.attrSet("id", f"section-{number}")
        if str(token.attrGet("style") or "").startswith("text-align"):  # the policy forbids inline styles
            token.attrs = {"class": str(token.attrs["style"]).partition(":")[2]}
        if token.type == "table_open":
            yield _html('<div class="scroll" role="region" aria-label="table" tabindex="0">')
        for child in token.children or ():
            if child.type == "image":
                _embed(child, folder)
        yield token
        if token.type == "table_close":
            yield _html("</div>")


def _html(content: str) -> Token:
    return Token("html_block", "", 0, content=content)


def _embed(image: Token, folder: Path) -> None:
    """Put a figure's file into its link; what is not one of the report's files is told by its words alone."""
    path = folder / unquote(str(image.attrs["src"]))
    kind = KINDS.get(path.suffix)
    if kind and folder.resolve() in path.resolve().parents and path.is_file():
        image.attrs["src"] = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    else:
        image.attrs["src"] = "data:,"
