from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from harness.errors import VtbenchError
from harness.report.compare import chosen, compare
from harness.report.results import SETTING, Results, Row
from harness.report.statistics import mcnemar, sign_flip


def row(method: str, scores: list[float], tasks: str = "aabb", **parameters: object) -> Row:
    samples = pd.DataFrame(
        {
            "task": list(tasks),
            "doc_id": range(len(tasks)),
            "image_id": list("wxyz")[: len(tasks)],
            "question": [f"question {i}?" for i in range(len(tasks))],
            "target": "yes",
            "answer": [f"{method} says\n\x1b[31m<b>{score}" for score in scores],
            "score": scores,
        }
    )
    return Row("pocket", method, parameters, dict.fromkeys(SETTING), [], samples)


RESULTS = Results(
    "mine",
    [
        row("full", [1, 1, 1, 0]),
        row("topk", [1, 0, 0, 1], tokens=64),
        row("topk", [0, 0, 0, 0], tokens=16),
        row("ivtp", [1, 1, 1, 1], tokens=64, group=3),
    ],
    [],
)


def test_a_row_is_named_by_what_tells_it_apart():
    assert chosen(RESULTS, "full") is RESULTS.rows[0]
    assert chosen(RESULTS, "topk:tokens=16") is RESULTS.rows[2]
    assert chosen(RESULTS, "ivtp:tokens=64,group=3,model=pocket") is RESULTS.rows[3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topk", "'topk' names 2 rows of mine; say which with tokens=64|16"),
        ("topk:tokens=32", "'topk:tokens=32' names none of mine; say which with tokens=64|16"),
        ("tome", "'tome': mine has no tome; allowed are full, topk, ivtp"),
        ("ivtp:group=2", "'ivtp:group=2' names none of mine; say which with its parameters"),
        ("topk:16", "'topk:16' is not possible; it should be name or name:key=value,key=value, each key once"),
        (
            "topk:tokens=64,tokens=16",
            "'topk:tokens=64,tokens=16' is not possible; it should be name or name:key=value,key=value, each key once",
        ),
        ("topk:tokens=[", "topk.tokens: '[' cannot be read"),
        ("topk:tokens=2024-13-45", "topk.tokens: '2024-13-45' cannot be read"),
    ],
)
def test_a_row_that_is_not_there_is_told_with_what_is(text, message):
    with pytest.raises(VtbenchError) as caught:
        chosen(RESULTS, text)
    assert str(caught.value) == message


def test_both_averages_the_difference_and_examples():
    lines = compare(RESULTS, "full", "topk:tokens=64").splitlines()
    assert lines[0] == "mine: 4 samples that both answered, on 4 images"
    assert lines[1].startswith("  A  full: 75.0 (") and lines[2].startswith("  B  topk:tokens=64: 50.0 (")
    assert lines[3].startswith("  A − B: +25.0 (") and lines[3].endswith(
        f"points, p {mcnemar(2, 1):.2g} (McNemar exact, uncorrected)"
    )
    assert lines[4] == "  A alone is better on 2, B alone on 1"
    assert lines[6:8] == ["  a  A 100.0  B  50.0  A alone 1, B alone 0", "  b  A  50.0  B  50.0  A alone 1, B alone 1"]
    assert lines[9] == "Better with A alone:"
    assert lines[10] == "  a 1: question 1? → yes; A: full says [31m<b>1; B: topk says [31m<b>0"
    assert lines[-2:] == [
        "Better with B alone:",
        "  b 3: question 3? → yes; A: full says [31m<b>0; B: topk says [31m<b>1",
    ]


def test_what_was_kept_changes_nothing_of_a_comparison():
    def kept(each: Row) -> Row:
        return replace(each, samples=each.samples.assign(kept=[[[1, 2]]] * 4, pictures=[["a"]] * 4, words=None))

    with_kept = Results("mine", [kept(each) for each in RESULTS.rows], [])
    names = ("full", "topk:tokens=64")
    assert compare(with_kept, *names) == compare(RESULTS, *names)


def test_averages_are_of_the_samples_that_both_answered():
    results = Results("mine", [row("full", [1, 0, 0, 0]), row("topk", [1, 0], "aa", tokens=64)], [])
    lines = compare(results, "full", "topk").splitlines()
    assert lines[0] == "mine: 2 samples that both answered, on 2 images"
    assert lines[1].startswith("  A  full: 50.0 (") and lines[2].startswith("  B  topk: 50.0 (")
    assert lines[3] == "  A − B: +0.0 (+0.0 to +0.0) points, p 1 (McNemar exact, uncorrected)"


def test_scores_of_another_scale_are_left_out_and_one_image_has_no_interval():
    results = Results("mine", [row("full", [1, 5], "ab"), row("topk", [0, 2], "ab", tokens=64)], [])
    lines = compare(results, "full", "topk").splitlines()
    assert lines[1:4] == [
        "  A  full: 100.0",
        "  B  topk: 0.0",
        "  A − B: +100.0 points, p 1 (McNemar exact, uncorrected)",
    ]
    assert lines[5] == "  left out, their scores are not from 0 to 1: b"


def test_a_p_says_which_test_gave_it():
    graded = Results("mine", [row("full", [0.9, 0.8, 0.7, 0.6]), row("topk", [0.1, 0.2, 0.3, 0.5], tokens=64)], [])
    line = compare(graded, "full", "topk").splitlines()[3]
    p = sign_flip(np.array([[0.4], [0.3], [0.2], [0.05]]))[0]
    assert line.endswith(f"points, p {p:.2g} (sign-flip by image, uncorrected)") and mcnemar(4, 0) != p


@pytest.mark.parametrize("lack", [["question"], ["target", "answer"], ["question", "target", "answer"]])
@pytest.mark.parametrize("older", [(0, 1), (0,), (1,)])
def test_an_older_store_has_no_words_to_show(lack, older):
    rows = [
        replace(each, samples=each.samples.drop(columns=lack)) if number in older else each
        for number, each in enumerate(RESULTS.rows[:2])
    ]
    lines = compare(Results("mine", rows, []), "full", "topk").splitlines()
    full = compare(RESULTS, "full", "topk:tokens=64").splitlines()
    assert lines[3:8] == full[3:8]
    here = {
        "question": "question 1?" if "question" not in lack or 0 not in older else "not stored",
        "target": "yes" if "target" not in lack or 0 not in older else "not stored",
        "A": "full says [31m<b>1" if "answer" not in lack or 0 not in older else "not stored",
        "B": "topk says [31m<b>0" if "answer" not in lack or 1 not in older else "not stored",
    }
    assert lines[10] == "  a 1: {question} → {target}; A: {A}; B: {B}".format_map(here)


def test_nothing_in_common_is_said():
    apart = Results("mine", [row("full", [1, 1], "aa"), row("topk", [1, 1], "cc", tokens=64)], [])
    with pytest.raises(VtbenchError, match="'full' and 'topk' answered no question in common"):
        compare(apart, "full", "topk")
    unscored = Results("mine", [row("full", [1, 1], "aa"), row("topk", [None, None], "aa", tokens=64)], [])
    with pytest.raises(VtbenchError, match="'topk' has no scores to compare in mine"):
        compare(unscored, "full", "topk")
