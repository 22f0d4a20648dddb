import pandas as pd
import pytest

from harness.errors import VtbenchError
from harness.pocket.ranking import main, ranked


def samples(scores: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"method": label, "task": "where", "doc_id": f"where-{i}", "image_id": i, "score": score}
            for label, column in scores.items()
            for i, score in enumerate(column)
        ]
    )


ONE = samples({"random 16": [0, 0, 0, 1], "topk 16": [0, 0, 1, 1], "ivtp 16": [0, 1, 1, 1], "full": [1, 1, 1, 1]})


def test_methods_come_from_best_to_worst_with_both_averages():
    other = samples({"random 16": [0, 0, 0, 0], "topk 16": [1, 1, 1, 1], "ivtp 16": [1, 1, 1, 0], "full": [1, 1, 1, 1]})
    lines, tau = ranked(ONE, other)
    assert [(label, one.mean, two.mean) for label, one, two in lines] == [
        ("full", 1.0, 1.0),
        ("ivtp 16", 0.75, 0.75),
        ("topk 16", 0.5, 1.0),
        ("random 16", 0.25, 0.0),
    ]
    # of six pairs four are in one order, one in the other, one is tied in `other` alone
    assert tau == pytest.approx((4 - 1) / (6 * 5) ** 0.5)


def test_other_questions_are_refused():
    with pytest.raises(VtbenchError, match="other questions or methods"):
        ranked(ONE, ONE[ONE["doc_id"] != "where-0"])


def test_budgets_are_compared_apart(tmp_path, capsys):
    both = pd.concat([ONE, ONE.assign(method=ONE["method"].str.replace(" 16", " 64"))])
    for name in ("a", "b"):
        both.drop_duplicates(["method", "doc_id"]).to_parquet(tmp_path / name)
    main(tmp_path / "a", tmp_path / "b")
    out = capsys.readouterr().out
    assert "16 tokens: Kendall's τ +1.00 over 3 methods" in out and "64 tokens: Kendall's τ +1.00 over 3 methods" in out
