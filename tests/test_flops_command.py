import json
import re

import pytest

from harness.metrics.conventions import CONVENTIONS
from harness.metrics.flops import count
from harness.model.load import config_of
from harness.pocket import WEIGHTS
from tests.metrics.shapes import FULL_7B
from tests.test_cli import vtbench
from tests.test_readme import README

PARTS = ["vision", "projector", "decoder_linear", "decoder_attention", "lm_head", "llm", "extra", "total"]


def run(monkeypatch, capsys, *arguments: object) -> str:
    vtbench(monkeypatch, "flops", *arguments)
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_json_has_the_schema_and_a_count_of_the_schedule(monkeypatch, capsys):
    asked = ("--method", "topk", "--tokens", 64, "--text-tokens", 512, "--convention", "ivtp", "--json")
    found = json.loads(run(monkeypatch, capsys, "llava-1.5-7b", *asked))
    assert list(found) == ["model", "method", "tokens", "text_tokens", "convention", "tflops", "visual_tokens"]
    head = {key: found[key] for key in ("model", "method", "tokens", "text_tokens", "convention")}
    assert head == {
        "model": "llava-1.5-7b",
        "method": "topk",
        "tokens": 64,
        "text_tokens": 512,
        "convention": "ivtp",
    }
    tflops, visual = found["tflops"], found["visual_tokens"]
    assert list(tflops) == PARTS
    assert tflops["llm"] == pytest.approx(sum(tflops[part] for part in PARTS[2:5]))
    assert tflops["total"] == pytest.approx(sum(tflops[part] for part in ("vision", "projector", "llm", "extra")))
    assert [len(visual[tower]) for tower in ("vision", "llm")] == [23, 32]
    assert visual["llm"] == [64] * 32


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_without_options_it_is_the_full_model(monkeypatch, capsys, convention):
    found = json.loads(run(monkeypatch, capsys, "llava-1.5-7b", "--convention", convention, "--json"))
    assert (found["method"], found["tokens"], found["text_tokens"]) == ("full", 576, 64)
    assert found["visual_tokens"] == {"vision": [576] * 23, "llm": [576] * 32}
    assert found["tflops"]["total"] == count(config_of("llava-1.5-7b"), FULL_7B, 64).total(convention) / 1e12


def test_parameters_are_set_one_by_one(monkeypatch, capsys):
    asked = ("llava-1.5-7b", "--method", "ivtp", "--tokens", 64, "--json")
    group = ("--set", "group=2", "--set", "guidance=none")
    plain, two = (json.loads(run(monkeypatch, capsys, *asked, *more)) for more in ((), group))
    assert plain["visual_tokens"]["vision"][1:4] == [512] * 3
    assert len(set(two["visual_tokens"]["vision"][1:3])) == 1 and two["visual_tokens"]["vision"][3] < 530
    text_encoder = 0.0134
    assert plain["tflops"]["extra"] - two["tflops"]["extra"] == pytest.approx(text_encoder, abs=0.002)


def test_the_table_names_the_parts_of_the_methods_own_cost_and_the_reduction(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "llava-1.5-7b", "--method", "ivtp", "--tokens", 64, "--text-tokens", 512)
    lines = {line.split("│")[1].strip(): line.split("│")[2:5] for line in out.splitlines() if line.startswith("│")}
    assert [part for part in lines if part in PARTS] == PARTS
    assert {"extra: rider", "extra: rollout", "extra: text encoder"} < set(lines)
    full, here, less = (float(cell.strip().removesuffix(" %")) for cell in lines["total"])
    assert less == pytest.approx(100 * (1 - here / full), abs=0.06)
    assert "convention flops: every matrix product" in out and "in TFLOPs\n" in out
    assert "\nvisual tokens into ViT layers: 576 512×3 448×3 384×3 320×3 256×3 192×3 128×4\n" in out
    assert "at most" not in out


def test_an_adaptive_method_costs_at_most_that(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "llava-1.5-7b", "--method", "prumerge")
    assert "it costs at most this" in out and "visual tokens into LLM layers: ≤145×32" in out
    found = json.loads(run(monkeypatch, capsys, "llava-1.5-7b", "--method", "prumerge", "--json"))
    assert found["tokens"] is None and found["visual_tokens"]["llm"] == [145] * 32


def test_a_folder_counts_as_the_model_in_it(monkeypatch, capsys):
    asked = ("--method", "ivtp", "--tokens", 16, "--json")
    named, folder = (json.loads(run(monkeypatch, capsys, model, *asked)) for model in ("pocket", WEIGHTS))
    assert folder.pop("model") == str(WEIGHTS) and named.pop("model") == "pocket"
    assert folder == named
    assert "in GFLOPs\n" in run(monkeypatch, capsys, "pocket")


def test_the_readme_says_what_is_printed(monkeypatch, capsys):
    section = README.partition("## What a method costs\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+) \|$", section, flags=re.MULTILINE))
    full = count(config_of("llava-1.5-7b"), FULL_7B, 512)
    assert rows == {name: f"{full.total(name) / 1e12:.3f}" for name in CONVENTIONS}
    (table, as_json) = (run(monkeypatch, capsys, *line.split()) for line in re.findall("vtbench flops (.*)", section))
    assert "│ total " in table and json.loads(as_json)["model"] == "llava-1.5-13b"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["llava-1.5-7"],
            "'llava-1.5-7' is not a model; did you mean llava-1.5-7b? allowed are pocket, llava-1.5-7b, ",
        ),
        (["blip3"], "'blip3' is not a model; did you mean blip2? allowed are pocket, llava-1.5-7b, llava-1.5-13b, "),
        (["llava-1.5-7b", "--method", "fulll"], "--method: 'fulll' is not a method; did you mean full? allowed are "),
        (
            ["llava-1.5-7b", "--convention", "mac"],
            "convention: 'mac' is unknown; did you mean macs? allowed are macs, ",
        ),
        (["llava-1.5-7b", "--method", "topk"], "topk.tokens: is missing"),
        (["llava-1.5-7b", "--tokens", 64], "--tokens: full has no budget; leave it out"),
        (["llava-1.5-7b", "--method", "lvpruning", "--tokens", 64], "--tokens: lvpruning has no budget; leave it out"),
        (
            ["llava-1.5-7b", "--method", "topk", "--tokens", 64, "--set", "tokens=32"],
            "--tokens: is there beside --set tokens; allowed is one of the two",
        ),
        (["llava-1.5-7b", "--method", "ivtp", "--set", "group=["], "ivtp.group: '[' cannot be read"),
        (["llava-1.5-7b", "--method", "ivtp", "--set", "group=2024-13-45"], "ivtp.group: '2024-13-45' cannot be read"),
        (["llava-1.5-7b", "--method", "topk", "--tokens", 577], "--tokens: 577 is not possible; allowed are 1 to 576"),
        (["llava-1.5-7b", "--method", "topk", "--tokens", 0], "--tokens: 0 is not possible; allowed are 1 to 576"),
        (
            ["llava-1.5-7b", "--method", "fastv", "--tokens", 20],
            "fastv.tokens: a mean of 20 is not possible after 2 of 32 layers",
        ),
        (
            ["llava-1.5-7b", "--method", "ivtp", "--tokens", 64, "--set", "grup=3"],
            "ivtp.grup: is not a parameter; did you mean group? allowed are ",
        ),
        (["llava-1.5-7b", "--method", "ivtp", "--tokens", 64, "--set", "group"], "--set: group is not possible; it "),
        (["llava-1.5-7b", "--method", "ivtp", "--tokens", 64, "--set", "group=x"], "ivtp.group: 'x' is not "),
        (["llava-1.5-7b", "--text-tokens", 1], "--text-tokens: 1 is not possible; allowed are 2 to 3520, for which "),
        (["llava-1.5-7b", "--text-tokens", 3521], "--text-tokens: 3521 is not possible; allowed are 2 to 3520, "),
        (["blip2", "--text-tokens", 2017], "--text-tokens: 2017 is not possible; allowed are 2 to 2016, for which "),
        (["instructblip-7b", "--text-tokens", 513], "--text-tokens: 513 is not possible; allowed are 2 to 512, "),
        (
            ["qwen-vl", "--method", "topk", "--tokens", 64],
            "--method: topk cannot run on qwen-vl; allowed is full, or a LLaVA: pocket, llava-1.5-7b, llava-1.5-13b",
        ),
        (["qwen-vl", "--tokens", 64], "--tokens: full has no budget; leave it out"),
        (["qwen-vl", "--set", "group=3"], "full.group: is not a parameter; "),
        (["qwen-vl", "--method", "topc"], "--method: 'topc' is not a method; did you mean topk? allowed are "),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, arguments, complaint):
    assert vtbench(monkeypatch, "flops", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"vtbench: {complaint}") and err.count("\n") == 1


def test_a_folder_without_a_llava_is_one_line(monkeypatch, capsys, tmp_path):
    assert vtbench(monkeypatch, "flops", tmp_path) == 2
    assert "the folder has no config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert vtbench(monkeypatch, "flops", tmp_path) == 2
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        f"vtbench: {tmp_path}/config.json: model_type: 'llama' is not possible; allowed is llava\n",
    )
