"""The two tokenizers: CLIP's small BPE and the LLM's whole words, some of which the two split differently."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from harness.pocket.questions import vocabulary

CLIP_VOCABULARY = 160  # small enough that the rarer words fall into pieces
CONTEXT = 77
# Split so that a word's pieces differ from those of the BPE, which IVTP's Eq. 7 has to map.
SPLIT = {"object": ("ob", "##ject"), "objects": ("ob", "##jects"), "picture": ("pict", "##ure")}


def llm_tokenizer() -> PreTrainedTokenizerFast:
    """Return the LLM's tokenizer: a token a word but for the words in `SPLIT`; `<s>` is put in front."""
    words = [piece for word in vocabulary() for piece in SPLIT.get(word, (word,))]
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    ids = {token: index for index, token in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def clip_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return CLIP's tokenizer, trained on these texts."""
    tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=CLIP_VOCABULARY, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    start, end = (tokenizer.token_to_id(token) for token in special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[(special[0], start), (special[1], end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[1],
        unk_token=special[1],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
