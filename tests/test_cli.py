import json
import sys
from pathlib import Path

import pytest

from harness import cli
from harness.spec import load_sweep
from harness.store import Result, Store
from harness.trial import Warm, run
from methods.interface import Cut, Shape, Stage
from methods.reduce import keep_all

GOOD = "model: random:pocket\ntasks: pocketvqa\nmethods: [full, {pooling: {tokens: [16, 64]}}]\n"


def vtbench(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["vtbench", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, ": there is no such file"),
        ("model: [\n", ":2:1: not YAML: expected the node content, but found '<stream end>'"),
        ("model: a\n\ttasks: b\n", ":2:1: not YAML: found character '\\t' that cannot start any token"),
        (GOOD + "token: 3\n", ":token: is not a key; did you mean tokens?"),
        (GOOD.replace("full", "fulll"), ":methods[0]: 'fulll' is not a method; did you mean full?"),
        (GOOD.replace("tokens", "tokns"), ":methods[1].pooling.tokns: is not a parameter; did you mean tokens?"),
        (GOOD.replace("16", "sixteen"), ":methods[1].pooling.tokens: 'sixteen' is not possible; it should be a valid"),
        (GOOD + "dtype: float\n", ":dtype: 'float' is not possible; did you mean float32? allowed are float32"),
        (GOOD + "limit: []\n", ":limit: is empty"),
        (GOOD.replace("16", "50"), ":methods[1].pooling.tokens: 50 is not possible, pooling needs a square"),
        (
            GOOD.replace("random:pocket", "random:pokcet"),
            ":model: 'random:pokcet' is not a model; did you mean random:pocket?",
        ),
        (GOOD.replace("vqa", "vqq"), ":tasks: 'pocketvqq' is not a task; did you mean pocketvqa"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_and_nothing_is_written(tmp_path, file, text, complaint, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file.unlink()
    if text is not None:
        file.write_text(text)
    places = ("--out", tmp_path / "results", "--reports", tmp_path / "reports")
    assert vtbench(monkeypatch, "run", file, *places) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"vtbench: {file}{complaint}") and err.count("\n") == 1
    assert not (tmp_path / "results").exists() and not (tmp_path / "reports").exists()


def test_no_results_to_report(tmp_path, file, monkeypatch, capsys):
    places = ("--results", tmp_path / "results", "--out", tmp_path / "reports")
    for what in ("x", file):
        assert vtbench(monkeypatch, "report", what, *places) == 2
        out, err = capsys.readouterr()
        assert (
            out == "" and err == f"vtbench: {tmp_path / 'results' / 'x'}: no results to report; run the sweep first\n"
        )
    assert not (tmp_path / "results").exists() and not (tmp_path / "reports").exists()


def test_a_format_that_is_none_is_said(monkeypatch, capsys):
    assert vtbench(monkeypatch, "report", "x", "--format", "pdf") == 2
    assert capsys.readouterr().err == "vtbench: --format: 'pdf' is not possible; allowed are csv, latex\n"


def test_a_dry_run_tells_ids_schedules_and_what_is_done(tmp_path, file, monkeypatch, capsys):
    full, small, large = load_sweep(file).trials()
    store = Store(tmp_path / "results" / "x")
    store.write(full, Result({"id": full.id}, None))
    store.fail(small, "no", "")
    assert vtbench(monkeypatch, "run", file, "--dry-run", "--out", tmp_path / "results") == 0
    head, names, *rows = capsys.readouterr().out.splitlines()
    assert head == "x: 3 trials, 1 done, 2 to run"
    assert names.split("  ")[0] == "id"
    assert [row.split() for row in rows] == [
        [full.id, "done", "random:pocket", "full", "on", "pocketvqa", "576×8", "576×6"],
        [small.id, "failed", "random:pocket", "pooling", "16", "on", "pocketvqa", "576×8", "16×6"],
        [large.id, "waiting", "random:pocket", "pooling", "64", "on", "pocketvqa", "576×8", "64×6"],
    ]
    assert vtbench(monkeypatch, "run", file, "--dry-run", "--limit", 3, "--out", tmp_path / "results") == 0
    assert capsys.readouterr().out.startswith("x: 3 trials, 0 done, 3 to run\n")


def test_a_run_with_nothing_to_do_says_so_and_leaves_the_report(tmp_path, file, monkeypatch, capsys):
    file.write_text("model: llava-1.5-7b\ntext_tokens: 64\nmethods: [full, {topk: {tokens: 64}}]\n")
    store = Store(tmp_path / "results" / "x")
    for trial in load_sweep(file).trials():
        store.write(trial, run(trial, Warm("cpu")))
    places = ("--out", tmp_path / "results", "--reports", tmp_path / "reports")
    assert vtbench(monkeypatch, "run", file, *places) == 0
    first, report = capsys.readouterr().out, tmp_path / "reports" / "x.md"
    assert first == f"x: 2 trials, 0 done now, 2 before, 0 failed\nreport: {report}\n"
    written = report.stat().st_mtime_ns
    assert vtbench(monkeypatch, "run", file, *places) == 0
    assert capsys.readouterr().out == first and report.stat().st_mtime_ns == written


def test_methods_are_listed(monkeypatch, capsys):
    assert vtbench(monkeypatch, "methods", "--json") == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["ivtp"]["seams"] == ["vit", "llm"] and entries["full"]["seams"] == []
    assert vtbench(monkeypatch, "methods") == 0
    out = capsys.readouterr().out
    assert (
        "prumerge    LLaVA-PruMerge (2024); cuts at: vit\n"
        "            On the ViT's features: centres, each plus its 32 nearest weighted by attention, "
        "and the rest as one token.\n"
        "              tokens: int or null (1 to all patches), default null\n"
        "              positions: original or contiguous, default contiguous\n"
    ) in out
    assert "\npyramiddrop PyramidDrop (CVPR 2025); cuts at: llm\n" in out
    assert "  group: int or all (1 or more), default 3\n" in out and "  identity: bool, default false\n" in out


def test_a_dry_run_marks_upper_bounds_from_the_first_adaptive_cut_on(tmp_path, file, monkeypatch, capsys):
    file.write_text(GOOD.replace("{pooling: {tokens: [16, 64]}}", "{prumerge: {tokens: [null, 36]}}"))
    assert vtbench(monkeypatch, "run", file, "--dry-run", "--out", tmp_path / "results") == 0
    *_, adaptive, fixed = capsys.readouterr().out.splitlines()
    assert adaptive.endswith("prumerge adaptive on pocketvqa  576×8                   ≤145×6")
    assert fixed.split()[-2:] == ["576×8", "36×6"]


@pytest.mark.parametrize(
    ("seam", "layer", "inside", "exact"),
    [
        ("vit", 0, False, (0, 0)),
        ("vit", 2, True, (3, 0)),
        ("vit", 23, False, (23, 0)),
        ("input", 0, False, (23, 0)),
        ("llm", 0, False, (23, 0)),
        ("llm", 8, False, (23, 8)),
    ],
)
def test_layers_below_the_first_adaptive_cut_are_exact(seam, layer, inside, exact):
    shape, fixed = Shape(576, 23, 32), Stage(seam="vit", reduce=keep_all, cuts=(Cut(1, 5),))
    adaptive = Stage(seam=seam, reduce=keep_all, cuts=(Cut(layer, 4),), inside=inside, adaptive=True)
    assert cli.exact_layers((fixed, adaptive), shape) == exact
    assert cli.exact_layers((fixed,), shape) == (23, 32)


@pytest.mark.parametrize(("lengths", "written"), [((), ""), ((5,), "5"), ((5, 5, 3, 5), "5×2 3 5")])
def test_lengths_are_written_in_runs(lengths, written):
    assert cli.runs(lengths) == written


@pytest.mark.parametrize(("exact", "written"), [(0, "≤5×2 ≤3"), (1, "5 ≤5 ≤3"), (2, "5×2 ≤3"), (3, "5×2 3")])
def test_lengths_behind_the_exact_ones_are_upper_bounds(exact, written):
    assert cli.runs((5, 5, 3), exact) == written
