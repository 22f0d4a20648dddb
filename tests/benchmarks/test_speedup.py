"""The benchmark runs and notes everything, and its FLOPs are those that run; how long things take is not asserted."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import speedup
from benchmarks.shapes import BEFORE_IMAGE, build, prompt, text_encoder, tokenizer
from benchmarks.speedup import BUDGETS, METHODS, TEXT_TOKENS, Variant, benchmark, flops, main, variant
from harness.metrics.flops import count
from harness.model.anatomy import anatomy
from harness.model.attach import attach
from harness.model.replay import recorded
from harness.model.shapes import LLAVA
from methods.interface import Shape
from methods.schedule import TokensPerLayer, tokens_per_layer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return build("tiny", CPU, torch.float32, "eager")  # torch counts no scaled_dot_product_attention of a CPU


def counted(config, tokens, text_tokens):
    """By fvcore, lm_head on the last position only."""
    found = count(config, tokens, text_tokens)
    return found.total("flops") - found.parts("flops")["lm_head"] + 2 * found.decode_head


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_flops_are_what_a_replay_runs(name, model):
    inputs, encoder = prompt(model, 20), text_encoder(model)
    chosen = variant(name, 64, anatomy(model).shape).method
    noted = recorded(chosen)
    arranged = partial(attach, model, text_encoder=encoder, tokenizer=tokenizer())
    with arranged(noted):
        model(**inputs, logits_to_keep=1)
    with arranged(noted.replay()) as attached, FlopCounterMode(display=False) as counter:
        model(**inputs, logits_to_keep=1)
    tokens = attached.ledger.tokens.image(0)
    assert tokens == tokens_per_layer(chosen.stages(anatomy(model).shape), anatomy(model).shape)
    assert flops(model.config, tokens, 20) == counter.get_total_flops() == counted(model.config, tokens, 20)


@torch.no_grad()
def test_flops_of_the_full_model_are_what_it_runs(model):
    with FlopCounterMode(display=False) as counter:
        model(**prompt(model, 20), logits_to_keep=1)
    assert flops(model.config, TokensPerLayer((576,) * 7, (576,) * 6), 20) == counter.get_total_flops()


@pytest.mark.parametrize("name", METHODS)
def test_flops_of_7b_are_fvcores(name):
    config, shape = LLAVA["llava-1.5-7b"](), Shape(576, 23, 32)
    tokens = tokens_per_layer(variant(name, 64, shape).method.stages(shape), shape)
    assert flops(config, tokens, 512) == counted(config, tokens, 512)


def test_fastv_counts_the_mean_where_that_is_possible():
    assert variant("fastv", 64, Shape(576, 23, 32)).parameters == {"tokens": 64}
    assert variant("fastv", 64, Shape(576, 7, 6)).parameters == {"tokens": 64, "budget": "kept"}


def test_a_prompt_has_so_many_text_tokens_and_one_image(model):
    inputs = prompt(model, 64)
    is_image = inputs["input_ids"][0] == model.config.image_token_id
    assert (len(is_image), int(is_image.sum())) == (576 + 64, 576)
    assert is_image[BEFORE_IMAGE : BEFORE_IMAGE + 576].all()


def test_every_cell_has_every_round(monkeypatch):
    monkeypatch.setattr(speedup, "BUDGETS", BUDGETS[:1])
    monkeypatch.setattr(speedup, "TEXT_TOKENS", (5, 9))
    found = list(benchmark(CPU, "tiny", dtype=torch.float32, warmup=1, repeats=2))
    rounds = [[len(row["realised"]["raw"]) for row in each["rows"]] for each in found]
    assert rounds == [[1] * 3, [2] * 3, [2] * 3 + [1] * 3, [2] * 6]
    rows = found[-1]["rows"]
    assert [(row["method"], row["text_tokens"]) for row in rows] == [
        (name, text) for text in (5, 9) for name in METHODS
    ]
    for row in rows:
        full, pruned, replay = (row[key]["raw"] for key in ("full_ms", "pruned_ms", "replay_ms"))
        assert len(full) == len(pruned) == len(replay) == 2
        speedups = [a / b for a, b in zip(full, pruned, strict=True)]
        assert row["speedup"]["raw"] == speedups
        assert row["realised"]["raw"] == pytest.approx([each / row["ideal"] for each in speedups], rel=1e-12)
        shares = [1 - b / a for a, b in zip(pruned, replay, strict=True)]
        assert row["pruner_share"]["raw"] == pytest.approx(shares, abs=1e-12)
        assert row["held"] == (row["realised"]["median"] >= 0.9)
        assert row["ideal"] == row["flops"]["full"] / row["flops"]["pruned"] > 1


def test_the_full_prompts_place_in_a_round_turns(monkeypatch, model):
    ran = []

    def timed(model, inputs):
        ran.append(len(timing))
        return 1.0, []

    timing = []

    class Timed:
        def __init__(self, *_, **__):
            self.ledger = SimpleNamespace(tokens=SimpleNamespace(image=lambda _: None))

        def __enter__(self):
            timing.append(True)
            return self

        def __exit__(self, *_):
            timing.pop()

    monkeypatch.setattr(speedup, "timed_prompt", timed)
    monkeypatch.setattr(speedup, "attach", Timed)
    monkeypatch.setattr(speedup, "recorded", lambda _: SimpleNamespace(replay=lambda: None))
    variants = [Variant(name="topk", parameters={}, method=None) for _ in range(2)]
    list(speedup.prefills(model, 5, variants, warmup=0, repeats=2))
    assert ran[3:] == [0, 1, 1, 1, 1] + [1, 1, 1, 1, 0]


def test_quick_writes_json_and_prints_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speedup, "BUDGETS", BUDGETS[:1])
    monkeypatch.setattr(speedup, "TEXT_TOKENS", TEXT_TOKENS[:1])
    main(out=tmp_path / "made" / "speedup.json", quick=True)
    written = json.loads((tmp_path / "made" / "speedup.json").read_text())
    assert set(written) == {"provenance", "settings", "rows"} and len(written["rows"]) == 3
    shown = capsys.readouterr().out
    assert all(name in shown for name in METHODS) and "CPU time" in shown
    alone = ", alone" if written["settings"]["exclusive"] else ", not alone"
    assert all(line[-1].endswith(f"held{alone}") and line[8].endswith(", n=2") for line in speedup.table(written)[1:])
    assert str(tmp_path) in shown.replace("\n", "")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"model": "gpt"}, "model: 'gpt' is not possible; allowed are llava-1.5-7b"),
        ({"dtype": "int8"}, "dtype: 'int8' is not possible; allowed are bfloat16, float32"),
        ({"device": "tpu"}, "device: 'tpu' is not possible; allowed here: cpu"),
    ],
)
def test_bad_input_is_one_line(option, message):
    with pytest.raises(typer.BadParameter, match=message):
        main(**option)
