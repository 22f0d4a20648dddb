"""Trains pocket LLaVA from nothing: `python -m harness.pocket.train --out FOLDER`; goes on where it was stopped.

Three stages: the ViT and CLIP's text on foreground patches, the same on all 576 patches, then projector and LLM on the
features of the finished ViT. Scene seeds: training from 0, validation from 10 million, test from 20 million.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from harness.pocket import export, train_language, train_vision
from harness.pocket.questions import FAMILIES, caption
from harness.pocket.scenes import scene
from harness.pocket.tokenization import clip_tokenizer, llm_tokenizer

VALIDATION, TEST = 10_000_000, 20_000_000


def training_texts(scenes: int = 500) -> list[str]:
    """Return the captions and questions of the first training scenes, on which CLIP's tokenizer is trained."""
    rng = np.random.default_rng(0)
    texts = []
    for seed in range(scenes):
        picture = scene(seed)
        asked = [family(picture, rng) for family in FAMILIES.values()]
        texts += [caption(picture), *(question.text for question in asked if question is not None)]
    return texts


def main(
    out: Annotated[Path, typer.Option(help="checkpoints, logs and the finished model go here")] = Path("runs/pocket"),
    seed: int = 0,
    foreground_steps: int = 1800,
    full_steps: int = 500,
    pictures: int = 6000,
    align_steps: int = 400,
    language_steps: int = 4500,
) -> None:
    """Train, resume or finish pocket LLaVA."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    first = seed * 1_000_000
    tokenizer = clip_tokenizer(training_texts())
    clip, heads = train_vision.new_model(tokenizer), train_vision.Heads()
    train_vision.train(
        clip,
        heads,
        tokenizer,
        steps=foreground_steps,
        batch=48,
        patches=112,
        first=first,
        lr=0.02,
        folder=out / "foreground",
    )
    if not (out / "full" / "checkpoint.pt").exists():
        # Attention that was trained on 112 tokens dilutes over 576; sharper queries recover most of it at once.
        for layer in clip.vision_model.encoder.layers:
            layer.self_attn.q_proj.weight.data.mul_(1.8)
            layer.self_attn.q_proj.bias.data.mul_(1.8)
    train_vision.train(
        clip,
        heads,
        tokenizer,
        steps=full_steps,
        batch=16,
        patches=576,
        first=first + 500_000,
        lr=0.008,
        folder=out / "full",
    )

    words = llm_tokenizer()
    data = train_language.Features(clip.eval(), first, pictures)
    llava = train_language.new_model(words, clip)
    if not (out / "language" / "checkpoint.pt").exists():
        train_language.align(llava, words, data, align_steps)
    train_language.train(llava, words, data, steps=language_steps, seed=seed, lr=0.01, folder=out / "language")
    export.write(llava, words, clip, tokenizer, out / "weights")


if __name__ == "__main__":
    typer.run(main)
