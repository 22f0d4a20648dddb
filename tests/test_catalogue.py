import json

from harness.catalogue import catalogue
from methods import METHODS

ENTRIES = {entry["name"]: entry for entry in catalogue()}
TOKENS = {"name": "tokens", "type": "int", "allowed": "1 to all patches", "required": True, "default": None}


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
    assert [entry["name"] for entry in catalogue() if entry["trained"]] == ["lvpruning"]


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
        "lvpruning": ["llm"],
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
        {
            "name": "layer",
            "type": "int",
            "allowed": "1 to the LLM's last but one",
            "required": False,
            "default": 2,
        },
        {
            "name": "budget",
            "type": "mean or kept",
            "allowed": ["mean", "kept"],
            "required": False,
            "default": "mean",
        },
    ]
    assert ENTRIES["prumerge"]["parameters"] == [
        TOKENS | {"type": "int or null", "required": False},
        positions("contiguous"),
    ]
    squares = TOKENS | {"allowed": "squares, 1 to all patches"}
    assert ENTRIES["downsample"]["parameters"] == [squares, positions("contiguous")]


def test_types_as_one_says_them():
    ivtp = parameters("ivtp")
    ranges = {n: (p["type"], p["allowed"]) for n, p in ivtp.items() if not isinstance(p["allowed"], list)}
    assert ranges == {
        "tokens": ("int", "1 to all patches"),
        "group": ("int or all", "1 or more"),
        "start": ("int", "0 or more"),
        "identity": ("bool", None),
        "threshold": ("float", "-1 to 1"),
        "llm_layers": ("int", "1 or more"),
        "tokens_into_llm": ("int or null", "tokens to all patches"),
    }
    assert ivtp["pseudo_cls"]["allowed"] == ["llm", "clip", "hybrid", "as_token"]
    assert (ivtp["group"]["default"], ivtp["identity"]["default"], ivtp["tokens_into_llm"]["default"]) == (
        3,
        False,
        None,
    )
