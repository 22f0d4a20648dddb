import json
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.errors import VtbenchError
from harness.model import guide
from harness.model.attach import attach
from harness.model.guide import forget, question
from harness.model.text import (
    LLAVA_CLIP,
    RANDOM_CLIP,
    TextEncoder,
    default_text_encoder,
    default_tokenizer,
    load_text_encoder,
)
from harness.pocket import WEIGHTS
from methods import method
from tests.model.tiny import CHOSEN, IMAGES, PATCHES, QUESTIONS, ROWS, TOKENIZER, batch, build, configured, run

PROMPT = "USER: <image>\nWhere is the ring? ASSISTANT: left USER: and the café 🦊, is it red? ASSISTANT:"


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that cuts every character into its bytes (GPT-2's kind)."""
    alphabet = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def pieces_tokenizer(texts: str) -> PreTrainedTokenizerFast:
    """Words behind `▁`, unknown characters by their bytes (sentencepiece's kind, LLaMA's)."""
    words = sorted({f"▁{word}" for word in texts.split()} - {"▁🦊,"})
    vocabulary = {
        token: index for index, token in enumerate(["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *words, "▁"])
    }
    letters = sorted({letter for word in words for letter in word} - set(vocabulary))
    vocabulary |= {letter: len(vocabulary) + index for index, letter in enumerate(letters)}
    merges, known = [], set(vocabulary)
    for word in words:
        for stop in range(2, len(word) + 1):
            left, right = word[: stop - 1], word[stop - 1]
            if left + right not in known:
                vocabulary[left + right] = len(vocabulary)
                known.add(left + right)
            merges.append((left, right))
    model = models.BPE(vocabulary, list(dict.fromkeys(merges)), unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("tokenizer", [bytes_tokenizer(), pieces_tokenizer(PROMPT)], ids=["byte pairs", "pieces"])
def test_the_question_is_the_last_user_turn_with_ranges_that_cover_it(tokenizer):
    ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    text, indices, spans = question(tokenizer, tuple(ids))
    assert text == "and the café 🦊, is it red?"
    assert spans[0][0] == 0 and spans[-1][1] == len(text)
    assert all(before[1] == after[0] for before, after in pairwise(spans))
    assert all(start < stop for start, stop in spans) and indices == sorted(set(indices))
    for index, (start, stop) in zip(indices, spans, strict=True):
        piece = tokenizer.decode([ids[index]]).strip()
        assert "�" in piece or piece in text[start:stop]


def test_the_question_of_whole_words():
    ids = TOKENIZER("USER: where is the object? ASSISTANT:")["input_ids"]
    text, indices, spans = question(TOKENIZER, tuple(ids))
    assert [text[start:stop].strip() for start, stop in spans] == ["where", "is", "the", "ob", "ject", "?"]
    assert [TOKENIZER.convert_ids_to_tokens(ids[index]) for index in indices][-3:] == ["ob", "##ject", "?"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("what color is the ring?", "what color is the ring?"),
        ("what color? ASSISTANT:", "what color?"),
        ("", ""),
        ("USER: ASSISTANT:", ""),
    ],
)
def test_a_prompt_without_turns_is_all_question(text, expected):
    assert question(TOKENIZER, tuple(TOKENIZER(text, add_special_tokens=False)["input_ids"]))[0] == expected


TOKENIZERS = [bytes_tokenizer(), pieces_tokenizer(PROMPT), TOKENIZER]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["byte pairs", "pieces", "words"])
@pytest.mark.parametrize(
    "text", [PROMPT * 8, "🦊🦊 café. " * 20, "é" * 60, "USER: " + "don't, won't ; 'tis? " * 20, " " * 50 + "ring"]
)
def test_a_long_questions_ranges_are_those_of_decoding_every_prefix(tokenizer, text, monkeypatch):
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    found = question(tokenizer, ids)
    whole = [len(tokenizer.decode(list(ids[:stop]), skip_special_tokens=True)) for stop in range(1, len(ids) + 1)]
    monkeypatch.setattr(guide, "_lengths", lambda *_: whole)
    assert question.__wrapped__(tokenizer, ids) == found


def test_a_question_is_read_in_linear_time():
    decoded = []

    class Tokenizer:
        def decode(self, ids, skip_special_tokens):
            decoded.append(len(ids))
            return "x" * len(ids)

    ids = tuple(range(1000))
    assert question(Tokenizer(), ids)[2] == [(at, at + 1) for at in ids]
    assert sum(decoded) < 20 * len(ids)


def test_what_was_read_is_forgotten(encoder):
    question(TOKENIZER, (1, 2)), encoder.encode("a ring")
    forget(encoder)
    assert question.cache_info().currsize == encoder.encode.cache_info().currsize == 0
    forget(None)


def test_features_are_every_tokens_own_and_beyond_the_context_there_are_none(encoder):
    features, spans = encoder.encode(QUESTIONS[0])
    assert "".join(QUESTIONS[0][start:stop] for start, stop in spans) == QUESTIONS[0].replace(" ", "")
    tokens = encoder.tokenizer(QUESTIONS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden = encoder.model.text_model(input_ids=tokens).last_hidden_state[0, 1:-1]
        assert torch.equal(features, encoder.model.text_projection(hidden))
    assert not features.requires_grad
    long = " ".join(QUESTIONS * 20)
    features, spans = encoder.encode(long)
    assert len(features) == len(spans) == 75 and spans[-1][1] < len(long)
    assert encoder.encode("")[0].shape == (0, 16)


@pytest.fixture(scope="module")
def open_clips(tmp_path_factory):
    """A tiny open_clip architecture, its model and its checkpoint."""
    import open_clip

    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"image_size": 60, "layers": 2, "width": 32, "head_width": 8, "patch_size": 10}
    text = {"context_length": 12, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2}
    config = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    (folder / "tiny-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny-test.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-test").eval()
    torch.save(model.state_dict(), folder / "weights.pt")
    whole = folder / "whole"
    whole.mkdir()
    (whole / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    torch.save(model.state_dict(), whole / "open_clip_pytorch_model.bin")
    return model, open_clip.get_tokenizer("tiny-test"), folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # open_clip's
@pytest.mark.parametrize("pretrained", ["weights.pt", "whole"])
def test_an_open_clip_checkpoint_gives_open_clips_features(open_clips, pretrained):
    theirs, tokenize, folder = open_clips
    text = "What color's  the Café?"
    features, spans = load_text_encoder(f"open_clip:tiny-test/{folder}/{pretrained}").encode(text)
    tokens = tokenize(text)
    with torch.no_grad():
        hidden = theirs.token_embedding(tokens) + theirs.positional_embedding
        hidden = theirs.ln_final(theirs.transformer(hidden, attn_mask=theirs.attn_mask)) @ theirs.text_projection
        named = hidden[0, 1 : int(tokens.argmax())]
        cls = torch.randn(3, 32)
        projected = theirs.visual.ln_post(cls) @ theirs.visual.proj
        ours = load_text_encoder(f"open_clip:tiny-test/{folder}/{pretrained}").project_cls(cls)
    torch.testing.assert_close(features, named, atol=2e-6, rtol=0)
    torch.testing.assert_close(ours, projected, atol=2e-6, rtol=0)
    assert [text[start:stop] for start, stop in spans] == ["What", "color", "'s", "the", "Café", "?"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # open_clip's
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-L-14-336", "it names no weights for ViT-L-14-336"),
        ("open_clip:nothing/openai", "'nothing' not found"),
        ("no such folder/clip/at all", "allowed are a CLIP's hub id or local folder"),
    ],
)
def test_a_text_encoder_that_is_not_there_is_refused(name, message):
    with pytest.raises(VtbenchError, match=message):
        load_text_encoder(name)


def test_every_model_has_its_text_encoder(tmp_path):
    (tmp_path / "clip").mkdir()
    assert default_text_encoder("pocket") == default_text_encoder("random:pocket") == str(WEIGHTS / "clip")
    assert default_text_encoder("random:llava-1.5-7b") == default_text_encoder("random:llava-1.5-13b") == RANDOM_CLIP
    assert default_text_encoder("llava-hf/llava-1.5-7b-hf") == LLAVA_CLIP
    assert default_text_encoder(str(tmp_path)) == str(tmp_path / "clip")
    assert default_tokenizer("random:llava-1.5-7b").convert_tokens_to_ids("ASSISTANT") > 0
    with pytest.raises(VtbenchError, match="has none that can be loaded"):
        default_tokenizer(str(tmp_path))


def test_what_comes_back_from_the_joint_space_goes_there_again(encoder):
    """By hand: the state normalised, its affine part, the projection. What is lost in 32 → 16 numbers stays lost."""
    encoder = TextEncoder(deepcopy(encoder.model), encoder.tokenizer)
    norm, projection = encoder.model.vision_model.post_layernorm, encoder.model.visual_projection.weight
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2), norm.bias.normal_()
        joint = torch.randn(3, 16)
        state = encoder.unproject(joint)
        again = (state * norm.weight + norm.bias) @ projection.T
    assert state.shape == (3, 32)
    torch.testing.assert_close(again, joint, atol=1e-4, rtol=0)


def test_beyond_clips_context_words_do_not_guide(encoder):
    """CLIP reads 75 tokens between its own two; what comes later in the question is relevant to nothing."""
    asked = f"{' '.join(['what color is the small object?'] * 20)} where is the ring?"
    ids = TOKENIZER(f"USER: {'<image>' * PATCHES} {asked} ASSISTANT:")["input_ids"]
    chosen = method("ivtp", tokens=9, threshold=-1.0)
    with attach(build(), chosen, text_encoder=encoder, tokenizer=TOKENIZER) as attached, torch.inference_mode():
        attached.parts.core(**batch([ids], IMAGES[:1]))
    (guide,) = attached.ledger.guides
    _, read = encoder.encode(guide.question)
    assert guide.question == asked and len(read) == 75
    assert guide.spans and max(stop for _, stop in guide.spans) <= read[-1][1] < len(asked)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_prompt_without_an_image_is_answered_as_by_the_unpatched_model(name, encoder):
    model, inputs = build(), batch(ROWS[3:], IMAGES[:0])
    assert torch.equal(run(model, inputs, configured(name, 9), encoder)[0], run(model, inputs)[0])


def test_a_text_encoder_of_another_width_is_refused():
    model, encoder = build(), load_text_encoder(str(WEIGHTS / "clip"))
    with (
        attach(model, method("ivtp", tokens=9), text_encoder=encoder, tokenizer=TOKENIZER),
        torch.inference_mode(),
        pytest.raises(VtbenchError, match="its CLIP has a vision width of 64, the model's tower 32"),
    ):
        model(**batch())


def test_the_random_pocket_runs_ivtp_offline_by_its_name():
    from harness.model.load import load

    loaded = load("random:pocket")
    tokenizer = loaded.processor.tokenizer
    ids = tokenizer(f"USER: {'<image>' * loaded.shape.patches} where is the ring? ASSISTANT:", return_tensors="pt")
    side = loaded.model.config.vision_config.image_size
    with attach(loaded.model, method("ivtp", tokens=64)) as attached, torch.inference_mode():
        loaded.model(
            input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], pixel_values=torch.randn(1, 3, side, side)
        )
    assert len(attached.ledger.kept[0]) == 64


def test_a_method_that_reads_no_word_needs_no_tokenizer():
    for chosen in (method("topk+", tokens=9), method("ivtp", tokens=9, guidance="none")):
        with attach(build(), chosen) as attached, torch.inference_mode():
            attached.parts.core(**batch())
        assert [guide.question for guide in attached.ledger.guides] == [""] * 4


def test_a_text_encoder_holds_no_vision_layers():
    encoder = load_text_encoder(str(WEIGHTS / "clip"))
    assert len(encoder.model.vision_model.encoder.layers) == 0
    assert encoder.project_cls(torch.zeros(64)).shape == (64,)
