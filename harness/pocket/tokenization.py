"""The two tokenizers: CLIP's small BPE and the LLM's whole words, some of which the two split differently."""

import re
from collections import Counter
from itertools import pairwise

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
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


def byte_pairs(texts: list[str], size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Return a vocabulary of so many pieces, the last of a word ending in `</w>`, and the merges that lead to it.

    Written out because `tokenizers`' own trainer numbers the pieces that end a word in the order of a hash map, another
    one in every process, so that a training which is resumed would go on with other tokens. Ties go by the alphabet.
    """
    words = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text))
    split = {word: [*word[:-1], f"{word[-1]}</w>"] for word in sorted(words)}
    vocabulary = sorted({piece for pieces in split.values() for piece in pieces})
    merges: list[tuple[str, str]] = []
    while len(vocabulary) < size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in split.items():
            for pair in pairwise(pieces):
                pairs[pair] += words[word]
        if not pairs:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((left, right))
        vocabulary.append(left + right)
        for pieces in split.values():
            for index in range(len(pieces) - 1, 0, -1):
                if pieces[index - 1 : index + 1] == [left, right]:
                    pieces[index - 1 : index + 1] = [left + right]
    return vocabulary, merges


def clip_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return CLIP's tokenizer, trained on these texts."""
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary, merges = byte_pairs(texts, CLIP_VOCABULARY - len(special))
    ids = {token: index for index, token in enumerate([*special, *vocabulary])}
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=special[1], end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[(token, ids[token]) for token in special]
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
