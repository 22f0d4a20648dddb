from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods import METHODS, method
from methods.interface import Cut, Shape
from methods.schedule import even_cuts, group_ends, merge_cuts, tokens_per_layer

LLAVA_7B = Shape(patches=576, vit_layers=23, llm_layers=32)
POCKET = Shape(patches=576, vit_layers=8, llm_layers=6)


def test_ivtp_schedule_at_64_is_the_supplements_algorithm_2():
    tokens = tokens_per_layer(method("ivtp", tokens=64).stages(LLAVA_7B), LLAVA_7B)
    assert (
        tokens.vit == (576,) + (512,) * 3 + (448,) * 3 + (384,) * 3 + (320,) * 3 + (256,) * 3 + (192,) * 3 + (128,) * 4
    )
    assert tokens.llm == (128,) + (112,) * 3 + (96,) * 3 + (80,) * 3 + (64,) * 22


def test_ivtp_main_texts_reading_prunes_at_the_top_of_each_group():
    first, second = method("ivtp", tokens=64, start=2).stages(LLAVA_7B)
    assert [cut.layer for cut in first.cuts] == [3, 6, 9, 12, 15, 18, 21]
    assert [cut.layer for cut in second.cuts] == [3, 6, 9, 12]


def test_ivtp_from_128_on_drops_the_same_number_at_every_cut_of_both_stages():
    first, second = method("ivtp", tokens=136).stages(LLAVA_7B)
    assert [cut.tokens for cut in (*first.cuts, *second.cuts)] == list(range(536, 135, -40))


def test_topk_drops_512_over_23_layers_as_22_23_22():
    (stage,) = method("topk", tokens=64).stages(LLAVA_7B)
    kept = [576, *(cut.tokens for cut in stage.cuts)]
    assert [before - after for before, after in pairwise(kept)][:4] == [22, 23, 22, 22]
    assert kept[-1] == 64


def test_fastv_counts_its_budget_as_the_mean_over_32_layers():
    tokens = tokens_per_layer(method("fastv", tokens=192).stages(LLAVA_7B), LLAVA_7B)
    assert tokens.llm == (576, 576) + (166,) * 30  # (32·192 − 1152)/30 = 166.4
    kept = tokens_per_layer(method("fastv", tokens=64, budget="kept").stages(LLAVA_7B), LLAVA_7B)
    assert kept.llm == (576, 576) + (64,) * 30


def test_tome_spreads_evenly_where_the_clamp_allows_it_and_front_loads_where_not():
    assert merge_cuts(23, 576, 64) == even_cuts(range(23), 576, 64)
    assert [cut.tokens for cut in merge_cuts(8, 576, 16)] == [486, 396, 306, 216, 126, 63, 32, 16]


@given(st.integers(1, 24), st.integers(1, 576), st.data())
def test_merges_never_more_than_halve_and_reach_the_budget(layers, before, data):
    after = data.draw(st.integers(1, before))
    try:
        cuts = merge_cuts(layers, before, after)
    except ValueError as error:
        assert "allowed are" in str(error)
        return
    lengths = [before, *(cut.tokens for cut in cuts)]
    assert lengths[-1] == after
    assert all(0 <= a - b <= a // 2 for a, b in pairwise(lengths))


@given(st.integers(1, 32), st.integers(0, 576), st.data())
def test_even_cuts_differ_by_at_most_one(steps, before, data):
    after = data.draw(st.integers(0, before))
    kept = [before, *(cut.tokens for cut in even_cuts(range(steps), before, after))]
    drops = [a - b for a, b in pairwise(kept)]
    assert kept[-1] == after and max(drops) - min(drops) <= 1


def test_group_ends():
    assert group_ends(23, 3, 0) == (1, 4, 7, 10, 13, 16, 19)
    assert group_ends(12, 3, 2) == (3, 6, 9, 12)
    assert group_ends(2, 3, 0) == (1,)
    assert group_ends(2, 3, 2) == ()


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("pooling", {"tokens": 50}, "the nearest are 49 and 64"),
        ("pooling", {"tokens": 576}, None),
        ("fastv", {"tokens": 16}, "allowed are 37 to 576"),
        ("topk", {"tokens": 577}, "allowed are 1 to 576"),
        ("tome", {"tokens": 0}, "allowed are 1 to 576"),
        ("ivtp", {"tokens": 64, "group": 40, "start": 39}, "ends no group"),
    ],
)
def test_a_budget_out_of_reach_names_those_within(name, parameters, message):
    if message is None:
        method(name, **parameters).stages(LLAVA_7B)
        return
    with pytest.raises(ValueError, match=message):
        method(name, **parameters).stages(LLAVA_7B)


@pytest.mark.parametrize("shape", [LLAVA_7B, POCKET])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "full"])
def test_every_method_ends_at_its_budget(name, shape):
    parameters = {"budget": "kept"} if name == "fastv" else {}
    for tokens in (16, 64, 256, 576):
        entering = tokens_per_layer(method(name, tokens=tokens, **parameters).stages(shape), shape)
        assert len(entering.vit) == shape.vit_layers and len(entering.llm) == shape.llm_layers
        assert entering.llm[-1] == tokens
        assert list(entering.vit) == sorted(entering.vit, reverse=True)


def test_full_cuts_nothing():
    assert tokens_per_layer(method("full").stages(POCKET), POCKET) == ((576,) * 8, (576,) * 6)


def test_a_cut_before_a_layer_counts_there_and_one_inside_it_above():
    (before,) = method("topk", tokens=64).stages(POCKET)
    (inside,) = method("tome", tokens=64).stages(POCKET)
    assert before.cuts[0] == inside.cuts[0] == Cut(0, 512)
    assert tokens_per_layer((before,), POCKET).vit[:2] == (512, 448)
    assert tokens_per_layer((inside,), POCKET).vit[:2] == (576, 512)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("ivpt", {"tokens": 64}, "method: 'ivpt' is unknown; allowed are full, random"),
        (
            "ivtp",
            {"tokens": 64, "groups": 3},
            "ivtp: 'groups' is not a parameter; allowed are positions, tokens, group",
        ),
        ("topk", {}, "topk: tokens is missing"),
        ("ivtp", {"tokens": 64, "group": 0}, "group: 0 is not possible"),
        ("ivtp", {"tokens": 64, "threshold": 2}, "threshold: 2 is not possible"),
        ("ivtp", {"tokens": 64, "tokens_into_llm": 32}, "tokens_into_llm: 32 is less than tokens, 64"),
        ("fastv", {"tokens": 64, "layer": 0}, "layer: 0 is not possible"),
        ("fastv", {"tokens": 64, "budget": "sum"}, "fastv: budget 'sum' is unknown; allowed are mean, kept"),
        ("topk", {"tokens": 64, "positions": "packed"}, "allowed are original, contiguous"),
    ],
)
def test_a_wrong_name_parameter_or_value_is_told(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        method(name, **parameters)
