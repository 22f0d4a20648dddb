import json

from harness.catalogue import catalogue
from methods import METHODS

ENTRIES = {entry["name"]: entry for entry in catalogue()}
TOKENS = {"name": "tokens", "type": "int", "allowed": None, "required": True, "default": None}


def positions(default):
    allowed = ["original", "contiguous"]
    kind = "original or contiguous"
    return {"name": "positions", "type": kind, "allowed": allowed, "required": False, "default": default}


def parameters(name):
    return {parameter["name"]: parameter for parameter in ENTRIES[name]["parameters"]}


def test_every_method_is_there_in_the_table_s_order():
    assert [entry["name"] for entry in catalogue()] == list(METHODS)
    assert json.loads(json.dumps(catalogue())) == catalogue()
    assert all(entry["summary"].endswith(".") and entry["paper"] for entry in catalogue())
    assert not any(entry["trained"] for entry in catalogue())


def test_seams_come_in_the_order_of_the_data():
    assert {name: entry["seams"] for name, entry in ENTRIES.items()} == {
        "full": [],
        "random": ["vit"],
        "pooling": ["input"],
        "downsample": ["image"],
        "topk": ["vit"],
        "evit": ["vit"],
        "tome": ["vit"],
        "prumerge": ["vit"],
        "prumerge+": ["vit"],
        "visionzip": ["vit"],
        "divprune": ["input"],
        "fastv": ["llm"],
        "pyramiddrop": ["llm"],
        "sparsevlm": ["llm"],
        "topk+": ["vit", "llm"],
        "tome+": ["vit", "llm"],
        "ivtp-v": ["vit"],
        "ivtp": ["vit", "llm"],
    }


def test_positions_are_the_method_s_own():
    renumbered = {name for name, entry in ENTRIES.items() if entry["positions"] == "contiguous"}
    merging = {"pooling", "downsample", "prumerge", "prumerge+", "visionzip", "divprune"}
    assert renumbered == merging | {"pyramiddrop", "sparsevlm"}
    assert all(parameters(name)["positions"]["default"] == ENTRIES[name]["positions"] for name in METHODS)


def test_whole_entries():
    assert ENTRIES["full"] == {
        "name": "full",
        "paper": "control",
        "summary": "All visual tokens, the unpruned model.",
        "trained": False,
        "seams": [],
        "positions": "original",
        "parameters": [positions("original")],
    }
    assert ENTRIES["fastv"]["parameters"] == [
        TOKENS,
        positions("original"),
        {"name": "layer", "type": "int", "allowed": None, "required": False, "default": 2},
        {
            "name": "budget",
            "type": "mean or kept",
            "allowed": ["mean", "kept"],
            "required": False,
            "default": "mean",
        },
    ]
    assert ENTRIES["prumerge"]["parameters"] == [
        {"name": "tokens", "type": "int or null", "allowed": None, "required": False, "default": None},
        positions("contiguous"),
    ]
    assert ENTRIES["downsample"]["parameters"] == [TOKENS, positions("contiguous")]


def test_types_as_one_says_them():
    ivtp = parameters("ivtp")
    assert {name: parameter["type"] for name, parameter in ivtp.items() if parameter["allowed"] is None} == {
        "tokens": "int",
        "group": "int or all",
        "start": "int",
        "identity": "bool",
        "threshold": "float",
        "llm_layers": "int",
        "tokens_into_llm": "int or null",
    }
    assert ivtp["pseudo_cls"]["allowed"] == ["llm", "clip", "hybrid", "as_token"]
    assert (ivtp["group"]["default"], ivtp["identity"]["default"], ivtp["tokens_into_llm"]["default"]) == (
        3,
        False,
        None,
    )
