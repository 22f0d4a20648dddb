import re
from dataclasses import fields
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods import TRAINING_FREE, method
from methods.interface import Cut, Method, Shape
from methods.schedule import even_cuts, group_ends, merge_cuts, tokens_per_layer
from methods.sparsevlm import recycled

LLAVA_7B = Shape(patches=576, vit_layers=23, llm_layers=32)
POCKET = Shape(patches=576, vit_layers=8, llm_layers=6)
SHALLOW = Shape(patches=576, vit_layers=3, llm_layers=6)
SHAPES = pytest.mark.parametrize("shape", [LLAVA_7B, POCKET], ids=["7b", "pocket"])
PRUNING = [name for name in TRAINING_FREE if name != "full"]
SQUARES = {"pooling", "downsample"}


def counting_what_stays(name: str, tokens: int) -> Method:
    """A method whose last layer sees `tokens`."""
    kept = {"budget": "kept"} if "budget" in {field.name for field in fields(TRAINING_FREE[name])} else {}
    return method(name, tokens=tokens, **kept)


def mean(tokens: tuple[int, ...]) -> float:
    return sum(tokens) / len(tokens)


# every method


@SHAPES
@pytest.mark.parametrize("tokens", [16, 32, 64, 128, 192, 256, 512, 576])
@pytest.mark.parametrize("name", PRUNING)
def test_every_method_ends_at_its_budget(name, tokens, shape):
    if name in SQUARES:
        tokens = min((side * side for side in range(1, 25)), key=lambda square: abs(square - tokens))
    stages = counting_what_stays(name, tokens).stages(shape)
    for stage in stages:
        highest = {"vit": shape.vit_layers, "llm": shape.llm_layers - 1}.get(stage.seam, 0) - stage.inside
        at = [cut.layer for cut in stage.cuts]
        assert at == sorted(set(at)) and at[0] >= 0 and at[-1] <= highest
    entering = tokens_per_layer(stages, shape)
    assert len(entering.vit) == shape.vit_layers and len(entering.llm) == shape.llm_layers
    assert entering.llm[-1] == tokens
    along = entering.vit + entering.llm
    assert along == tuple(sorted(along, reverse=True)) and along[0] <= 576


def test_full_cuts_nothing():
    assert tokens_per_layer(method("full").stages(POCKET), POCKET) == ((576,) * 8, (576,) * 6)


@pytest.mark.parametrize(("name", "bound"), [("prumerge", 145), ("prumerge+", 576)])
@SHAPES
def test_where_the_count_adapts_the_schedule_is_an_upper_bound(name, bound, shape):
    (stage,) = method(name).stages(shape)
    assert stage.adaptive and stage.cuts == (Cut(shape.vit_layers, bound),)
    entering = tokens_per_layer([stage], shape)
    assert entering == ((576,) * shape.vit_layers, (bound,) * shape.llm_layers)
    assert not method(name, tokens=64).stages(shape)[0].adaptive


@pytest.mark.parametrize(
    ("name", "shape", "parameters", "message"),
    [
        *((name, LLAVA_7B, {"tokens": 0}, "tokens: 0 is not possible; allowed are 1 to 576") for name in PRUNING),
        *((name, LLAVA_7B, {"tokens": 577}, "tokens: 577 is not possible; allowed are 1 to 576") for name in PRUNING),
        *(
            (name, LLAVA_7B, {"tokens": tokens}, f"tokens: {tokens} is not possible, {name} needs a square; {nearest}")
            for name in sorted(SQUARES)
            for tokens, nearest in [
                (2, "the nearest are 1 and 4"),
                (50, "the nearest are 49 and 64"),
                (575, "the nearest are 529 and 576"),
            ]
        ),
        ("tome", SHALLOW, {"tokens": 71}, "tokens: 71 is not possible in 3 merging layers; allowed are 72 to 576"),
        (
            "tome+",
            SHALLOW,
            {"tokens": 35},
            "tokens: 35 is not possible, since twice as many have to leave 3 merging layers; allowed are 36 to 576",
        ),
        (
            "fastv",
            LLAVA_7B,
            {"tokens": 36},
            "tokens: a mean of 36 is not possible after 2 of 32 layers with all tokens; "
            "allowed are 37 to 576, or set budget: kept",
        ),
        (
            "pyramiddrop",
            LLAVA_7B,
            {"tokens": 144},
            "tokens: a mean of 144 is not possible with all tokens in 8 of 32 layers; "
            "allowed are 145 to 576, or set budget: kept",
        ),
        (
            "sparsevlm",
            LLAVA_7B,
            {"tokens": 54},
            "tokens: a mean of 54 is not possible with all tokens in 3 of 32 layers; "
            "allowed are 55 to 576, or set budget: kept",
        ),
        ("fastv", LLAVA_7B, {"tokens": 64, "layer": 32}, "layer: 32 is not possible; allowed are 1 to 31"),
        (
            "visionzip",
            LLAVA_7B,
            {"tokens": 64, "contextual": 64},
            "contextual: 64 is not possible; allowed are 0 to 63",
        ),
        (
            "visionzip",
            LLAVA_7B,
            {"tokens": 64, "contextual": -1},
            "contextual: -1 is not possible; allowed are 0 to 63",
        ),
    ],
)
def test_a_budget_out_of_reach_names_those_within(name, shape, parameters, message):
    with pytest.raises(ValueError, match=f"{re.escape(message)}$"):
        method(name, **parameters).stages(shape)


@pytest.mark.parametrize(
    ("name", "shape", "smallest"),
    [
        ("tome", SHALLOW, 72),  # 576 · ½³
        ("tome+", SHALLOW, 36),
        ("fastv", LLAVA_7B, 37),  # (2·576 + 30)/32 = 36.9
        ("fastv", POCKET, 193),  # (2·576 + 4)/6 = 192.7
        ("pyramiddrop", LLAVA_7B, 145),  # (8·576 + 24)/32 = 144.75
        ("pyramiddrop", POCKET, 193),
        ("sparsevlm", LLAVA_7B, 55),  # (3·576 + 29)/32 = 54.9
        ("sparsevlm", POCKET, 97),  # (576 + 5)/6 = 96.8
    ],
)
def test_the_smallest_budget_is_within_reach_and_named_below(name, shape, smallest):
    method(name, tokens=smallest).stages(shape)
    with pytest.raises(ValueError, match=f"tokens: .*{smallest - 1} is not possible.* allowed are {smallest} to 576"):
        method(name, tokens=smallest - 1).stages(shape)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("ivpt", {"tokens": 64}, "method: 'ivpt' is unknown; allowed are full, random"),
        ("topk", {"keep": 3}, "topk: 'keep' is not a parameter; allowed are positions, tokens"),
        ("full", {"tokens": 64}, "full: 'tokens' is not a parameter; allowed are positions"),
        ("topk", {}, "topk: tokens is missing"),
        ("fastv", {"tokens": 64, "layer": 0}, "layer: 0 is not possible"),
        ("topk+", {"tokens": 64, "llm_layers": 0}, "llm_layers: 0 is not possible; allowed are 1 or more layers"),
        ("tome+", {"tokens": 64, "llm_layers": 0}, "llm_layers: 0 is not possible; allowed are 1 or more layers"),
        *(
            (name, {"tokens": 64, "budget": "sum"}, f"{name}: budget 'sum' is unknown; allowed are mean, kept")
            for name in ("fastv", "pyramiddrop", "sparsevlm")
        ),
        ("topk", {"tokens": "64"}, "topk: tokens '64' is of the wrong type"),
        ("topk", {"tokens": None}, "topk: tokens None is of the wrong type"),
        ("ivtp", {"tokens": 64, "identity": "yes"}, "ivtp: identity 'yes' is of the wrong type"),
        ("ivtp", {"tokens": 64, "threshold": True}, "ivtp: threshold True is of the wrong type"),
        ("ivtp", {"tokens": 64, "group": 2.5}, "ivtp: group 2.5 is of the wrong type"),
        *(
            (name, {"positions": "packed"}, "'packed' is unknown; allowed are original, contiguous")
            for name in TRAINING_FREE
        ),
    ],
)
def test_a_wrong_name_parameter_or_value_is_told(name, parameters, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        method(name, **parameters)


# one by one


def test_ivtp_schedule_at_64_is_the_supplements_algorithm_2():
    tokens = tokens_per_layer(method("ivtp", tokens=64).stages(LLAVA_7B), LLAVA_7B)
    assert (
        tokens.vit == (576,) + (512,) * 3 + (448,) * 3 + (384,) * 3 + (320,) * 3 + (256,) * 3 + (192,) * 3 + (128,) * 4
    )
    assert tokens.llm == (128,) + (112,) * 3 + (96,) * 3 + (80,) * 3 + (64,) * 22


@pytest.mark.parametrize("name", ["random", "topk", "evit", "tome"])
def test_512_over_23_layers_are_22_23_22(name):
    (stage,) = method(name, tokens=64).stages(LLAVA_7B)
    assert [cut.layer for cut in stage.cuts] == [*range(23)]
    kept = [576, *(cut.tokens for cut in stage.cuts)]
    assert [before - after for before, after in pairwise(kept)][:4] == [22, 23, 22, 22]
    assert kept[-1] == 64


@pytest.mark.parametrize("name", ["topk+", "tome+"])
def test_a_plus_halves_what_the_vit_left_in_the_first_12_llm_layers(name):
    vit, llm = method(name, tokens=60).stages(LLAVA_7B)
    assert [cut.layer for cut in vit.cuts] == [*range(23)] and vit.cuts[-1].tokens == 120
    assert llm.cuts == tuple(Cut(layer, 120 - 5 * layer) for layer in range(1, 13))
    assert vit.inside == vit.proportional == (name == "tome+") and not llm.inside and not llm.proportional
    assert [cut.layer for cut in method(name, tokens=60, llm_layers=3).stages(LLAVA_7B)[1].cuts] == [1, 2, 3]
    assert [cut.layer for cut in method(name, tokens=60).stages(POCKET)[1].cuts] == [1, 2, 3, 4, 5]  # it has but 6
    assert [cut.tokens for cut in method(name, tokens=400).stages(POCKET)[1].cuts] == [541, 506, 470, 435, 400]


@pytest.mark.parametrize("name", ["prumerge", "prumerge+", "visionzip"])
def test_one_cut_on_the_features(name):
    (stage,) = method(name, tokens=64).stages(LLAVA_7B)
    assert stage.seam == "vit" and stage.cuts == (Cut(23, 64),)


@pytest.mark.parametrize(("name", "seam"), [("pooling", "input"), ("divprune", "input"), ("downsample", "image")])
def test_one_cut_before_a_tower(name, seam):
    (stage,) = method(name, tokens=64).stages(LLAVA_7B)
    assert stage.seam == seam and stage.cuts == (Cut(0, 64),)
    vit = 64 if seam == "image" else 576
    assert tokens_per_layer([stage], LLAVA_7B) == ((vit,) * 23, (64,) * 32)


def test_fastv_counts_its_budget_as_the_mean_over_32_layers():
    tokens = tokens_per_layer(method("fastv", tokens=192).stages(LLAVA_7B), LLAVA_7B)
    assert tokens.llm == (576, 576) + (166,) * 30  # (32·192 − 1152)/30 = 166.4
    kept = tokens_per_layer(method("fastv", tokens=64, budget="kept").stages(LLAVA_7B), LLAVA_7B)
    assert kept.llm == (576, 576) + (64,) * 30
    assert method("fastv", tokens=192, layer=3).stages(LLAVA_7B)[0].cuts == (Cut(3, 152),)  # (6144 − 1728)/29 = 152.3


@SHAPES
@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "sparsevlm"])
def test_a_mean_budget_is_the_mean_to_half_a_token(name, shape):
    reached = 0
    for tokens in range(1, 577, 5):  # never one of SparseVLM's published three, which are nominal
        try:
            stages = method(name, tokens=tokens).stages(shape)
        except ValueError:
            assert not reached
            continue
        reached += 1
        assert abs(mean(tokens_per_layer(stages, shape).llm) - tokens) <= 0.5
    assert reached > 70


def test_pyramiddrop_halves_thrice_as_published():
    (stage,) = method("pyramiddrop", tokens=72, budget="kept").stages(LLAVA_7B)
    assert stage.cuts == (Cut(8, 288), Cut(16, 144), Cut(24, 72))
    # (576 + 288 + 144 + 72)·8/32 = 270
    (stage,) = method("pyramiddrop", tokens=270).stages(LLAVA_7B)
    assert stage.cuts == (Cut(8, 288), Cut(16, 144), Cut(24, 72))
    assert [cut.layer for cut in method("pyramiddrop", tokens=72, budget="kept").stages(POCKET)[0].cuts] == [2, 3, 4]


@pytest.mark.parametrize(
    ("dropped", "best", "clusters"),
    [(0, 0, 0), (1, 1, 1), (7, 3, 1), (29, 9, 1), (30, 10, 2), (94, 29, 3), (109, 33, 4), (276, 83, 9), (576, 173, 18)],
)
def test_sparsevlm_recycles_three_tenths_of_the_dropped_to_a_tenth_of_those(dropped, best, clusters):
    assert recycled(dropped) == (best, clusters)


@pytest.mark.parametrize(
    ("tokens", "totals", "over_32"),
    [
        # 576 − 300 = 276: 83 to 9. 309 − 200 = 109: 33 to 4. 204 − 110 = 94: 29 to 3
        (192, [300 + 9, 200 + 4, 110 + 3], 3 * 576 + 4 * 309 + 9 * 204 + 16 * 113),
        # 576 − 303 = 273: 82 to 9. 312 − 110 = 202: 61 to 7. 117 − 36 = 81: 25 to 3
        (128, [303 + 9, 110 + 7, 36 + 3], 3 * 576 + 4 * 312 + 9 * 117 + 16 * 39),
        # 576 − 66 = 510: 154 to 16. 82 − 30 = 52: 16 to 2. 32 − 17 = 15: 5 to 1
        (64, [66 + 16, 30 + 2, 17 + 1], 3 * 576 + 4 * 82 + 9 * 32 + 16 * 18),
    ],
)
def test_sparsevlms_published_lists(tokens, totals, over_32):
    (stage,) = method("sparsevlm", tokens=tokens).stages(LLAVA_7B)
    assert stage.cuts == tuple(Cut(layer, total) for layer, total in zip((3, 7, 16), totals, strict=True))
    assert sum(tokens_per_layer([stage], LLAVA_7B).llm) == over_32
    assert round(over_32 / 32 + 1e-9) == {192: 207, 128: 145, 64: 82}[tokens]  # as the docstring says


def test_sparsevlms_lists_are_for_the_model_they_were_published_for():
    (stage,) = method("sparsevlm", tokens=192).stages(POCKET)
    assert [cut.layer for cut in stage.cuts] == [1, 2, 4]
    assert mean(tokens_per_layer([stage], POCKET).llm) == 192
    (kept,) = method("sparsevlm", tokens=72, budget="kept").stages(LLAVA_7B)
    assert kept.cuts == (Cut(3, 288), Cut(7, 144), Cut(16, 72))


# how budgets are spread


def test_tome_spreads_evenly_where_the_clamp_allows_it_and_front_loads_where_not():
    assert merge_cuts(23, 576, 64) == even_cuts(range(23), 576, 64)
    assert [cut.tokens for cut in merge_cuts(8, 576, 16)] == [486, 396, 306, 216, 126, 63, 32, 16]


@given(st.integers(1, 24), st.integers(1, 576), st.data())
def test_merges_never_more_than_halve_and_reach_the_budget(layers, before, data):
    after = data.draw(st.integers(1, before))
    try:
        cuts = merge_cuts(layers, before, after)
    except ValueError as error:
        smallest = int(re.search(r"allowed are (\d+) to", str(error))[1])
        assert after < smallest and merge_cuts(layers, before, smallest)[-1].tokens == smallest
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


def test_a_cut_before_a_layer_counts_there_and_one_inside_it_above():
    (before,) = method("topk", tokens=64).stages(POCKET)
    (inside,) = method("tome", tokens=64).stages(POCKET)
    assert before.cuts[0] == inside.cuts[0] == Cut(0, 512)
    assert tokens_per_layer((before,), POCKET).vit[:2] == (512, 448)
    assert tokens_per_layer((inside,), POCKET).vit[:2] == (576, 512)
