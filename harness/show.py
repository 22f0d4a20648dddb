"""Asks a model about an image with methods attached and draws what each keeps of it, as IVTP's Figure 5 does."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import torch
from PIL import Image, ImageOps

from harness.asked import method_of
from harness.errors import VtbenchError
from harness.model.attach import attach
from harness.model.guide import question
from harness.model.ledger import Ledger
from harness.model.load import RANDOM, shape_of
from harness.panels import Panel, Strip, draw
from harness.store import write_atomically
from methods.interface import Method, Need, Shape

if TYPE_CHECKING:
    from harness.lmms.model import VtBench

FORMATS = (".png", ".pdf", ".svg")
COLUMNS = 4
NARROWEST = 100  # the processor makes the shorter side the tower's: a thread of an image would become huge
NEW_TOKENS = 64
READS_THE_PROMPT: frozenset[Need] = frozenset({"last_row", "next_last_row", "rater_row"})


class Asked(NamedTuple):
    """A method as it is asked for, and as the picture calls it."""

    label: str
    method: Method


def show(
    image: Path,
    ask: str,
    methods: list[str],
    out: Path,
    *,
    tokens: int | None = None,
    model: str = "pocket",
    text_encoder: str | None = None,
    seed: int = 0,
) -> None:
    """Draw the whole image and what each method keeps of it, and write that to `out`.

    methods: `name` or `name:key=value,key=value`; tokens: the budget of those that set none.
    Errors: VtbenchError, before anything is written.
    """
    check_place(out, image)
    if not ask.strip():
        raise VtbenchError("--question: is empty")
    picture = open_image(image)
    shape = shape_of(model)
    asked = [read_method(text, tokens, shape) for text in ("full", *methods)]
    if model in RANDOM and model != "random:pocket":  # told before its weights are made
        raise VtbenchError(f"--model: {model!r} has no processor, so it cannot answer; it serves for costs only")
    from harness.lmms.images import unnormalised
    from harness.lmms.model import VtBench  # takes seconds, a mistake need not wait for it

    reads_clip = any(each.method.reads_clip for each in asked)
    lm = VtBench(model, asked[0].method, seed=seed, text_encoder=text_encoder if reads_clip else None)
    inputs = lm.inputs([lm.prompt(ask, 1)], [picture])
    panels = [look(lm, each, inputs) for each in asked]
    seen = unnormalised(inputs["pixel_values"][0], lm.loaded.processor.image_processor)
    strip = Strip(seen, lm.loaded.model.config.vision_config.patch_size, panels)
    figure = draw([strip], f"Model: {model}.", columns=COLUMNS)
    kind = out.suffix.lower()[1:]
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    try:
        with matplotlib.rc_context({"svg.hashsalt": "vtbench"}):
            write_atomically(out, lambda path: figure.savefig(path, format=kind, facecolor="white", metadata=metadata))
    except OSError as error:
        raise VtbenchError(f"{out}: {(error.strerror or str(error)).lower()}") from None


def check_place(out: Path, image: Path) -> None:
    """Refuse a place where the figure cannot go. Errors: VtbenchError."""
    if out.suffix.lower() not in FORMATS:
        raise VtbenchError(f"{out}: {out.suffix or 'no extension'} is not possible; allowed are {', '.join(FORMATS)}")
    try:
        if out.is_dir() or not out.parent.is_dir():
            raise VtbenchError(f"{out}: {'is a folder' if out.is_dir() else f'there is no folder {out.parent}'}")
        if out.exists() and image.exists() and out.samefile(image):
            raise VtbenchError(f"{out}: is the image itself")
    except OSError as error:
        raise VtbenchError(f"{out}: {(error.strerror or str(error)).lower()}") from None


def read_method(text: str, tokens: int | None, shape: Shape) -> Asked:
    """Read `name` or `name:key=value,key=value`. Errors: VtbenchError for what is unknown or impossible."""
    name, _, given = text.partition(":")
    pairs = given.split(",") if given else []
    wrong = f"--method: {text!r} is not possible; it should be name or name:key=value,key=value"
    method = method_of(name, pairs, tokens, shape, not_pairs=wrong)
    return Asked(", ".join([name, *(pair.replace("=", " ") for pair in pairs if pair)]), method)


def open_image(path: Path) -> Image.Image:
    """Return an image file's first frame as people see it, in RGB. Errors: VtbenchError for what is no such image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                mode = file.mode
                picture = ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError:
        raise VtbenchError(f"{path}: there is no such file") from None
    except Image.UnidentifiedImageError:
        raise VtbenchError(f"{path}: is not an image that can be read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise VtbenchError(f"{path}: is too large; allowed are {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except Exception as error:  # decoders raise what they like at a damaged file
        reason = ((getattr(error, "strerror", None) or "").lower() or str(error) or type(error).__name__).splitlines()[
            0
        ]
        raise VtbenchError(f"{path}: cannot be read: {reason}") from None
    if mode[0] in "IF":  # Pillow would clip them to white
        raise VtbenchError(f"{path}: has more than 8 bits a channel ({mode}); allowed are 8")
    if max(picture.size) > NARROWEST * min(picture.size):
        width, height = picture.size
        raise VtbenchError(f"{path}: {width}×{height} pixels are too narrow; allowed are sides up to 1:{NARROWEST}")
    return picture


def look(lm: "VtBench", asked: Asked, inputs: Any) -> Panel:
    """Have the model answer a prompt with the method attached, and note what it kept and by which words."""
    loaded, method = lm.loaded, asked.method
    tokenizer = loaded.processor.tokenizer
    with (
        attach(loaded.model, method, text_encoder=lm.encoder, tokenizer=tokenizer, seed=lm.seed) as attached,
        torch.inference_mode(),
    ):
        new = loaded.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1)
    answer = tokenizer.decode(new[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ledger = attached.ledger
    (kept,) = ledger.kept
    (merged,) = ledger.merged
    ids = inputs["input_ids"][0]
    text, _, _ = question(tokenizer, tuple(ids[ids != loaded.model.config.image_token_id].tolist()))
    return Panel(
        label=asked.label,
        tokens=len(kept),
        merged=merged,
        kept=kept.tolist(),
        answer=answer.strip(),
        question=text,
        spans=ledger.guides[0].spans if ledger.guides else [],
        note=_note(method, loaded.shape, ledger),
    )


def _note(method: Method, shape: Shape, ledger: Ledger) -> str:
    """Say what the choice was guided by."""
    if ledger.guides and ledger.guides[0].spans:
        return "the marked words guide"
    if ledger.guides:
        return ("no word was relevant: " if method.reads_question else "") + "the visual CLS guides"
    if any(stage.needs & READS_THE_PROMPT for stage in method.stages(shape)):
        return "guided by attention from the prompt"
    return "" if method.name == "full" else "not guided by the question"
