"""The benchmark runs and notes everything; how long things take is not asserted."""

import json

import pytest
import torch

from benchmarks.probe import TINY, TOKENS, benchmark, main, peak_bytes
from methods import TRAINING_FREE, method
from methods.interface import Shape


@pytest.fixture(scope="module")
def result():
    return benchmark(torch.device("cpu"), widths=TINY, layers=2, repeats=2)


def test_every_method_has_its_reductions_with_all_their_cuts(result):
    shape = Shape(576, 23, 32)
    assert {each["method"] for each in result["reduce"]} == set(TRAINING_FREE)
    for each in result["reduce"]:
        stages = method(each["method"], **each["parameters"]).stages(shape)
        assert [stage["seam"] for stage in each["stages"]] == [stage.seam for stage in stages]
        for found, stage in zip(each["stages"], stages, strict=True):
            assert [(cut["layer"], cut["leaving"]) for cut in found["cuts"]] == list(stage.cuts)
            assert all(len(cut["share"]["raw"]) == 2 for cut in found["cuts"])
            assert found["worst"] in found["cuts"]


def test_every_reduce_function_is_there(result):
    functions = {stage["reduce"] for each in result["reduce"] for stage in each["stages"]}
    assert {"merge_outliers", "merge_outliers_and_sample", "most_important_by_product"} < functions


def test_both_lengths_are_probed_in_the_llm_and_one_in_the_vit(result):
    assert [(run["tower"], run["tokens"]) for run in result["probe"]] == [
        ("vit", 577),
        *(("llm", tokens) for tokens in TOKENS),
    ]
    for run in result["probe"]:
        probes = {"cut", "row", "rollout"} | ({"rider"} if run["tower"] == "llm" else set())
        assert set(run["seconds"]) == set(run["peak_bytes"]) == probes | {"plain", "eager"}
        assert set(run["time_ratio"]) == set(run["bytes_ratio"]) == probes | {"row alone"}
        assert run["extra_bytes"]["row alone"] == run["extra_bytes"]["row"] - run["extra_bytes"]["cut"]
        assert all(len(taken["raw"]) == 2 for taken in run["seconds"].values())


def test_eager_keeps_the_attention_of_every_layer(result):
    for run in result["probe"]:
        heads = TINY.vit_heads if run["tower"] == "vit" else TINY.llm_heads
        matrices = run["eager_layers"] * heads * run["tokens"] ** 2 * 4
        assert run["extra_bytes"]["eager"] > 0.9 * matrices
        assert 0 < run["extra_bytes"]["row"] < 0.1 * matrices


def test_the_peak_is_what_the_allocator_held():
    def call():
        first = torch.empty(1 << 20, dtype=torch.uint8)
        del first
        second = torch.empty(3 << 20, dtype=torch.uint8)
        return torch.empty(1 << 20, dtype=torch.uint8), second

    assert peak_bytes(torch.device("cpu"), call) == 4 << 20


def test_quick_writes_json_and_prints_the_tables(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        main(out=tmp_path / "made" / "probe.json", layers=1, quick=True)
    finally:
        torch.set_num_threads(threads)
    written = json.loads((tmp_path / "made" / "probe.json").read_text())
    assert set(written) == {"provenance", "settings", "probe", "layer", "reduce"}
    shown = capsys.readouterr().out
    assert all(name in shown for name in TRAINING_FREE)
    assert str(tmp_path) in shown.replace("\n", "")
