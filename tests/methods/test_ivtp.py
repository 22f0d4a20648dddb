"""IVTP and IVTP-V along every axis: where they cut, what they ask the engine for, and what guides them."""

import math
import re
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from methods import TRAINING_FREE, method
from methods.interface import Reading, Shape, View, Words
from methods.ivtp_v import REDUCE
from tests.methods import naive

LLAVA_7B = Shape(patches=576, vit_layers=23, llm_layers=32)
POCKET = Shape(patches=576, vit_layers=8, llm_layers=6)


def layers(shape: Shape = LLAVA_7B, **parameters: object) -> list[list[int]]:
    """The layers before which each stage of IVTP cuts."""
    stages = method("ivtp", tokens=64, **parameters).stages(shape)
    assert [stage.seam for stage in stages] == ["vit", "llm"]
    return [[cut.layer for cut in stage.cuts] for stage in stages]


def counts(tokens: int, shape: Shape = LLAVA_7B, **parameters: object) -> list[list[int]]:
    stages = method("ivtp", tokens=tokens, **parameters).stages(shape)
    return [[cut.tokens for cut in stage.cuts] for stage in stages]


# where


@pytest.mark.parametrize(
    ("group", "start", "vit", "llm"),
    [
        # 23 // group groups in the ViT and 12 // group in the LLM, at whose ends start, start + group, … is cut
        (2, 0, range(1, 22, 2), range(1, 12, 2)),
        (3, 0, range(1, 20, 3), [1, 4, 7, 10]),
        (4, 0, [1, 5, 9, 13, 17], [1, 5, 9]),
        (6, 0, [1, 7, 13], [1, 7]),
        (1, 0, range(1, 24), range(1, 13)),
        (12, 0, [1], [1]),
        (40, 0, [1], [1]),
        # the main text's reading: the first group is whole
        (2, 1, range(2, 23, 2), range(2, 13, 2)),
        (3, 2, [3, 6, 9, 12, 15, 18, 21], [3, 6, 9, 12]),
        (4, 3, [4, 8, 12, 16, 20], [4, 8, 12]),
        (6, 5, [6, 12, 18], [6, 12]),
        (3, 11, [12, 15, 18, 21], [12]),
        # one group of all layers: the features, and the first 12 LLM layers
        ("all", 0, [23], [12]),
        ("all", 2, [23], [12]),
    ],
)
def test_groups_end_where_it_is_cut(group, start, vit, llm):
    assert layers(group=group, start=start) == [[*vit], [*llm]]
    assert layers(group=group, start=start, scope="group-wise") == [[*vit], [*llm]]
    (alone,) = method("ivtp-v", tokens=64, group=group, start=start).stages(LLAVA_7B)
    assert [cut.layer for cut in alone.cuts] == [*vit]


@pytest.mark.parametrize("group", [3, "all"])
def test_layer_wise_cuts_after_every_layer(group):
    assert layers(scope="layer-wise", group=group) == [[*range(1, 24)], [*range(1, 13)]]
    assert layers(POCKET, scope="layer-wise", group=group) == [[*range(1, 9)], [*range(1, 6)]]


@pytest.mark.parametrize(
    ("llm_layers", "expected"),
    [
        (1, [1]),
        (3, [1]),
        (6, [1, 4]),
        (9, [1, 4, 7]),
        (12, [1, 4, 7, 10]),
        (15, [1, 4, 7, 10, 13]),
        (30, [1, 4, 7, 10, 13, 16, 19, 22, 25, 28]),
        (32, [1, 4, 7, 10, 13, 16, 19, 22, 25, 28]),
        (99, [1, 4, 7, 10, 13, 16, 19, 22, 25, 28]),  # all, where the model has fewer
    ],
)
def test_llm_layers_bounds_the_second_stage(llm_layers, expected):
    assert layers(llm_layers=llm_layers)[1] == expected
    assert layers(llm_layers=llm_layers)[0] == [1, 4, 7, 10, 13, 16, 19]


def test_nothing_is_cut_above_the_llms_last_layer():
    assert layers(llm_layers=32, group=4, start=3)[1] == [4, 8, 12, 16, 20, 24, 28]  # its last group would end at 32
    assert layers(llm_layers=32, group="all")[1] == [31]
    assert layers(llm_layers=32, scope="layer-wise")[1] == [*range(1, 32)]


def test_a_smaller_model_has_fewer_groups():
    assert layers(POCKET) == [[1, 4], [1, 4]]
    assert layers(POCKET, group="all") == [[8], [5]]


# how many


@pytest.mark.parametrize(
    ("tokens", "parameters", "between"),
    [
        (64, {}, 128),
        (1, {}, 2),
        (127, {}, 254),
        (128, {}, 576 - 285),  # 448 · 7/11 = 285.09 go in the ViT's 7 of 11 cuts
        (192, {}, 576 - 244),  # 384 · 7/11 = 244.4
        (576, {}, 576),
        (128, {"group": 6}, 576 - 269),  # 448 · 3/5 = 268.8
        (128, {"group": "all"}, 576 - 224),  # one cut each
        (128, {"scope": "layer-wise"}, 576 - 294),  # 448 · 23/35 = 294.4
        (64, {"tokens_into_llm": 64}, 64),
        (64, {"tokens_into_llm": 300}, 300),
        (192, {"tokens_into_llm": 576}, 576),
    ],
)
def test_tokens_between_the_stages(tokens, parameters, between):
    vit, llm = counts(tokens, **parameters)
    assert (vit[-1], llm[-1]) == (between, tokens)


def test_no_more_go_into_the_llm_than_there_are():
    vit, llm = counts(64, Shape(patches=100, vit_layers=23, llm_layers=32))
    assert vit == [100] * 7 and llm == [91, 82, 73, 64]


def test_every_cut_drops_the_same_number():
    assert counts(64) == [[512, 448, 384, 320, 256, 192, 128], [112, 96, 80, 64]]
    assert counts(136) == [list(range(536, 295, -40)), list(range(256, 135, -40))]
    assert counts(64, tokens_into_llm=64)[1] == [64] * 4
    assert counts(64, group="all") == [[128], [64]]
    (alone,) = method("ivtp-v", tokens=156).stages(LLAVA_7B)
    assert [cut.tokens for cut in alone.cuts] == [516, 456, 396, 336, 276, 216, 156]


# what it asks for


@pytest.mark.parametrize(
    ("parameters", "needs"),
    [
        ({}, ["cls_rollout", "rider_rollout"]),
        ({"group": "all"}, ["cls_rollout", "rider_rollout"]),
        ({"scope": "group-wise"}, ["cls_row", "rider_row"]),
        ({"scope": "layer-wise"}, ["cls_row", "rider_row"]),
        ({"aggregation": "mean"}, ["cls_rows", "rider_rows"]),
        ({"aggregation": "max"}, ["cls_rows", "rider_rows"]),
        ({"aggregation": "multiply"}, ["cls_rows", "rider_rows"]),
    ],
)
def test_a_stage_needs_the_attention_of_its_scope_and_aggregation(parameters, needs):
    stages = method("ivtp", tokens=64, **parameters).stages(LLAVA_7B)
    assert [stage.needs for stage in stages] == [{need, "value_norm"} for need in needs]
    (alone,) = method("ivtp-v", tokens=64, **parameters).stages(LLAVA_7B)
    assert alone.needs == {needs[0], "value_norm"}
    assert not any(stage.inside or stage.proportional or stage.adaptive for stage in stages)


@pytest.mark.parametrize("identity", [False, True])
def test_both_stages_begin_a_rollout_alike(identity):
    for name in ("ivtp", "ivtp-v"):
        assert {stage.identity for stage in method(name, tokens=64, identity=identity).stages(LLAVA_7B)} == {identity}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        # a group of two layers: .2 .4 .3 .1 and .3 .1 .2 .4, with norms 1, 1, 1, 2
        ({"aggregation": "mean"}, [0, 3]),  # .25 .25 .25 .5: the earlier of three that tie
        ({"aggregation": "max"}, [1, 3]),  # .3 .4 .3 .8
        ({"aggregation": "multiply"}, [0, 3]),  # .06 .04 .06 .08: the earlier of two that tie
    ],
)
def test_a_groups_attention_comes_together_element_by_element(parameters, expected):
    rows = torch.tensor([[[0.2, 0.4, 0.3, 0.1], [0.3, 0.1, 0.2, 0.4]]])
    view = View(x=torch.zeros(1, 4, 1), size=torch.ones(1, 4), rows=rows, value_norm=torch.tensor([[1.0, 1, 1, 2]]))
    for stage in method("ivtp", tokens=64, **parameters).stages(LLAVA_7B):
        assert stage.reduce(view, 2).index.tolist() == [expected]


# what guides it


def words(cosines: list[float], embeddings: list[list[float]] | None = None) -> Words:
    """CLIP features of two dimensions with the given cosines to the CLS; embeddings of one, powers of two."""
    features = torch.tensor([[c, math.sqrt(1 - c * c)] for c in cosines])
    spans = [(2 * i, 2 * i + 1) for i in range(len(cosines))]
    return Words(
        embeddings=torch.tensor(embeddings or [[2.0**i] for i in range(len(cosines))]),
        spans=spans,
        projected_cls=torch.tensor([-7.0] if embeddings is None else [1.0, 0.0]),
        clip=Reading(features, spans, cls=torch.tensor([1.0, 0.0]), lift=lambda joint: 100 * joint[..., :1]),
    )


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.15, (2.0 + 4.0) / 2),  # the second and third word
        (0.35, 4.0),  # the third alone
        (0.5, -7.0),  # Eq. 8's fallback: none is relevant, so the visual CLS
        (-1.0, (1.0 + 2.0 + 4.0) / 3),
    ],
)
def test_pseudo_cls_is_eq_8(threshold, expected):
    ivtp = method("ivtp", tokens=64, threshold=threshold)
    assert ivtp.guide(words([0.1, 0.2, 0.4])).state.tolist() == [pytest.approx(expected)]


def test_a_relevance_of_just_the_threshold_is_enough():
    assert method("ivtp", tokens=64, threshold=1).guide(words([0.5, 1.0])).guides == [(2, 3)]


@pytest.mark.parametrize(
    ("guidance", "pseudo_cls", "state", "guides"),
    [
        # relevance .1, .5, .3 of tokens 1, 2, 4; the visual CLS is −7
        ("none", "llm", -7, []),
        ("none", "as_token", -7, []),
        ("OTT", "llm", (1 + 2 + 4) / 3, [(0, 1), (2, 3), (4, 5)]),
        ("OTT", "hybrid", ((1 + 2 + 4) / 3 - 7) / 2, [(0, 1), (2, 3), (4, 5)]),
        ("OTT", "as_token", (1 + 2 + 4) / 3, [(0, 1), (2, 3), (4, 5)]),
        ("OTT+TE+RT", "llm", (2 + 4) / 2, [(2, 3), (4, 5)]),
        ("OTT+TE+RT", "as_token", (2 + 4) / 2, [(2, 3), (4, 5)]),
        ("OTT+TE+RT", "hybrid", ((2 + 4) / 2 - 7) / 2, [(2, 3), (4, 5)]),
        ("OTT+TE+RT", "clip", 100 * (0.5 + 0.3) / 2, [(2, 3), (4, 5)]),  # lifted
    ],
)
def test_what_guides(guidance, pseudo_cls, state, guides):
    guided = method("ivtp", tokens=64, guidance=guidance, pseudo_cls=pseudo_cls).guide(words([0.1, 0.5, 0.3]))
    assert guided.state.tolist() == [pytest.approx(state)]
    assert guided.guides == guides


@pytest.mark.parametrize("pseudo_cls", ["llm", "hybrid", "as_token"])
def test_without_the_text_encoder_relevance_is_the_cosine_of_the_llms_embeddings(pseudo_cls):
    # cosines to [1 0]: .8, 0, −1
    embeddings = [[4.0, 3.0], [0.0, 2.0], [-1.0, 0.0]]
    told = words([0.9, 0.9, 0.9], embeddings)._replace(clip=None)
    guided = method("ivtp", tokens=64, guidance="OTT+RT", pseudo_cls=pseudo_cls).guide(told)
    assert guided.state.tolist() == ([2.5, 1.5] if pseudo_cls == "hybrid" else [4.0, 3.0])
    assert guided.guides == [(0, 1)]


def test_clips_own_tokens_guide_where_the_llm_splits_otherwise():
    # the LLM has the whole as one token, CLIP two of relevance .1 and .5, whose mean is .3
    told = words([0.1, 0.5])._replace(embeddings=torch.tensor([[8.0]]), spans=[(0, 3)])
    by_llm, by_clip = (method("ivtp", tokens=64, pseudo_cls=kind).guide(told) for kind in ("llm", "clip"))
    assert (by_llm.state.tolist(), by_llm.guides) == ([8.0], [(0, 3)])
    assert (by_clip.state.tolist(), by_clip.guides) == ([pytest.approx(50.0)], [(2, 3)])


ALLOWED = [
    pair
    for pair in product(["none", "OTT", "OTT+RT", "OTT+TE+RT"], ["llm", "clip", "hybrid", "as_token"])
    if pair not in [("none", "hybrid"), *((guidance, "clip") for guidance in ("none", "OTT", "OTT+RT"))]
]


@pytest.mark.parametrize(("guidance", "pseudo_cls"), ALLOWED)
def test_with_no_relevant_word_or_no_question_the_visual_cls_guides(guidance, pseudo_cls):
    ivtp = method("ivtp", tokens=64, guidance=guidance, pseudo_cls=pseudo_cls, threshold=0.95)
    irrelevant = words([0.1, 0.2], [[0.0, 1.0], [-1.0, 0.0]])
    nothing = Reading(torch.empty(0, 2), [], torch.ones(2), lambda joint: joint)
    empty = irrelevant._replace(embeddings=torch.empty(0, 2), spans=[], clip=nothing)
    for told in [empty] if guidance == "OTT" else [irrelevant, empty]:
        guided = ivtp.guide(told)
        assert (guided.state.tolist(), guided.guides) == ([1.0, 0.0], [])


@pytest.mark.parametrize(("guidance", "pseudo_cls"), ALLOWED)
@given(seed=st.integers(0, 2**32 - 1), tokens=st.integers(1, 6), clip_tokens=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_guidance_equals_the_naive_one(guidance, pseudo_cls, seed, tokens, clip_tokens):
    generator = torch.Generator().manual_seed(seed)

    def spans(count):  # of 20 characters, one behind the other
        ends = torch.randperm(19, generator=generator)[: 2 * count].sort().values.tolist()
        return [(ends[2 * i], ends[2 * i + 1]) for i in range(count)]

    lifting = torch.randn(4, 3, generator=generator)
    told = Words(
        embeddings=torch.randn(tokens, 3, generator=generator),
        spans=spans(tokens),
        projected_cls=torch.randn(3, generator=generator),
        clip=Reading(
            features=torch.randn(clip_tokens, 4, generator=generator),
            spans=spans(clip_tokens),
            cls=torch.randn(4, generator=generator),
            lift=lambda joint: joint @ lifting,
        ),
    )
    ivtp = method("ivtp", tokens=64, guidance=guidance, pseudo_cls=pseudo_cls)
    state, guides = naive.guide(told, guidance=guidance, pseudo_cls=pseudo_cls, threshold=0.2)
    guided = ivtp.guide(told)
    assert_close(guided.state, torch.tensor(state))
    assert guided.guides == guides


@pytest.mark.parametrize(("guidance", "pseudo_cls"), ALLOWED)
def test_what_the_engine_is_asked_for_besides(guidance, pseudo_cls):
    ivtp = method("ivtp", tokens=64, guidance=guidance, pseudo_cls=pseudo_cls)
    assert ivtp.reads_clip == (guidance == "OTT+TE+RT")
    assert ivtp.inserts_pseudo_cls == (pseudo_cls == "as_token")
    alone = method("ivtp-v", tokens=64)
    assert not alone.reads_clip and not alone.inserts_pseudo_cls


# what is refused

CLIP = "pseudo_cls: clip needs CLIP's text encoder; allowed with guidance: OTT+TE+RT"
IDENTITY = "identity: it begins a rollout; allowed with aggregation: residual and scope: rollout"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"group": 0}, "group: 0 is not possible; allowed are 1 or more layers, and all"),
        ({"group": "every"}, "group: every is not possible; allowed are 1 or more layers, and all"),
        ({"start": -1}, "start: -1 is not possible; allowed are 0 or more"),
        ({"scope": "token-wise"}, "scope 'token-wise' is unknown; allowed are rollout, group-wise, layer-wise"),
        ({"aggregation": "sum"}, "aggregation 'sum' is unknown; allowed are residual, mean, max, multiply"),
        *(
            (
                {"aggregation": aggregation, "scope": scope},
                f"aggregation: {aggregation} is over a group's layers; scope: {scope} has one",
            )
            for aggregation in ("mean", "max", "multiply")
            for scope in ("group-wise", "layer-wise")
        ),
        ({"identity": True, "aggregation": "mean"}, IDENTITY),
        ({"identity": True, "scope": "group-wise"}, IDENTITY),
        ({"start": 23}, "start: 23 with group: 3 ends no group within 23 layers"),
        ({"tokens": 0}, "tokens: 0 is not possible; allowed are 1 to 576"),
        ({"tokens": 577}, "tokens: 577 is not possible; allowed are 1 to 576"),
    ],
)
@pytest.mark.parametrize("name", ["ivtp-v", "ivtp"])
def test_what_both_refuse(name, parameters, message):
    with pytest.raises(ValueError, match=f"{re.escape(message)}$"):
        method(name, **{"tokens": 64, **parameters}).stages(LLAVA_7B)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threshold": 1.5}, "threshold: 1.5 is not possible; a cosine is within -1 to 1"),
        ({"threshold": -1.5}, "threshold: -1.5 is not possible; a cosine is within -1 to 1"),
        ({"llm_layers": 0}, "llm_layers: 0 is not possible; allowed are 1 or more layers"),
        ({"tokens_into_llm": 63}, "tokens_into_llm: 63 is not possible; allowed are 64 or more"),
        ({"tokens_into_llm": 577}, "tokens_into_llm: 577 is not possible; allowed are 64 to 576"),
        ({"guidance": "RT"}, "guidance 'RT' is unknown; allowed are OTT+TE+RT, OTT+RT, OTT, none"),
        ({"pseudo_cls": "vit"}, "pseudo_cls 'vit' is unknown; allowed are llm, clip, hybrid, as_token"),
        ({"pseudo_cls": "clip", "guidance": "none"}, CLIP),
        ({"pseudo_cls": "clip", "guidance": "OTT"}, CLIP),
        ({"pseudo_cls": "clip", "guidance": "OTT+RT"}, CLIP),
        (
            {"pseudo_cls": "hybrid", "guidance": "none"},
            "pseudo_cls: hybrid needs a textual part; allowed with a guidance other than none",
        ),
        ({"start": 12}, "start: 12 with group: 3 ends no group within 12 layers"),
        ({"start": 3, "llm_layers": 3}, "start: 3 with group: 3 ends no group within 3 layers"),
    ],
)
def test_what_ivtp_refuses(parameters, message):
    with pytest.raises(ValueError, match=f"{re.escape(message)}$"):
        method("ivtp", **{"tokens": 64, **parameters}).stages(LLAVA_7B)


def test_stage_1_has_no_parameters_of_stage_2():
    with pytest.raises(
        ValueError, match="ivtp-v: 'threshold' is not a parameter; allowed are positions, tokens, group"
    ):
        method("ivtp-v", tokens=64, threshold=0.2)


def test_a_product_too_small_for_a_float_still_ranks():
    """23 layers: 1e-69 and less, of which a float holds nothing; the three largest are at 1, 3 and 4."""
    row = torch.tensor([1e-3, 5e-3, 2e-3, 6e-3, 4e-3, 3e-3])
    view = View(x=torch.zeros(1, 6, 1), size=torch.ones(1, 6), rows=row.expand(1, 23, 6), value_norm=torch.ones(1, 6))
    assert REDUCE["multiply"](view, 3).index.tolist() == [[1, 3, 4]]
    assert REDUCE["multiply"](view._replace(rows=torch.zeros(1, 23, 6)), 3).index.tolist() == [[0, 1, 2]]


def test_only_words_make_a_method_read_the_question():
    assert method("ivtp", tokens=9).reads_question and method("ivtp", tokens=9, guidance="OTT").reads_question
    assert not method("ivtp", tokens=9, guidance="none").reads_question
    assert not any(method(name, tokens=9).reads_question for name in TRAINING_FREE if name not in ("full", "ivtp"))
