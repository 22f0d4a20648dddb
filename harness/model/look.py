"""What a model's name and its folder's files say: no torch, which takes seconds, and none of its code.

Files of a folder may be links, as in the hub's cache.
"""

import json
import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import VtbenchError
from harness.pocket import WEIGHTS
from harness.reading import brief

SHAPES = ("llava-1.5-7b", "llava-1.5-13b")  # of which shapes.py has the configs
RANDOM = ("random:pocket", *(f"random:{name}" for name in SHAPES))
KNOWN = ("pocket", *RANDOM, *SHAPES)
HUB_ID = r"[\w.-]+/[\w.-]+"
RANDOM_CLIP = "random:clip-vit-large-patch14-336"
OPEN_CLIP = "open_clip:"

BEFORE_IMAGE = 1  # text tokens in front of the image: LLaVA-1.5's begin-of-sequence

LARGEST_JSON = 16 * 2**20  # bytes of a config or an index
# What a config may ask for: ten times the largest models there are.
TOWER = {
    "hidden_size": 200_000,
    "intermediate_size": 1_000_000,
    "num_hidden_layers": 2_000,
    "num_attention_heads": 2_000,
}
SIZES = {
    "text_config": TOWER | {"vocab_size": 10_000_000},
    "vision_config": TOWER | {"image_size": 10_000, "patch_size": 10_000},
}


def look_at_model(name: str, *, trust_remote_code: bool = False) -> None:
    """Refuse a name that is no model's, and a folder that is none or has no safetensors. Errors: VtbenchError."""
    look_at_name(name)
    if name not in KNOWN and Path(name).is_dir():
        look_at_config(name, trust_remote_code=trust_remote_code)
        look_at_weights(Path(name))


def look_at_name(name: str) -> None:
    """Refuse a name that is no model's. Errors: VtbenchError with the nearest that are."""
    if name in KNOWN or Path(name).is_dir():
        return
    if Path(name).exists():
        raise no_model(name, "a file of that name is no model's folder")
    if not re.fullmatch(HUB_ID, name):
        raise no_model(name, "no folder has that name, and a hub id is owner/name")


def look_at_config(name: str, *, trust_remote_code: bool = False) -> None:
    """Refuse a local folder whose config is no LLaVA's, or impossible. Errors: VtbenchError."""
    folder = Path(name)
    if not (folder / "config.json").exists():
        raise no_model(name, "the folder has no config.json")
    config = _read(folder / "config.json")
    for file in ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (folder / file).exists():
            check_code(f"{folder / file}", _read(folder / file), trust_remote_code=trust_remote_code)
    if config.get("model_type") != "llava" and "auto_map" not in config:
        raise VtbenchError(
            f"{folder / 'config.json'}: model_type: {brief(config.get('model_type'))} is not possible; allowed is llava"
        )
    for tower in SIZES:
        if not isinstance(config.get(tower, {}), dict):
            raise VtbenchError(
                f"{folder / 'config.json'}: {tower}: {brief(config[tower])} is not possible; it should be a mapping"
            )
        check_sizes(f"{folder / 'config.json'}", tower, config.get(tower, {}))


def limits(name: str) -> tuple[int | None, int | None]:
    """Return a model's patches and the text tokens that it has positions for beside them, as far as it is local."""
    if name.removeprefix("random:") in SHAPES:
        return 576, 4096 - 576
    folder = WEIGHTS if name in ("pocket", "random:pocket") else Path(name)
    config = _read(folder / "config.json") if folder.is_dir() else {}
    vision, text = config.get("vision_config", {}), config.get("text_config", {})
    if not {"image_size", "patch_size"} <= vision.keys():
        return None, None
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    positions = text.get("max_position_embeddings")
    return patches, positions - patches if type(positions) is int else None


def check_text(model: str, text_tokens: int, most: int, *, place: str = "--text-tokens") -> None:
    """Refuse a text for which there are no positions beside the unpruned image. Errors: VtbenchError."""
    if not BEFORE_IMAGE < text_tokens <= most:
        raise VtbenchError(
            f"{place}: {text_tokens} is not possible; allowed are {BEFORE_IMAGE + 1} to {most}, "
            f"for which {model} has positions beside the image"
        )


def look_at_text_encoder(name: str) -> None:
    """Refuse a name that is no text encoder's, and a folder that holds none. Errors: VtbenchError."""
    if name.startswith(OPEN_CLIP):
        architecture, _, pretrained = name.removeprefix(OPEN_CLIP).partition("/")
        if not pretrained:
            raise VtbenchError(f"{brief(name)} is not possible: it names no weights for {architecture}")
        path = Path(pretrained)
        if path.is_dir() and not (path / "open_clip_config.json").exists():
            raise VtbenchError(
                f"{path}: has no open_clip_config.json; allowed are a tag, a checkpoint or such a folder"
            )
        if path.suffix == ".safetensors" and path.exists():
            _check_tensors(path)
        return
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise VtbenchError(f"{folder}: has no config.json; allowed is the folder of a CLIP")
        config = _read(folder / "config.json")
        check_code(f"{folder / 'config.json'}", config, trust_remote_code=False)
        if config.get("model_type") != "clip":
            raise VtbenchError(
                f"{folder / 'config.json'}: model_type: {brief(config.get('model_type'))} is not "
                "possible; allowed is clip"
            )
        look_at_weights(folder)
    elif name != RANDOM_CLIP and not re.fullmatch(HUB_ID, name):
        raise VtbenchError(
            f"{brief(name)} is not possible; allowed are a CLIP's hub id or local folder with safetensors, "
            f"open_clip:ARCHITECTURE/PRETRAINED, {RANDOM_CLIP}"
        )


def look_at_weights(folder: Path) -> None:
    """Refuse a folder without weights as safetensors, reading their headers alone. Errors: VtbenchError."""
    index = folder / "model.safetensors.index.json"
    files = [folder / "model.safetensors"]
    if not files[0].exists() and index.exists():
        shards = _read(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise VtbenchError(f"{index}: weight_map: is missing or empty")
        for shard in sorted(set(map(str, shards.values()))):
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise VtbenchError(
                    f"{index}: weight_map: {brief(shard)} is not possible; allowed are the names of "
                    "safetensors beside it"
                )
        files = [folder / shard for shard in sorted(set(shards.values()))]
    for file in files:
        if not file.exists():
            pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl"))
            instead = f", and {pickles[0]} is a pickle, which may run code" if pickles else ""
            raise VtbenchError(f"{folder}: has no {file.name}{instead}; allowed are weights as safetensors")
        _check_tensors(file)


def check_code(file: str, config: Mapping[str, Any], *, trust_remote_code: bool) -> None:
    """Refuse a config that names code of its own to run, or warn of it where that is trusted. Errors: VtbenchError."""
    if not config.get("auto_map"):
        return
    if not trust_remote_code:
        raise VtbenchError(f"{file}: auto_map: names code of its own, which runs only with trust_remote_code: true")
    _warn(file)


@cache
def _warn(file: str) -> None:
    print(
        f"vtbench: warning: {file} names code of its own (auto_map), which trust_remote_code lets run", file=sys.stderr
    )


def check_sizes(file: str, tower: str, config: Mapping[str, Any]) -> None:
    """Refuse sizes of one tower that no model has, some of which transformers lets through. Errors: VtbenchError."""
    for key, most in SIZES[tower].items():
        value = config.get(key, 1)
        if type(value) is not int or not 1 <= value <= most:
            raise VtbenchError(f"{file}: {tower}.{key}: {brief(value)} is not possible; allowed are 1 to {most:,}")


def no_model(name: str, reason: str) -> VtbenchError:
    """Return the error for a name that is no model's."""
    near = get_close_matches(name[:100], KNOWN, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return VtbenchError(
        f"{brief(name)} is not a model; {hint}allowed are {', '.join(KNOWN)}, a local folder or a hub id ({reason})"
    )


def _read(path: Path) -> dict[str, Any]:
    """Return a file's JSON object. Errors: VtbenchError."""
    _regular(path)
    if path.stat().st_size > LARGEST_JSON:
        raise VtbenchError(f"{path}: has {path.stat().st_size:,} bytes; allowed are at most {LARGEST_JSON:,}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise VtbenchError(f"{path}: not JSON: {error}") from None
    except OSError as error:
        raise VtbenchError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    if not isinstance(value, dict):
        raise VtbenchError(f"{path}: is not a mapping of keys to values")
    return value


def _check_tensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    _regular(path)
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise VtbenchError(f"{path}: is not a safetensors file: {error}") from None


def _regular(path: Path) -> None:
    if not path.is_file():
        raise VtbenchError(f"{path}: is no file, nor a link to one")
