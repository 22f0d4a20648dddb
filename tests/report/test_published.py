import json
import shutil
from pathlib import Path

import pytest

from harness import papers, report
from harness.errors import VtbenchError
from harness.shown import Published, Shown

PRINTED = """paper,table,model,method,setting,metric,value,note
ivtp,3,llava-1.5-7b,LLaVA,"text_tokens=128,tokens=576",tflops,10.0,
ivtp,3,llava-1.5-7b,LLaVA,"text_tokens=512,tokens=576",tflops,20.0,
ivtp,3,llava-1.5-7b,IVTP,"text_tokens=128,tokens=64",tflops,4.0,
ivtp,3,llava-1.5-7b,IVTP,"text_tokens=512,tokens=64",tflops,8.0,
ivtp,3,llava-1.5-7b,Honeybee,"text_tokens=128,tokens=64",tflops,5.0,
ivtp,3,llava-1.5-13b,IVTP,"text_tokens=128,tokens=64",gqa,60.0,
ivtp,9,llava-1.5-7b,IVTP,tokens=64,tflops_vit,0.2,"text_tokens=512, batch=1"
ivtp,9,llava-1.5-7b,IVTP,tokens=64,tflops_llm,7.0,"text_tokens=512, batch=1"
atp,S3,llava-1.5-7b,w/o flash,one A100,cuda_ms,400.0,
atp,S3,llava-1.5-7b,w/ flash,one A100,cuda_ms,300.0,
"""
ROWS = {"LLaVA": "full", "IVTP": {"ivtp": {"group": 3}}}


def add(
    folder: Path,
    name: str,
    method: str,
    parameters: dict,
    text_tokens: int | None,
    vision: float,
    llm: float,
    *,
    attention: str = "sdpa",
    latency: dict | None = None,
) -> None:
    trial = {
        "model": "llava-1.5-7b",
        "task": None,
        "text_tokens": text_tokens,
        "method": method,
        "parameters": parameters,
        "limit": None,
        "seed": 0,
        "dtype": "float32",
        "attention": attention,
        "measure": ["flops", "memory", "tokens"],
    }
    parts = {"vision": vision * 1e12, "projector": 0, "decoder_linear": llm * 1e12, "decoder_attention": 0}
    parts |= {"lm_head": 0, "extra": 0}
    record = {
        "id": name,
        "trial": trial,
        "scores": None,
        "tokens": {"into_llm": 64.0, "mean_llm": 64.0},
        "flops": {"tokens_basis": "one sample", "parts": {"ivtp": parts}, "total": {"ivtp": sum(parts.values())}},
        "latency": latency,
        "memory": {"kv_visual_bytes": 1000, "peak_kind": None},
        "provenance": {"started": "2026-01-01T00:00:00", "device": "cpu", "cpu_or_gpu_name": "a CPU"},
    }
    (folder / name).mkdir(parents=True)
    (folder / name / "trial.yaml").write_text(json.dumps(trial))
    (folder / name / "record.json").write_text(json.dumps(record))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    file = tmp_path / "papers.csv"
    file.write_text(PRINTED)
    monkeypatch.setattr(papers, "PUBLISHED", tmp_path)
    (tmp_path / "changes.csv").write_text("")
    folder = tmp_path / "results" / "mine"
    add(folder, "a", "full", {}, 128, 1.0, 9.1)
    add(folder, "b", "full", {}, 512, 1.0, 18.0)
    add(folder, "c", "ivtp", {"tokens": 64, "group": 3}, 512, 0.198, 7.8)
    add(folder, "d", "ivtp", {"tokens": 64, "group": 2}, 512, 0.3, 9.0)
    return folder


def written(folder: Path, tmp_path: Path, **changes) -> str:
    asked = Published(
        **{"paper": "ivtp", "tables": ("3",), "rows": ROWS, "missing": {"Honeybee": "not built"}} | changes
    )
    shown = Shown(convention="ivtp", published=asked)
    return report.write(folder, tmp_path / "reports", shown).read_text()


def line(markdown: str, start: str) -> list[str]:
    (found,) = [line for line in markdown.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_printed_beside_ours_in_the_papers_layout(folder, tmp_path):
    markdown = written(folder, tmp_path)
    assert line(markdown, "published / ours")[1:] == ["text\\_tokens 128, TFLOPs", "text\\_tokens 512, TFLOPs"]
    assert line(markdown, "LLaVA")[1:] == ["10.0 / 10.100 (+1.0 %)", "20.0 / 19.000 (−5.0 %) **off**"]
    assert line(markdown, "IVTP")[1:] == ["4.0 / not measured", "8.0 / 7.998 (+0.0 %)"]
    assert line(markdown, "Honeybee")[1:] == ["5.0 / not measured", ""]
    assert "2 of 3 counted figures are within 2 % of the printed ones or round to them." in markdown
    assert "Honeybee: not measured, not built." in markdown and "IVTP: not measured." in markdown


def test_what_cannot_be_had_has_its_reason_and_only_where_it_is_off(folder, tmp_path):
    entry = {"where": {"row": "LLaVA", "table": "3"}, "reason": "in print it shrinks"}
    markdown = written(folder, tmp_path, unreproduced=(entry,))
    assert line(markdown, "LLaVA")[1:] == ["10.0 / 10.100 (+1.0 %)", "20.0 / 19.000 (−5.0 %) †"]
    assert markdown.count("† in print it shrinks") == 1
    at_128 = entry | {"where": {"row": "LLaVA", "text_tokens": 128}}
    assert "†" not in written(folder, tmp_path, unreproduced=(at_128,))


def test_a_row_that_did_not_run_is_not_missing_because_its_figure_is_odd(folder, tmp_path):
    odd = {"where": {"row": "IVTP", "text_tokens": 128}, "reason": "odd"}
    markdown = written(folder, tmp_path, unreproduced=(odd,))
    assert line(markdown, "IVTP")[1] == "4.0 / not measured"
    assert "IVTP: not measured." in markdown and "odd" not in markdown


def test_a_trial_without_text_tokens_is_no_printed_length(folder, tmp_path):
    for name in "ab":
        shutil.rmtree(folder / name)
    add(folder, "e", "full", {}, None, 1.0, 9.1)
    assert line(written(folder, tmp_path), "LLaVA")[1:] == ["10.0 / not measured", "20.0 / not measured"]


def test_parts_are_compared_with_parts(folder, tmp_path):
    markdown = written(folder, tmp_path, tables=("9",), rows={"IVTP": ROWS["IVTP"]}, missing={})
    assert line(markdown, "IVTP")[1:] == ["0.2 / 0.198 (−1.0 %)", "7.0 / 7.800 (+11.4 %) **off**"]


def test_times_are_cuda_s_and_a_row_can_name_a_setting(folder, tmp_path):
    for name in "ab":
        shutil.rmtree(folder / name)
    for attention, clock in (("eager", "CUDA events"), ("sdpa", "CPU time")):
        times = {part: {"q25": 1.0, "median": 200.0, "q75": 300.0} for part in ("prefill_ms", "vision_ms", "decode_ms")}
        latency = {"clock": clock, "exclusive": True, "pruner_ms": None, **times}
        add(folder, attention, "full", {}, 64, 1.0, 9.0, attention=attention, latency=latency)
    rows = {"w/o flash": {"full": {"attention": "eager"}}, "w/ flash": {"full": {"attention": "sdpa"}}}
    markdown = written(folder, tmp_path, paper="atp", tables=("S3",), rows=rows, missing={})
    assert line(markdown, "published / ours")[1:] == ["CUDA ms"]
    assert line(markdown, "w/o flash")[1:] == ["400.0 / 200.000 (−50.0 %) **off**"]
    assert line(markdown, "w/ flash")[1:] == ["300.0 / not measured"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables": ("7",)}, "published.tables: ivtp has no costs in table '7'; allowed are 3, 9"),
        (
            {"rows": ROWS | {"ToMe": "tome"}},
            "published.rows.ToMe: is no row of these tables; allowed are LLaVA, IVTP, Honeybee",
        ),
        ({"missing": {}}, "published.rows: row 'Honeybee' of table 3 is in neither rows nor missing"),
    ],
)
def test_what_does_not_fit_the_paper_is_said_and_nothing_is_written(folder, tmp_path, changes, message):
    with pytest.raises(VtbenchError) as caught:
        written(folder, tmp_path, **changes)
    assert str(caught.value).startswith(message)
    assert not list((tmp_path / "reports").glob("*"))


def test_what_fits_several_rows_is_held_against_none_and_the_report_is_there(folder, tmp_path):
    markdown = written(folder, tmp_path, rows=ROWS | {"IVTP": "ivtp"})
    assert line(markdown, "IVTP")[1:] == ["4.0 / not measured", "8.0 / several"]
    assert line(markdown, "LLaVA")[1] == "10.0 / 10.100 (+1.0 %)"
    assert "\nIVTP: fits 2 rows that differ in group; held against none of them.\n" in markdown


def test_a_sweep_of_costs_has_columns_for_what_it_asks(folder, tmp_path):
    markdown = written(folder, tmp_path)
    assert line(markdown, "Method") == ["Method", "TFLOPs (%)", "KV MB", "tokens into LLM / mean"]
    assert line(markdown, "ivtp (group 3, text\\_tokens 512)")[1:] == ["7.998 (−57.9)", "0.001", "64 / 64"]
    assert "## Cost\n" in markdown and "- tasks:" not in markdown and "- time:" not in markdown
    assert "- text tokens: 128, 512\n" in markdown and "- FLOPs: prefill, convention `ivtp`" in markdown


def test_a_report_by_name_shows_what_the_run_left(folder, tmp_path):
    by_file = written(folder, tmp_path)
    asked = Published(paper="ivtp", tables=("3",), rows=ROWS, missing={"Honeybee": "not built"})
    (folder / "sweep.json").write_text(Shown(convention="ivtp", published=asked).model_dump_json())
    assert report.write(folder, tmp_path / "other").read_text() == by_file


def test_the_printed_figures_are_read():
    assert len(papers.read_figures()) == 825 + 64


def test_a_sweep_json_that_is_broken_is_said(folder, tmp_path):
    for content in ("{", '{"convention": "mine"}', '{"words": 1}'):
        (folder / "sweep.json").write_text(content)
        with pytest.raises(VtbenchError, match=r"sweep\.json: is not what vtbench run leaves"):
            report.write(folder, tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


def test_tables_go_beside_the_figures(folder, tmp_path):
    shown = Shown(convention="ivtp")
    report.write(folder, tmp_path / "reports", shown, formats=("csv", "latex"))
    assert {path.name for path in (tmp_path / "reports" / "mine").iterdir()} == {"1_cost.csv", "1_cost.tex"}
