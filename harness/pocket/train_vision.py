"""Trains the ViT and CLIP's text tower: dense attributes a patch, captions against CLS, and token relevance.

Shapes: B pictures, K patches of a picture that are seen (foreground and random background first, then all 576).
"""

import re
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPModel, PreTrainedTokenizerFast

from harness.pocket import optimizing
from harness.pocket.architecture import WIDTH, clip_config
from harness.pocket.questions import FAMILIES, caption, visible_words
from harness.pocket.scenes import COLORS, GRID, LETTERS, PATCH, SHAPES, SIZE, SIZES, draw, patch_owners, scene
from harness.pocket.tokenization import CONTEXT

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
ATTRIBUTES = {"color": tuple(COLORS), "shape": SHAPES, "size": SIZES, "letter": tuple(LETTERS)}
RELEVANCE_SCALE, RELEVANCE_THRESHOLD = 12.0, 0.2


def pixels(image: np.ndarray) -> Tensor:
    """Return the picture [H, W, 3] as CLIP's image processor would: [3, H, W], normalised."""
    return (torch.from_numpy(image).permute(2, 0, 1).float() / 255 - MEAN) / STD


def patch_labels(seed: int, owners: np.ndarray) -> np.ndarray:
    """Return [576, 4 + 4]: the class of each attribute (0 = nothing there), and its thing's centre.

    The centre is given twice: in the picture, which says where the thing is, and from the patch, which marks one patch
    of each thing and so lets things be counted.
    """
    things = scene(seed).things
    table = np.zeros((len(things) + 1, 8), np.float32)
    for row, thing in zip(table, things, strict=False):
        for column, (name, values) in enumerate(ATTRIBUTES.items()):
            value = getattr(thing, name)
            row[column] = 0 if value is None else 1 + values.index(value)
        row[4:] = (thing.x, thing.y) * 2
    labels = table[owners]
    rows, columns = np.divmod(np.arange(GRID * GRID), GRID)
    middles = PATCH * (np.stack([columns, rows], axis=1) + 0.5)
    labels[:, 4:] = (labels[:, 4:] - np.hstack([np.full_like(middles, SIZE / 2), middles])) / 15
    return labels


class Pictures(Dataset[dict[str, Tensor]]):
    """Pictures with a caption, a question and the labels of their patches and words, by scene seed."""

    def __init__(self, count: int, first: int, tokenizer: PreTrainedTokenizerFast, patches: int) -> None:
        self.count, self.first, self.tokenizer, self.patches = count, first, tokenizer, patches

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        seed = self.first + item
        picture = scene(seed)
        rng = np.random.default_rng([seed, 2])
        image, owner = draw(picture)
        owners = patch_owners(owner)
        order = np.lexsort((rng.random(owners.size), owners < 0))[: self.patches]
        seen = np.sort(order)
        question = None
        while question is None:
            question = list(FAMILIES.values())[rng.integers(len(FAMILIES))](picture, rng)
        words, labels = self._question(question.text, visible_words(picture))
        captioned = self._caption(caption(picture))
        return {
            "pixels": pixels(image),
            "seen": torch.from_numpy(seen),
            "labels": torch.from_numpy(patch_labels(seed, owners)[seen]),
            "question": words,
            "relevance": labels,
            "caption": captioned,
        }

    def _question(self, text: str, visible: set[str]) -> tuple[Tensor, Tensor]:
        ids, labels = [self.tokenizer.bos_token_id], [-1.0]
        for word in re.findall(r"\w+|[^\w\s]+", text):
            pieces = word_ids(self.tokenizer, word)
            ids += pieces
            labels += [-1.0 if word in SIZES else float(word in visible)] * len(pieces)
        return self._pad([*ids, self.tokenizer.eos_token_id]), self._pad([*labels, -1.0], -1.0)

    def _caption(self, text: str) -> Tensor:
        pieces = [piece for word in text.split() for piece in word_ids(self.tokenizer, word)]
        return self._pad([self.tokenizer.bos_token_id, *pieces[: CONTEXT - 2], self.tokenizer.eos_token_id])

    def _pad(self, values: list, fill: float | None = None) -> Tensor:
        fill = self.tokenizer.eos_token_id if fill is None else fill
        return torch.tensor(values + [fill] * (CONTEXT - len(values)))


@cache
def word_ids(tokenizer: PreTrainedTokenizerFast, word: str) -> list[int]:
    """Return the tokens of a word; the pre-tokenizer splits at words, so a text is its words' tokens."""
    return tokenizer(word, add_special_tokens=False)["input_ids"]


def forward(model: CLIPModel, pixels: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features that LLaVA reads [B, K, D] and the last layer's CLS [B, D], of the seen patches only."""
    vision = model.vision_model
    embeddings = vision.embeddings
    patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    patches = patches + embeddings.position_embedding.weight[1:]
    patches = patches.gather(1, seen.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
    cls = (embeddings.class_embedding + embeddings.position_embedding.weight[0]).expand(len(pixels), 1, -1)
    x = vision.pre_layrnorm(torch.cat([cls, patches], dim=1))
    for layer in vision.encoder.layers[:-1]:
        x = layer(x, attention_mask=None)
    last = vision.encoder.layers[-1](x, attention_mask=None)
    return x[:, 1:], last[:, 0]


class Heads(nn.Module):
    """Linear readers of the features, for the loss only: a patch's attributes and its thing's centre."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes = nn.ModuleList([nn.Linear(WIDTH, 1 + len(values)) for values in ATTRIBUTES.values()])
        self.centre = nn.Linear(WIDTH, 4)

    def loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the dense loss and the foreground accuracy of each attribute [4]."""
        there = labels[..., 0] > 0
        weight = torch.where(there, 1.0, 0.3).flatten()
        loss = features.new_zeros(())
        accuracy = []
        for column, head in enumerate(self.attributes):
            logits, target = head(features), labels[..., column].long()
            each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
            loss = loss + (each * weight).sum() / weight.sum()
            accuracy.append((logits.argmax(-1) == target)[there & (target > 0)].float().mean())
        off = (self.centre(features) - labels[..., 4:]).abs().mean(-1)
        return loss + off[there].mean(), torch.stack(accuracy).detach()


def text_losses(model: CLIPModel, cls: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the contrastive loss of captions and the relevance loss of question tokens.

    A token's cosine with CLS is pushed above 0.2 where its word names something seen, and below elsewhere.
    """
    image = F.normalize(model.visual_projection(model.vision_model.post_layernorm(cls)), dim=-1)
    texts = torch.cat([batch["caption"], batch["question"]])
    eos: int = model.text_model.config.eos_token_id
    width = int(texts.ne(eos).sum(1).max()) + 1
    texts = texts[:, :width]
    tokens = F.normalize(model.text_projection(model.text_model(texts).last_hidden_state), dim=-1)
    captions, questions = tokens.chunk(2)
    end = batch["caption"].eq(eos).int().argmax(1)
    sentence = captions[torch.arange(len(end)), end]
    logits = image @ sentence.T * model.logit_scale.exp().clamp(max=30)
    target = torch.arange(len(image))
    contrastive = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    cosine = (questions * image.unsqueeze(1)).sum(-1)
    label = batch["relevance"][:, :width]
    known = label >= 0
    relevance = F.binary_cross_entropy_with_logits(
        RELEVANCE_SCALE * (cosine[known] - RELEVANCE_THRESHOLD), label[known]
    )
    return contrastive, relevance


def sincos_positions() -> Tensor:
    """Return the 2-D sine-cosine position embedding [577, 64] that training starts from; CLS has zeros."""
    frequency = 1 / 100 ** (torch.arange(WIDTH // 4) / (WIDTH // 4))
    angle = torch.arange(GRID)[:, None] * frequency
    one = torch.cat([angle.sin(), angle.cos()], dim=-1)
    grid = torch.cat([one[:, None].expand(-1, GRID, -1), one[None].expand(GRID, -1, -1)], dim=-1)
    return torch.cat([torch.zeros(1, WIDTH), grid.reshape(GRID * GRID, WIDTH)]) * 0.5


def new_model(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """Return CLIP with random weights and sine-cosine positions."""
    model = CLIPModel(clip_config(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id))
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.weight.copy_(sincos_positions())
    return model


def train(
    model: CLIPModel,
    heads: Heads,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    batch: int,
    patches: int,
    first: int,
    lr: float,
    folder: Path,
) -> None:
    """Train in place for so many steps on scenes from seed `first`; goes on from the checkpoint in `folder`."""
    trained = nn.ModuleDict({"model": model, "heads": heads})
    optimizer = optimizing.Optimizer(trained, muon=lr, adamw=lr / 8, is_matrix=lambda name: "encoder.layers" in name)
    begun = optimizing.resume(folder, trained, optimizer)
    data = Pictures((steps - begun) * batch, first + begun * batch, tokenizer, patches)
    loader = DataLoader(data, batch_size=batch, num_workers=1, prefetch_factor=4)
    log = optimizing.Log(folder, begun, steps)
    for step, items in enumerate(loader if begun < steps else [], start=begun):
        features, cls = forward(model, items["pixels"], items["seen"])
        dense, accuracy = heads.loss(features, items["labels"])
        contrastive, relevance = text_losses(model, cls, items)
        (dense + 0.3 * contrastive + relevance).backward()
        optimizer.step(optimizing.schedule(step, steps))
        log.write(
            step,
            dense=dense,
            contrastive=contrastive,
            relevance=relevance,
            **dict(zip(ATTRIBUTES, accuracy, strict=True)),
        )
        if (step + 1) % 500 == 0 or step + 1 == steps:
            optimizing.checkpoint(folder, trained, optimizer, step + 1)
