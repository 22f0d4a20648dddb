"""A tiny random LLaVA, prompts with and without images, and one way to run them."""

import hashlib
from dataclasses import fields

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from harness.model.anatomy import anatomy
from harness.model.attach import attach
from harness.model.plan import RIDER
from harness.pocket.tokenization import llm_tokenizer
from methods import TRAINING_FREE, method
from methods.interface import Reading, Words
from tests.reference import Reference

PATCHES, NEW = 36, 5
TOKENIZER = llm_tokenizer()
QUESTIONS = ["what color is the small object?", "is there a red circle in the picture?", "where is the ring?"]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "image_size": 60,
    "patch_size": 10,
    "projection_dim": 16,
}


def fields_of(kind: type) -> dict[str, object]:
    return {field.name: field.default for field in fields(kind)}


def build(seed: int = 0, attention: str = "sdpa") -> LlavaForConditionalGeneration:
    image, pad = (TOKENIZER.convert_tokens_to_ids(token) for token in ("<image>", "<pad>"))
    text = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=pad,
        bos_token_id=TOKENIZER.bos_token_id,
        eos_token_id=None,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=text, image_token_id=image, image_seq_length=PATCHES
    )
    model = LlavaForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.25 if parameter.ndim > 1 else 0.1
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, scale, generator=generator)
    model.set_attn_implementation(attention)
    return model


def prompt(question: str, images: int = 1, before: str = "") -> list[int]:
    return TOKENIZER(f"USER: {before}{('<image>' * PATCHES + ' ') * images}{question} ASSISTANT:")["input_ids"]


ROWS = [
    prompt(QUESTIONS[0]),
    prompt(QUESTIONS[1], before="the picture is above ."),
    prompt(QUESTIONS[2], images=2),
    prompt("how many red circles are there?", images=0),
]
IMAGES = torch.randn(4, 3, 60, 60, generator=torch.Generator().manual_seed(1))
PER_ROW = [1, 1, 2, 0]


def batch(rows: list[list[int]] = ROWS, images: torch.Tensor = IMAGES, side: str = "left") -> dict[str, torch.Tensor]:
    length = max(map(len, rows))
    pads = [[TOKENIZER.pad_token_id] * (length - len(row)) for row in rows]
    ids = [pad + row if side == "left" else row + pad for pad, row in zip(pads, rows, strict=True)]
    masks = [
        [0] * len(pad) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(pad)
        for pad, row in zip(pads, rows, strict=True)
    ]
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(masks)}
    return inputs | ({"pixel_values": images} if len(images) else {})


def images_of(row: int) -> torch.Tensor:
    start = sum(PER_ROW[:row])
    return IMAGES[start : start + PER_ROW[row]]


ADAPTIVE = [f"{name} adaptive" for name, kind in TRAINING_FREE.items() if fields_of(kind).get("tokens", 0) is None]
CHOSEN = [*TRAINING_FREE, *ADAPTIVE]


def configured(name: str, tokens: int, **parameters):
    """The method that ends at so many tokens, for which every word is relevant."""
    name, *adaptive = name.split()
    defaults = fields_of(TRAINING_FREE[name])
    if "tokens" in defaults:
        parameters["tokens"] = None if adaptive else tokens
    if "budget" in defaults:
        parameters["budget"] = "kept"
    if "threshold" in defaults:
        parameters.setdefault("threshold", -1.0)
    return method(name, **parameters)


def run(model, inputs, chosen=None, encoder=None, new=NEW):
    """The logits of every step [steps, B, V], the tokens [B, steps], and the ledger."""
    settings = {"max_new_tokens": new, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with torch.inference_mode():
        if chosen is None:
            out, ledger = model.generate(**inputs, **settings), None
        else:
            with attach(model, chosen, text_encoder=encoder, tokenizer=TOKENIZER) as attached:
                out = model.generate(**inputs, **settings)
                ledger = attached.ledger
    return torch.stack(out.logits), out.sequences[:, inputs["input_ids"].shape[1] :], ledger


def uniforms(image: torch.Tensor, seed: int = 0):
    """The documented draw of `random`: of the image's pixels, the seed and the layer."""

    def draw(layer: int, count: int) -> torch.Tensor:
        inner = hashlib.sha256(image.numpy().tobytes()).digest()
        digest = hashlib.sha256(f"{seed}/{layer}/".encode() + inner).digest()
        return torch.rand(count, generator=torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1))

    return draw


def pseudo_cls(model, chosen, row: list[int], encoder=None):
    """How a method makes the pseudo CLS of this prompt from its image's projected CLS, None where it needs none.

    CLIP finds every word equally relevant; encoder: a real one, for a method that takes its features.
    """
    if not any(stage.seam == "llm" and stage.needs & RIDER for stage in chosen.stages(anatomy(model).shape)):
        return None
    user, answer = TOKENIZER.convert_tokens_to_ids(["USER", "ASSISTANT"])
    image = model.config.image_token_id
    ids = [token for token in row[row.index(user) + 2 : row.index(answer)] if token != image]
    embeddings = model.get_input_embeddings().weight[ids].detach()
    spans = [(index, index + 1) for index in range(len(ids))]
    project = model.model.multi_modal_projector

    def make(cls):
        clip = Reading(torch.ones(len(ids), 2), spans, torch.ones(2), project)
        if encoder is not None:
            features, found = encoder.encode(TOKENIZER.decode(ids))
            clip = Reading(features, found, torch.ones(16), lambda joint: project(encoder.unproject(joint)))
        return chosen.guide(Words(embeddings, spans, cls, clip)).state

    return make


def assert_equals_masking(model, chosen, encoder, clip=None):
    """Run the batch and hold every row against the reference, which masks and knows no cache; return the ledger.

    clip: the encoder, for a method whose pseudo CLS has CLIP's own features.
    """
    logits, answers, ledger = run(model, batch(), chosen, encoder)
    reference, shape, image = Reference(model), anatomy(model).shape, 0
    for row, ids in enumerate(ROWS):
        images = images_of(row)
        with torch.inference_mode():
            expected, entered, kept = reference.answer(
                ids,
                images,
                chosen,
                shape,
                new=answers[row, :-1].tolist(),
                uniforms=[uniforms(pixels) for pixels in images],
                pseudo=pseudo_cls(model, chosen, ids, clip),
            )
        for mine, (into, last) in enumerate(zip(entered, kept, strict=True), start=image):
            assert ledger.entered[mine].tolist() == into
            assert ledger.kept[mine].tolist() == last
            assert ledger.tokens.llm[mine][0] == len(into) and ledger.tokens.llm[mine][-1] == len(last)
        image += len(images)
        torch.testing.assert_close(logits[:, row], expected, atol=2e-4, rtol=0)
    return ledger
