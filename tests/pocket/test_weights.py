import logging
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, CLIPModel, LlavaForConditionalGeneration

from harness.pocket import WEIGHTS, train_language, train_vision
from harness.pocket.data import ANSWERS
from harness.pocket.evaluate import PROMPT, answers, auc, pictures, relevance, rows
from harness.pocket.questions import FAMILIES
from harness.pocket.scenes import draw, scene
from harness.pocket.train import TEST

TINY = 6


@pytest.fixture(scope="module")
def loaded():
    """Load everything in the weights' folder; a warning of transformers' logger fails the test that asks for it."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    llava = LlavaForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32)
    clip = CLIPModel.from_pretrained(WEIGHTS / "clip", dtype=torch.float32)
    processor, tokenizer = AutoProcessor.from_pretrained(WEIGHTS), AutoTokenizer.from_pretrained(WEIGHTS / "clip")
    logging.getLogger("transformers").removeHandler(handler)
    assert not [record.getMessage() for record in records]
    return llava, processor, clip, tokenizer


def test_weights_load_without_warnings_and_are_small(loaded):
    assert sum(path.stat().st_size for path in Path(WEIGHTS).rglob("*") if path.is_file()) < 10e6


def test_shape_and_rope_are_as_the_card_says(loaded):
    config = loaded[0].config
    assert (config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers) == (9, 6)
    assert config.text_config.rope_parameters["rope_theta"] == 1e6
    inverse = loaded[0].model.language_model.rotary_emb.inv_freq
    assert torch.allclose(inverse, 1e6 ** -(torch.arange(0, 32, 2) / 32))


def test_llava_and_clip_share_the_vision_tower(loaded):
    llava, _, clip, _ = loaded
    own, other = llava.model.vision_tower.state_dict(), clip.vision_model.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_the_chat_template_is_llava_15s(loaded):
    content = [{"type": "image"}, {"type": "text", "text": "where is the red cross?"}]
    prompt = loaded[1].apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert prompt == PROMPT.format("where is the red cross?")


@torch.inference_mode()
def test_the_trainer_and_hugging_face_compute_the_same_logits(loaded):
    llava, processor, clip, _ = loaded
    data = train_language.Features(clip, TEST, 1)
    seed = next(s for s in range(99) if train_language.visual_tokens(1.0, np.random.default_rng(s)) == 576)
    rng = np.random.default_rng(seed)
    embedded, positions, mask, wanted = train_language.pack(
        llava, processor.tokenizer, data, np.array([0]), 1.0, np.random.default_rng(seed)
    )
    hidden = llava.model.language_model(
        inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False
    )[0]
    # The position before each question's first answered token is where its answer is read.
    starts = (wanted[0] >= 0) & ~(wanted[0].roll(1) >= 0)
    packed = llava.lm_head(hidden[0, starts])

    train_language.visual_tokens(1.0, rng), rng.random(576), rng.random()
    questions = [train_language.ask(data.scenes[0], rng, 1.0).text for _ in range(train_language.QUESTIONS)]
    inputs = processor(
        images=[pictures()[TEST]] * 4,
        text=[PROMPT.format(question) for question in questions[:4]],
        padding=True,
        return_tensors="pt",
    )
    assert torch.allclose(llava(**inputs).logits[:, -1], packed[:4], atol=2e-2)


@torch.inference_mode()
def test_the_trainers_vit_is_clips_with_all_patches(loaded):
    _, processor, clip, _ = loaded
    pixels = train_vision.pixels(draw(scene(TEST))[0])[None]
    processed = processor.image_processor(pictures()[TEST], return_tensors="pt")["pixel_values"]
    assert torch.allclose(pixels, processed, atol=1e-5)
    features, cls = train_vision.forward(clip, pixels, torch.arange(576)[None])
    output = clip.vision_model(pixels, output_hidden_states=True)
    assert torch.allclose(features, output.hidden_states[-2][:, 1:], atol=1e-3)
    assert torch.allclose(cls, output.last_hidden_state[:, 0], atol=1e-3)


def test_the_model_answers_well_above_chance():
    asked = {family: rows(family, TINY) for family in FAMILIES}
    given = iter(answers(WEIGHTS, list(chain.from_iterable(asked.values()))))
    right = {f: np.mean([next(given) == row["answer"] for row in questions]) for f, questions in asked.items()}
    assert np.mean(list(right.values())) > 0.7
    for family, share in right.items():
        assert share > 1 / len(ANSWERS[family]), family


def test_relevance_tells_words_that_name_something_seen():
    cosines, labels = relevance(WEIGHTS, [row for family in FAMILIES for row in rows(family, 3)])
    assert auc(cosines, labels) > 0.9


def test_auc_counts_ties_as_half():
    assert auc(np.array([0.1, 0.5, 0.5, 0.9]), np.array([False, True, False, True])) == 0.875
