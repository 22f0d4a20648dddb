"""The benchmark runs every method and notes why one was not measured; how long things take is not asserted."""

import json

import pytest
import torch

from benchmarks import prefill
from benchmarks.prefill import HEADINGS, MODELS, benchmark, main, table
from harness.model.attention import FLASH
from methods import TRAINING_FREE

CPU = torch.device("cpu")


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(prefill, "TRAINING_FREE", ["full", "topk", "pooling"])
    monkeypatch.setattr(prefill, "BUDGETS", (128,))
    monkeypatch.setattr(prefill, "TEXT_TOKENS", 5)


def test_every_cell_is_measured_or_says_why_not(brief):
    rows = benchmark(CPU, ("tiny",), dtype=torch.float32, seconds=600, warmup=0, repeats=2)["rows"]
    cells = [(row["method"], row["attention"]) for row in rows]
    assert cells == [
        *[("full", "eager"), ("full", "sdpa")],
        *[("topk", "sdpa"), ("pooling", "sdpa"), ("topk", "eager"), ("pooling", "eager")],
    ]
    for row in rows:
        if row["method"] == "pooling":
            assert "pooling: tokens: 128 is not possible" in row["not_measured"]
            continue
        assert len(row["latency"]["prefill_ms"]["raw"]) == 2
        assert (row["latency"]["pruner_ms"] is None) == (row["method"] == "full")
        assert row["llm_tokens"] == [576 if row["method"] == "full" else 128] * 6
        assert row["memory"]["kv_visual_bytes"] == sum(row["llm_tokens"]) * 2 * 4 * 16 * 2


def test_what_has_not_begun_in_time_is_not_measured(brief):
    result = benchmark(CPU, ("tiny",), dtype=torch.float32, seconds=0, warmup=0, repeats=1)
    assert {row["not_measured"] for row in result["rows"]} == {"no time was left"}
    lines = table(result)
    assert all(len(line) == len(HEADINGS) for line in lines)
    assert lines[1][-8] == "not measured: no time was left"


def test_quick_writes_json_and_prints_the_table(brief, tmp_path, capsys):
    main(out=tmp_path / "made" / "prefill.json", device="cpu", quick=True)
    written = json.loads((tmp_path / "made" / "prefill.json").read_text())
    assert set(written) == {"provenance", "settings", "rows"}
    assert FLASH not in written["settings"]["attentions"]
    shown = capsys.readouterr().out
    assert "topk 128" in shown and "not measured" in shown


def test_all_methods_at_both_sizes_are_asked_for():
    assert prefill.TRAINING_FREE is TRAINING_FREE and MODELS == ("llava-1.5-7b", "llava-1.5-13b")
