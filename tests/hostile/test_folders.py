"""Model folders, text encoders and results that are not what they should be: one line, and none of their code runs."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.errors import VtbenchError
from harness.model.load import config_of, load
from harness.model.openclip import from_open_clip
from harness.model.text import load_text_encoder
from harness.pocket import WEIGHTS

CONFIG = json.loads((WEIGHTS / "config.json").read_text())
CODE = {"auto_map": {"AutoConfig": "evil.EvilConfig"}}


class Evil:
    """A pickle that leaves a file when it is loaded."""

    def __reduce__(self):
        return (open, ("owned", "w"))


def folder(here: Path, config: object = CONFIG, weights: str | bytes | None = "good", **files: object) -> Path:
    """Make a model's folder: its config, weights that are good, these bytes or none, and further JSON files."""
    made = here / "folder"
    made.mkdir()
    if weights == "good":
        save_file({"a": torch.zeros(1)}, made / "model.safetensors")
    elif isinstance(weights, bytes):
        (made / "model.safetensors").write_bytes(weights)
    for name, content in {"config": config, **files}.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (made / f"{name}.json").write_text(text)
    return made


def with_tower(tower: str, **sizes: object) -> dict[str, object]:
    return CONFIG | {tower: CONFIG[tower] | sizes}


HEADER = (64).to_bytes(8, "little")
CONFIGS = {
    "not_json": ("model: llava\n", "folder/config.json: not JSON: Expecting value: line 1 column 1"),
    "half_of_json": ('{"model_type": "llava"', "folder/config.json: not JSON: Expecting ',' delimiter"),
    "deep": ("[" * 100_000, "folder/config.json: not JSON: "),
    "a_list": ([CONFIG], "folder/config.json: is not a mapping of keys to values"),
    "empty": ({}, "folder/config.json: model_type: None is not possible; allowed is llava"),
    "another_type": (
        {"model_type": "bert"},
        "folder/config.json: model_type: 'bert' is not possible; allowed is llava",
    ),
    "a_tower_that_is_a_list": (
        CONFIG | {"text_config": []},
        "folder/config.json: text_config: [] is not possible; it should be a mapping",
    ),
    "absurd_width": (
        with_tower("text_config", hidden_size=10**15),
        "folder/config.json: text_config.hidden_size: 1000000000000000 is not possible; allowed are 1 to 200,000",
    ),
    "absurd_depth": (
        with_tower("vision_config", num_hidden_layers=10**9),
        "folder/config.json: vision_config.num_hidden_layers: 1000000000 is not possible; allowed are 1 to 2,000",
    ),
    "no_layers": (
        with_tower("text_config", num_hidden_layers=0),
        "folder/config.json: text_config.num_hidden_layers: 0 is not possible; allowed are 1 to 2,000",
    ),
    "a_size_that_is_a_word": (
        with_tower("vision_config", image_size="large"),
        "folder/config.json: vision_config.image_size: 'large' is not possible; allowed are 1 to 10,000",
    ),
    "infinite_size": (
        with_tower("vision_config", image_size=float("inf")),
        "folder/config.json: vision_config.image_size: inf is not possible; allowed are 1 to 10,000",
    ),
    "code_of_its_own": (
        CONFIG | CODE,
        "folder/config.json: auto_map: names code of its own, which runs only with trust_remote_code: true",
    ),
    "code_of_another_type": (
        {"model_type": "evil"} | CODE,
        "folder/config.json: auto_map: names code of its own, which runs only with trust_remote_code: true",
    ),
}
INDEX = "folder/model.safetensors.index.json: weight_map: "
WEIGHT_FILES = {
    "a_pickle": (pickle.dumps(Evil()), "folder/model.safetensors: is not a safetensors file: "),
    "empty": (b"", "folder/model.safetensors: is not a safetensors file: "),
    "absurd_header": (b"\xff" * 64, "folder/model.safetensors: is not a safetensors file: "),
    "header_without_json": (HEADER + b"x" * 64, "folder/model.safetensors: is not a safetensors file: "),
    "none": (None, "folder: has no model.safetensors; allowed are weights as safetensors"),
}
INDICES = {
    "path_up": ({"weight_map": {"a": "../../x.safetensors"}}, INDEX + "'../../x.safetensors' is not possible"),
    "pickles": ({"weight_map": {"a": "pytorch_model-1.bin"}}, INDEX + "'pytorch_model-1.bin' is not possible"),
    "numbers": ({"weight_map": {"a": 7}}, INDEX + "'7' is not possible"),
    "no_shard": ({"weight_map": {"a": "b.safetensors"}}, "folder: has no b.safetensors; allowed are weights as"),
    "no_map": ({"metadata": {}}, INDEX + "is missing or empty"),
    "not_json": ("{", "folder/model.safetensors.index.json: not JSON: "),
}


@pytest.fixture
def run(here, refused):
    """Run a sweep with the folder as its model, which must be refused."""

    def with_folder(text: str = "model: ./folder\ntasks: pocketvqa\nmethods: full\n") -> str:
        (here / "x.yaml").write_text(text)
        return refused("run", "x.yaml")

    return with_folder


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config(here, run, case):
    config, says = CONFIGS[case]
    folder(here, config)
    assert run().startswith(f"x.yaml:model: {says}")


@pytest.mark.parametrize("case", WEIGHT_FILES)
def test_weights(here, run, case):
    weights, says = WEIGHT_FILES[case]
    made = folder(here, weights=weights)
    assert run().startswith(f"x.yaml:model: {says}")
    with pytest.raises(VtbenchError):
        load(str(made))
    assert not (here / "owned").exists()


@pytest.mark.parametrize("case", INDICES)
def test_an_index_of_weights(here, run, case):
    index, says = INDICES[case]
    folder(here, weights=None, **{"model.safetensors.index": index})
    assert run().startswith(f"x.yaml:model: {says}")


def test_pickled_weights_alone(here, run):
    (folder(here, weights=None) / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    says = (
        "folder: has no model.safetensors, and pytorch_model.bin is a pickle, which may run code; allowed are weights"
    )
    assert run().startswith(f"x.yaml:model: {says}")
    assert not (here / "owned").exists()


def test_links_and_files_that_are_none(here, run):
    made = folder(here)
    (made / "model.safetensors").unlink()
    (made / "model.safetensors").symlink_to("/dev/zero")
    assert run() == "x.yaml:model: folder/model.safetensors: is no file, nor a link to one"
    (made / "config.json").unlink()
    (made / "config.json").symlink_to("/etc/passwd")
    line = run()
    assert line.startswith("x.yaml:model: folder/config.json: not JSON: ") and "root" not in line
    with (made / "huge.json").open("wb") as file:
        file.truncate(10 * 2**30)
    (made / "config.json").unlink()
    (made / "config.json").symlink_to("huge.json")
    assert "config.json: has 10,737,418,240 bytes; allowed are at most" in run()
    (here / "file").write_text("")
    line = run("model: ./file\ntasks: pocketvqa\nmethods: full\n")
    assert line.startswith("x.yaml:model: './file' is not a model; allowed are pocket")


@pytest.mark.parametrize("name", ["processor_config", "tokenizer_config", "preprocessor_config"])
def test_code_of_a_processor(here, run, name):
    folder(here, **{name: {"auto_map": {"AutoProcessor": "evil.Evil"}}})
    says = f"folder/{name}.json: auto_map: names code of its own, which runs only with trust_remote_code: true"
    assert run() == f"x.yaml:model: {says}"


@pytest.mark.parametrize(
    ("config", "weights", "says"),
    [
        ({"model_type": "clip"} | CODE, "good", "folder/config.json: auto_map: names code of its own"),
        ({"model_type": "t5"}, "good", "folder/config.json: model_type: 't5' is not possible; allowed is clip"),
        ({"model_type": "clip"}, pickle.dumps(Evil()), "folder/model.safetensors: is not a safetensors file"),
        ({"model_type": "clip"}, None, "folder: has no model.safetensors; allowed are weights as safetensors"),
    ],
    ids=["code", "another_type", "a_pickle", "no_weights"],
)
def test_a_text_encoder(here, run, config, weights, says):
    made = folder(here, config, weights)
    text = "model: pocket\ntasks: pocketvqa\nmethods: full\ntext_encoder: ./folder\n"
    assert run(text).startswith(f"x.yaml:text_encoder: {says}")
    with pytest.raises(VtbenchError):
        load_text_encoder(str(made))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # open_clip's
def test_a_pickled_open_clip_runs_nothing(here):
    (here / "clip.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        from_open_clip("ViT-B-32", str(here / "clip.pt"))
    assert not (here / "owned").exists()


EVIL = """
open("owned", "w").close()
from transformers import LlavaConfig
class EvilConfig(LlavaConfig):
    pass
"""


def test_code_runs_only_where_it_is_trusted_and_is_warned_of(here, capsys, monkeypatch):
    made = folder(here, CONFIG | {"model_type": "evil"} | CODE)
    (made / "evil.py").write_text(EVIL)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(here / "modules"))
    with pytest.raises(VtbenchError, match="auto_map: names code of its own, which runs only with trust_remote_code"):
        config_of(str(made))
    assert not (here / "owned").exists() and capsys.readouterr().err == ""
    config_of(str(made), trust_remote_code=True)
    warning = "names code of its own (auto_map), which trust_remote_code lets run"
    assert (here / "owned").exists() and capsys.readouterr().err == f"vtbench: warning: {made}/config.json {warning}\n"
