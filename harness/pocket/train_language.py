"""Trains the projector and the LLM on cached features of the finished ViT.

Each step takes 8 pictures with 16 questions each, packed: the visual prefix once, then every question, which sees the
prefix and itself. A prefix is the foreground and random background patches of a picture, few at first, all 576 at the
end; half of the pictures number them by their places among all, half as they follow each other. The loss is on answers
alone. Shapes: B pictures, K visual tokens, L packed length.
"""

import re
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from harness.pocket import optimizing
from harness.pocket.architecture import HEADS, WIDTH, llava_config
from harness.pocket.questions import FAMILIES, Question, describe
from harness.pocket.scenes import GRID, Scene, draw, patch_owners, scene
from harness.pocket.train_vision import forward, pixels

PATCHES = GRID * GRID
BATCH, QUESTIONS = 8, 16
PREFIX, ANSWER = "USER:", "ASSISTANT:"


class Features:
    """What the ViT gives for so many scenes: features [N, 576, 64], in half precision, and patch owners [N, 576]."""

    def __init__(self, clip: CLIPModel, first: int, count: int) -> None:
        self.scenes = [scene(first + index) for index in range(count)]
        self.features = torch.empty(count, PATCHES, WIDTH, dtype=torch.float16)
        self.owners = np.empty((count, PATCHES), np.int8)
        everything = torch.arange(PATCHES).expand(1, -1)
        with torch.inference_mode():
            for index, picture in enumerate(self.scenes):
                image, owner = draw(picture)
                self.owners[index] = patch_owners(owner)
                self.features[index] = forward(clip, pixels(image)[None], everything)[0][0]
                if (index + 1) % 500 == 0:
                    print(f"features {index + 1}/{count}", flush=True)


@cache
def text_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    """Return the tokens of a text without special ones; words are looked up one by one, so the cache stays small."""
    words = re.findall(r"\w+|[^\w\s]+", text)
    if len(words) > 1:
        return tuple(piece for word in words for piece in text_ids(tokenizer, word))
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def new_model(tokenizer: PreTrainedTokenizerFast, clip: CLIPModel) -> LlavaForConditionalGeneration:
    """Return LLaVA with CLIP's ViT and a mimetically initialised LLM.

    Per head Q = K, orthonormal × 1.3; O = Vᵀ × 0.6; lm_head = 0.25 × embeddings: attention starts by looking for what
    is like itself and copies it.
    """
    image = tokenizer.vocab["<image>"]
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    model = LlavaForConditionalGeneration(llava_config(len(tokenizer), image, *special))
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    llm = model.model.language_model
    width: int = llm.config.hidden_size
    with torch.no_grad():
        llm.embed_tokens.weight.normal_(0, 0.5)
        model.lm_head.weight.copy_(0.25 * llm.embed_tokens.weight)
        for layer in llm.layers:
            attention = layer.self_attn
            for head in range(HEADS):
                rows = slice(head * width // HEADS, (head + 1) * width // HEADS)
                basis = nn.init.orthogonal_(torch.empty(width // HEADS, width)) * 1.3
                attention.q_proj.weight[rows] = basis
                attention.k_proj.weight[rows] = basis
            value = nn.init.orthogonal_(torch.empty(width, width))
            attention.v_proj.weight.copy_(value)
            attention.o_proj.weight.copy_(0.6 * value.T)
    return model


def align(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, data: Features, steps: int) -> None:
    """Regress the projector's output to the sum of the embeddings of each patch's attribute words.

    It knows words and patches, no pruning method; the card discloses it, since it may favour attention-guided ones.
    """
    embedding = model.model.language_model.embed_tokens.weight.detach()
    projector = model.model.multi_modal_projector
    optimizer = torch.optim.AdamW(projector.parameters(), lr=2e-3)
    targets = torch.zeros(len(data.scenes), 7, embedding.shape[1])  # the last row stays 0, for the background
    for index, picture in enumerate(data.scenes):
        for row, thing in enumerate(picture.things):
            words = filter(None, (thing.size, thing.color, thing.shape, thing.place, thing.letter))
            targets[index, row] = sum(embedding[text_ids(tokenizer, word)[0]] for word in words)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        batch = torch.randint(len(data.scenes), (32,), generator=generator)
        owners = torch.from_numpy(data.owners[batch.numpy()]).long()
        chosen = (torch.rand(owners.shape, generator=generator) + (owners >= 0)).topk(96, dim=1).indices
        owners = owners.gather(1, chosen) % 7
        features = data.features[batch[:, None], chosen].float()
        loss = F.mse_loss(projector(features), targets[batch[:, None], owners])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0:
            print(f"align {step + 1}/{steps} loss {float(loss.detach()):.4f}", flush=True)


def visual_tokens(progress: float, rng: np.random.Generator) -> int:
    """Return how many patches a step shows: about 32, then 64, then 64 to 128, at the end about 192 or all."""
    if progress < 0.1:
        return int(rng.integers(24, 41))
    if progress < 0.5:
        return int(rng.integers(48, 81))
    if progress < 0.8:
        return int(rng.integers(48, 145))
    return (int(rng.integers(128, 257)), PATCHES)[rng.integers(2)]


def ask(picture: Scene, rng: np.random.Generator, progress: float) -> Question:
    """Return a training question: a quarter `describe`; the hard families come later and then more often."""
    if rng.random() < 0.25:
        return describe(picture, rng)
    names = ["attribute", "where", "ocr", "existence"]
    if progress > 0.1:
        names = [*FAMILIES, "count", "count", "relation"]
    while True:
        question = FAMILIES[names[rng.integers(len(names))]](picture, rng)
        if question is not None:
            return question


def pack(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    data: Features,
    batch: np.ndarray,
    progress: float,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the packed embeddings [B, L, D], positions [B, L], mask [B, 1, L, L] and next-token targets [B, L]."""
    K = visual_tokens(progress, rng)
    prefix = (tokenizer.bos_token_id, *text_ids(tokenizer, PREFIX))
    ids, positions, owner, targets, chosen = [], [], [], [], []
    for index in batch:
        order = np.lexsort((rng.random(PATCHES), data.owners[index] < 0))[:K]
        patches = np.sort(order)
        chosen.append(patches)
        places, end = (patches, PATCHES) if rng.random() < 0.5 else (np.arange(K), K)
        row = [*prefix, *[tokenizer.pad_token_id] * K]
        position = [*range(len(prefix)), *(len(prefix) + places)]
        group = [0] * len(row)
        target = [-100] * len(row)
        for number in range(1, QUESTIONS + 1):
            question = ask(data.scenes[index], rng, progress)
            asked = (*text_ids(tokenizer, question.text), *text_ids(tokenizer, ANSWER))
            answer = (*text_ids(tokenizer, question.answer), tokenizer.eos_token_id)
            row += [*asked, *answer[:-1]]
            group += [number] * (len(asked) + len(answer) - 1)
            position += range(len(prefix) + end, len(prefix) + end + len(asked) + len(answer) - 1)
            target += [*[-100] * (len(asked) - 1), *answer]
        ids.append(row)
        positions.append(position)
        owner.append(group)
        targets.append(target)
    L = max(map(len, ids))
    tokens, numbers, groups, wanted = (
        torch.tensor([row + [fill] * (L - len(row)) for row in rows])
        for rows, fill in ((ids, tokenizer.pad_token_id), (positions, 0), (owner, -1), (targets, -100))
    )
    picked = torch.from_numpy(np.stack(chosen))
    features = data.features[torch.from_numpy(batch)[:, None], picked].float()
    visual = model.model.multi_modal_projector(features)
    embedded = model.model.language_model.embed_tokens(tokens)
    start = len(prefix)
    embedded = torch.cat([embedded[:, :start], visual, embedded[:, start + K :]], dim=1)
    same = (groups[:, :, None] == groups[:, None, :]) | (groups[:, None, :] == 0)
    allowed = same & torch.ones(L, L, dtype=torch.bool).tril()
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return embedded, numbers, mask[:, None], wanted


def train(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    data: Features,
    *,
    steps: int,
    seed: int,
    lr: float,
    folder: Path,
) -> None:
    """Train projector and LLM in place for so many steps; goes on from the checkpoint in `folder`."""
    model.model.vision_tower.requires_grad_(False)
    llm = model.model.language_model
    optimizer = optimizing.Optimizer(model, muon=lr, adamw=1.5e-3, is_matrix=lambda name: ".layers." in name)
    begun = optimizing.resume(folder, model, optimizer)
    log = optimizing.Log(folder, begun, steps)
    for step in range(begun, steps):
        rng = np.random.default_rng([seed, step])
        batch = rng.integers(len(data.scenes), size=BATCH)
        embedded, positions, mask, wanted = pack(model, tokenizer, data, batch, step / steps, rng)
        hidden = llm(inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False)[0]
        answers = wanted >= 0
        logits, target = model.lm_head(hidden[answers]), wanted[answers]
        loss = F.cross_entropy(logits, target)
        loss.backward()
        optimizer.step(optimizing.schedule(step, steps))
        log.write(step, loss=loss, accuracy=(logits.argmax(-1) == target).float().mean())
        if (step + 1) % 250 == 0 or step + 1 == steps:
            optimizing.checkpoint(folder, model, optimizer, step + 1)
