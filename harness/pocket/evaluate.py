"""Measures exported weights on PocketVQA's test split, all 576 tokens: `python -m harness.pocket.evaluate`.

Hugging Face's own `generate`, no engine of ours: the numbers of the model card. Also CLIP's token relevance.
"""

import io
import re
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata
from transformers import AutoProcessor, AutoTokenizer, CLIPModel, LlavaForConditionalGeneration

from harness.lmms.pictures import pictures as png_by_seed
from harness.pocket import WEIGHTS
from harness.pocket.data import FOLDER, Row
from harness.pocket.questions import FAMILIES, visible_words
from harness.pocket.scenes import SIZES, scene

PROMPT = "USER: <image>\n{} ASSISTANT:"
BATCH = 20


def rows(family: str, limit: int | None = None) -> list[Row]:
    """Return a family's test questions, the first `limit` of them."""
    table: list[Row] = pq.read_table(FOLDER / f"{family}.parquet").to_pylist()
    return table[:limit]


def pictures() -> dict[int, Image.Image]:
    """Return the test pictures by scene seed."""
    return {seed: Image.open(io.BytesIO(png)) for seed, png in png_by_seed().items()}


@torch.inference_mode()
def answers(weights: Path, asked: list[Row]) -> list[str]:
    """Return what the model generates for each question, at most 4 tokens."""
    model: Any = LlavaForConditionalGeneration.from_pretrained(weights, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(weights)
    images = pictures()
    given: list[str] = []
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        inputs = processor(
            images=[images[int(row["image_id"])] for row in batch],
            text=[PROMPT.format(row["question"]) for row in batch],
            padding=True,
            return_tensors="pt",
        )
        new = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        given += processor.batch_decode(new, skip_special_tokens=True)
    return given


@torch.inference_mode()
def relevance(weights: Path, asked: list[Row]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return, per question token, its cosine with the visual CLS and whether its word names something seen.

    Left out are "small" and "large", which neither name a thing nor fail to describe one, and the options of `choice`.
    """
    clip = CLIPModel.from_pretrained(weights / "clip", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(weights / "clip")
    images = AutoProcessor.from_pretrained(weights).image_processor
    by_seed = pictures()
    cosines: list[float] = []
    labels: list[bool] = []
    for row in asked:
        seed, text = int(row["image_id"]), str(row["question"]).partition("?")[0]
        vision = clip.vision_model(**images(by_seed[seed], return_tensors="pt")).last_hidden_state[:, 0]
        image = F.normalize(clip.visual_projection(clip.vision_model.post_layernorm(vision)), dim=-1)
        encoded = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
        tokens = clip.text_projection(clip.text_model(encoded["input_ids"]).last_hidden_state[0])
        cosine = (F.normalize(tokens, dim=-1) @ image[0]).tolist()
        visible = visible_words(scene(seed))
        words = {i: match[0] for match in re.finditer(r"\w+", text) for i in range(*match.span())}
        for value, (begin, end) in zip(cosine, encoded["offset_mapping"][0].tolist(), strict=True):
            if end > begin and words.get(begin) not in (None, *SIZES):
                cosines.append(value)
                labels.append(words[begin] in visible)
    return np.array(cosines), np.array(labels)


def auc(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """Return the probability that a positive's score exceeds a negative's, ties counting half."""
    positive = int(labels.sum())
    above = rankdata(scores)[labels].sum() - positive * (positive + 1) / 2
    return float(above / (positive * (len(labels) - positive)))


def main(weights: Annotated[Path, typer.Argument(help="an exported folder")] = WEIGHTS) -> None:
    """Print accuracy by family, and by threshold the question tokens that relevance keeps."""
    torch.set_num_threads(1)
    means = []
    for family in FAMILIES:
        asked = rows(family)
        right = [answer == row["answer"] for answer, row in zip(answers(weights, asked), asked, strict=True)]
        means.append(float(np.mean(right)))
        print(f"{family:<10} {means[-1]:.3f}", flush=True)
    print(f"{'mean':<10} {np.mean(means):.3f}")
    cosines, labels = relevance(weights, [row for family in FAMILIES for row in rows(family, 40)])
    print(
        f"relevance AUC {auc(cosines, labels):.3f} over {len(labels)} tokens, {labels.mean():.3f} name something seen"
    )
    for threshold in np.arange(-0.2, 0.7, 0.1):
        kept = cosines >= threshold
        print(f"τ {threshold:+.1f} keeps {kept[labels].mean():.3f} of these, {kept[~labels].mean():.3f} of the others")


if __name__ == "__main__":
    typer.run(main)
