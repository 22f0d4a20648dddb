import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from harness import report
from harness.report import browser
from harness.report.page import render
from harness.report.results import read
from tests.report.pictured import DOCS, HARMFUL, PICTURED, ROWS, TASKS, bits, kept, samples, store


@pytest.fixture
def sweep(tmp_path) -> Path:
    return store(tmp_path / "results" / "mine")


def page(sweep: Path, tmp_path: Path) -> str:
    """The page of a report that is but a heading."""
    return render(read(sweep), "# mine", tmp_path)


class Links(HTMLParser):
    """Gathers the elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def data(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_says_what_the_report_says(written):
    text = written.read_text(encoding="utf-8")
    markdown = written.with_suffix(".md").read_text(encoding="utf-8")
    assert text.count("<table>") == len(re.findall(r"^\| ---", markdown, re.MULTILINE)) > 1
    line = next(line for line in markdown.splitlines() if line.startswith("| topk |"))
    first, *others = (cell.strip().replace("**", "") for cell in line.split("|")[1:-1])
    row = "\n".join([f"<td>{first}</td>", *(f'<td class="right">{cell}</td>' for cell in others)])
    assert row in text.replace("<strong>", "").replace("</strong>", "")


def test_it_loads_nothing_and_holds_every_figure(written):
    elements = Links(written.read_text(encoding="utf-8")).found
    sources = [value for _, attrs in elements for key, value in attrs.items() if key in ("src", "srcset", "data")]
    figures = list(written.with_suffix("").glob("*.png"))
    assert len(figures) == len(sources) > 1
    assert {base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources} == {
        figure.read_bytes() for figure in figures
    }
    assert not any("style" in attrs or any(key.startswith("on") for key in attrs) for _, attrs in elements)
    (policy,) = [attrs["content"] for _, attrs in elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-") and "unsafe" not in policy


def test_what_is_no_figure_of_the_report_is_told_by_its_words(sweep, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "reports"
    folder.mkdir()
    links = "![a](../secret.png) ![b](https://example.org/b.png) ![c](missing.png) <img src=x> [d](javascript:alert(1))"
    elements = Links(render(read(sweep), links, folder)).found
    assert [(attrs["src"], attrs["alt"]) for tag, attrs in elements if tag == "img"] == [
        ("data:,", word) for word in "abc"
    ]
    assert not any(tag == "a" and attrs["href"].startswith("javascript") for tag, attrs in elements)


def test_the_same_results_give_the_same_page(sweep, tmp_path, written):
    assert report.write(sweep, tmp_path / "reports").with_suffix(".html").read_bytes() == written.read_bytes()


def test_every_row_answers_every_sample_with_what_it_kept(sweep):
    found = browser.browsed(read(sweep))
    assert [(row["name"], row["budget"]) for row in found["rows"]] == [
        ("full", "all tokens"),
        ("random", "64 tokens"),
        ("topk", "64 tokens"),
        ("random", "16 tokens"),
        ("topk", "16 tokens"),
    ]
    assert [row["full"] for row in found["rows"]] == [0] * 5
    assert [(each["task"], each["id"]) for each in found["samples"]] == [
        (t, str(d)) for t in TASKS for d in range(DOCS)
    ]
    assert len(found["pictures"]) == PICTURED
    for number, row in enumerate(found["rows"]):
        tokens = None if row["is_full"] else int(row["budget"].split()[0])
        stored = samples(ROWS.index((row["name"], tokens)), row["name"]).to_dict(orient="records")
        for sample, expected in zip(found["samples"], stored, strict=True):
            document = expected["doc_id"]
            text, score, masks, merged, words = sample["answers"][number]
            assert sample["question"] == expected["question"] and sample["target"] == expected["target"]
            assert sample["pictures"] == [document if document < PICTURED else None]
            assert text[:2000] == expected["answer"][:2000] and score == expected["score"]
            assert merged == (row["name"] == "random") and words == (["rings"] if row["name"] == "topk" else [])
            patches = None if masks is None else [bits(base64.b64decode(mask)) for mask in masks]
            assert patches == (None if row["is_full"] else [kept(row["name"], document)])


def test_harmful_answers_do_not_leave_the_data(written):
    text = written.read_text(encoding="utf-8")
    assert "harmed" in text and text.count("</script>") == 2
    said = {sample["answers"][2][0] for sample in data(text)["samples"]}
    assert {answer for answer in HARMFUL if len(answer) < 2000} < said
    assert f"{HARMFUL[4][:2000]}… (20,000 characters)" in said


def test_an_older_store_has_no_pictures(tmp_path):
    sweep = store(tmp_path / "old", lack=("pictures", "kept", "merged", "words", "question", "target"))
    found = browser.browsed(read(sweep))
    assert found["pictures"] == [] and list(browser.words(found)) == ["The store has no pictures of these samples."]
    assert found["samples"][0]["answers"][1] == ["row 2", 0.0, None, False, []]
    assert found["samples"][0]["question"] == ""
    assert "In colour" not in page(sweep, tmp_path)


def test_a_link_in_the_pictures_place_puts_no_other_file_into_the_page(tmp_path):
    sweep, secret = store(tmp_path / "mine"), tmp_path / "id_rsa"
    secret.write_bytes(b"a private key")
    picture = sweep / "images" / "picture0.webp"
    picture.unlink()
    picture.symlink_to(secret)
    found = browser.browsed(read(sweep))
    assert len(found["pictures"]) == PICTURED - 1
    assert base64.b64encode(b"a private key").decode() not in json.dumps(found)


def test_how_many_pictures_there_are_is_told(sweep):
    (note,) = browser.words(browser.browsed(read(sweep)))
    assert note == "16 samples have their picture: the store keeps those of the first samples of each task."


@pytest.mark.parametrize(("limit", "value", "each"), [("ANSWERS", 5 * 6, 3), ("BYTES", 2_000, 2)])
def test_a_large_sweep_is_cut_and_says_so(sweep, monkeypatch, limit, value, each):
    monkeypatch.setattr(browser, limit, value)
    found = browser.browsed(read(sweep))
    taken = [(sample["task"], int(sample["id"])) for sample in found["samples"]]
    assert taken == [(task, document) for task in TASKS for document in range(each)]
    assert next(browser.words(found)) == (
        f"The page has {2 * each} of 24 samples, from the tasks in turn, so that it stays small."
    )


def test_costs_alone_have_no_browser(sweep, tmp_path):
    for path in sweep.glob("*/samples.parquet"):
        path.unlink()
        record = json.loads((path.parent / "record.json").read_text())
        (path.parent / "record.json").write_text(json.dumps(record | {"scores": None}))
    text = page(sweep, tmp_path)
    assert 'id="samples"' not in text and "<h1" in text


def test_unscored_samples_and_foreign_patches_are_no_harm(sweep, tmp_path):
    path = sweep / f"{1:016x}" / "samples.parquet"
    table = pd.read_parquet(path)
    table["score"] = float("nan")
    table["kept"] = [[[-1, 3, 10**6]]] * len(table)
    table["answer"] = None
    table.iloc[1:].to_parquet(path, index=False)
    found = browser.browsed(read(sweep))
    assert found["samples"][0]["answers"][2] is None
    text, score, masks, _, _ = found["samples"][1]["answers"][2]
    assert (text, score, bits(base64.b64decode(masks[0]))) == ("", None, [3])
    page(sweep, tmp_path)
