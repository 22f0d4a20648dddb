import pytest

from harness import findings
from harness.papers import Figure, read_figures


def figure(metric: str, text: str, **changes) -> Figure:
    given = {"paper": "ivtp", "table": "1", "model": "llava-1.5-7b", "row": "TopK", "setting": {"tokens": "64"}}
    return Figure(metric=metric, text=text, **given | changes)


def words(*figures: Figure) -> list[str]:
    return [found.words for found in findings.findings(figures)]


def said(*figures: Figure) -> list[str]:
    return [found.words for found in findings.conflicts(figures)]


def test_the_papers_own_inconsistencies_are_found():
    found = [(f.figure.source, f.figure.row, f.words) for f in findings.findings(read_figures())]
    assert found[0] == ("IVTP Table 2", "Qwen-VL", "the printed average is 63.0, its 12 cells give 63.2")
    assert [(source, row) for source, row, _ in found[1:6]] == [
        ("IVTP supplement Table 1", row) for row in ("TopK", "ToMe", "Honeybee", "Qwen-VL", "IVTP")
    ]
    assert {words for _, _, words in found[1:6]} == {
        "at 1024 text tokens the printed change is −33.6 %, 29.6 of 39.5 TFLOPs is −25.1 %"
    }
    assert found[6:] == [
        (
            "ATP-LLaVA supplement Table 7",
            "InternVL-2-8B + ATP",
            "the printed rate is 96.7 %, its 7 cells give 97.1 %",
        )
    ]


@pytest.mark.parametrize(
    ("average", "found"),
    [
        ("50.2", []),  # cells of at most 50.05 and 50.25 give 50.15
        ("50.3", ["the printed average is 50.3, its 2 cells give 50.1"]),
        ("50.0", []),
        ("49.9", ["the printed average is 49.9, its 2 cells give 50.1"]),
        ("50", []),
        ("51", ["the printed average is 51, its 2 cells give 50.1"]),
    ],
)
def test_an_average_may_be_off_by_rounding_alone(average, found):
    assert words(figure("gqa", "50.0"), figure("vqav2", "50.2"), figure("avg", average)) == found


def test_a_rate_is_the_mean_of_the_cells_own_rates():
    full = [figure(*each, row="full") for each in (("gqa", "50.00"), ("mme", "1000.0"), ("avg_rate", "100.0"))]
    half = [figure("gqa", "25.00"), figure("mme", "900.0")]
    assert words(*full, *half, figure("avg_rate", "70.0")) == []
    assert words(*full, *half, figure("avg_rate", "69.8")) == ["the printed rate is 69.8 %, its 2 cells give 70.0 %"]


def test_a_table_without_the_full_model_s_cells_gives_no_finding():
    full = [figure("gqa", "50.00", row="full"), figure("avg_rate", "100.0", row="full")]
    assert words(figure("gqa", "25.00"), figure("avg_rate", "70.0")) == []
    assert words(*full, figure("gqa", "25.00"), figure("mme", "900.0"), figure("avg_rate", "70.0")) == []
    assert words(figure("tflops", "15.00"), figure("tflops_change", "-25.0")) == []
    other = figure("tflops", "20.00", row="LLaVA-1.5-7B", paper="atp")
    assert words(other, figure("tflops", "15.00"), figure("tflops_change", "-99.0")) == []


def test_a_change_is_of_the_same_length_and_parts_add_up():
    full = [
        figure("tflops", text, row="LLaVA-1.5-7B", setting={"text_tokens": length})
        for text, length in (("10.00", "128"), ("20.00", "512"))
    ]
    at_512 = {"text_tokens": "512"}
    here = figure("tflops", "15.00", setting=at_512)
    assert words(*full, here, figure("tflops_change", "-25.0", setting=at_512)) == []
    assert words(*full, here, figure("tflops_change", "-25.2", setting=at_512)) == [
        "at 512 text tokens the printed change is −25.2 %, 15.00 of 20.00 TFLOPs is −25.0 %"
    ]
    parts = [figure("tflops_vit", "0.200"), figure("tflops_llm", "7.000")]
    assert words(*parts, figure("tflops", "7.201")) == []
    assert words(*parts, figure("tflops", "7.203")) == ["the printed total is 7.203 TFLOPs, its parts add up to 7.200"]


def test_what_is_printed_differently_is_a_conflict_unless_one_is_rounded():
    here, there = {"table": "4", "row": "Rollout"}, {"table": "S6", "row": "threshold=0.2"}
    assert said(figure("avg", "59.6", **here), figure("avg", "60.4", **there)) == [
        "Avg. of IVTP (llava-1.5-7b): 59.6 in IVTP Table 4 (Rollout); 60.4 in IVTP supplement Table 6 (threshold=0.2)"
    ]
    assert said(figure("tflops", "8.2", **here), figure("tflops", "8.228", **there)) == []
    assert len(said(figure("tflops", "8.2", **here), figure("tflops", "8.251", **there))) == 1
    assert said(figure("tflops", "8.2"), figure("tflops", "3.0", setting={"text_tokens": "30"})) == []
    assert said(figure("gqa", "60.1"), figure("gqa", "61.0", setting={"tokens": "128"})) == []


def test_one_benchmark_on_two_scales_is_one_and_papers_count_their_own_costs():
    full = {"row": "LLaVA-1.5-7B", "setting": {}}
    assert said(figure("mme_norm", "75.5", **full), figure("mme", "1510.7", **full, paper="atp")) == []
    assert len(said(figure("mme_norm", "75.5", **full), figure("mme", "1512.7", **full, paper="atp"))) == 1
    assert said(figure("tflops", "8.4", **full), figure("tflops", "4.2", **full, paper="lvpruning")) == []
