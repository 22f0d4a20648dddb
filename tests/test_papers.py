import pytest

from harness import papers
from harness.check import check
from harness.errors import VtbenchError
from tests.test_spec import COSTS, sweep

PUBLISHED = COSTS + "methods: full\npublished: {paper: lvpruning, tables: ['1'], rows: {LLaVA-1.5-7B: full}"
MISSING = ", missing: {LVPruning rho=0.6: later, LVPruning rho=0.5: later, LVPruning rho=0.45: later}"


def row(entry: str) -> str:
    return PUBLISHED.replace("B: full", f"B: {entry}") + "}\n"


def test_a_setting_may_be_any_number(tmp_path):
    odd = ", unreproduced: [{where: {text_tokens: 30.5}, reason: odd}]}"
    (entry,) = sweep(tmp_path, PUBLISHED + MISSING + odd).axes.published.unreproduced
    assert entry.where == {"text_tokens": 30.5}


WRONG = {
    COSTS + "methods: full\npublished: {papr: x}\n": "published.papr: is not a key; did you mean paper?",
    COSTS + "methods: full\npublished: {paper: a, tables: [b], rows: {}, unreproduced: [{whre: 1}]}\n": "published."
    "unreproduced[0].whre: is not a key; did you mean where?",
    row("{}"): "published.rows.LLaVA-1.5-7B: {} is not possible; it should be a name, or {name: {parameter: value}}",
    row("{full: {}, topk: {}}"): "published.rows.LLaVA-1.5-7B: {'full': {}, 'topk'",
    row("3"): "published.rows.LLaVA-1.5-7B: 3 is not possible; it should be a name",
    row("fulll"): "published.rows.LLaVA-1.5-7B: 'fulll' is not a method; did you",
    row("{ivtp: {grup: 3}}"): "rows.LLaVA-1.5-7B.ivtp.grup: is not a parameter; did",
    row("{ivtp: {group: x}}"): "rows.LLaVA-1.5-7B.ivtp.group: 'x' is not possible",
    row("{ivtp: {group: [2, 3]}}"): "ivtp.group: has several values; allowed is one",
    PUBLISHED + ", unreproduced: [{where: {row: [1]}, reason: odd}]}\n": "published.unreproduced[0].where.row: [1] is "
    "not possible; it should be a number or a word",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_is_one_line_with_its_place(tmp_path, text):
    with pytest.raises(VtbenchError) as caught:
        sweep(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'x.yaml'}:published") and "\n" not in message
    assert WRONG[text] in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            (PUBLISHED + "}").replace("lvp", "lpv"),
            "published.paper: 'lpvruning' has no costs; did you mean lvpruning? allowed are ivtp",
        ),
        ((PUBLISHED + "}").replace("'1'", "'2'"), "published.tables: lvpruning has no costs in table '2'; "),
        (PUBLISHED + "}", "published.rows: row 'LVPruning rho=0.6' of table 1 is in neither rows nor missing"),
        (
            PUBLISHED + MISSING + ", unreproduced: [{where: {rwo: x}, reason: odd}]}",
            "published.unreproduced[0].where.rwo: is not a key; did you mean row? allowed are text_tokens",
        ),
        (
            PUBLISHED + MISSING + ", unreproduced: [{where: {row: x}, reason: odd}]}",
            "published.unreproduced[0].where: no printed figure of these tables has all of it",
        ),
    ],
)
def test_what_no_paper_prints_is_said_before_anything_runs(tmp_path, text, message):
    with pytest.raises(VtbenchError) as caught:
        check(sweep(tmp_path, text))
    assert str(caught.value).startswith(f"{tmp_path / 'x.yaml'}:{message}")


def test_printed_figures_that_are_not_there_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(papers, "PUBLISHED", tmp_path)
    with pytest.raises(VtbenchError, match=r"x\.yaml:published: .*papers\.csv cannot be read; vtbench has it where"):
        check(sweep(tmp_path, PUBLISHED + MISSING + "}"))
