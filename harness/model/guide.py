"""What IVTP's guidance reads: the question in a prompt, token by token, beside CLIP's reading of it."""

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.model.text import TextEncoder
from methods.interface import Reading, Words

Span = tuple[int, int]

CONTEXT = 8  # tokens in front of one that may change how many characters it is


@lru_cache(maxsize=4096)  # a task asks the same of many images; what is timed calls `forget` first
def question(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> tuple[str, list[int], list[Span]]:
    """Return the question of a prompt, the indices of its tokens in `ids` and their character ranges in it.

    ids are a row's text tokens, without padding and image placeholders. The question is the last user turn: what stands
    behind the last "USER:", if there is one, and before the last "ASSISTANT:" behind that. Ranges come from decoding,
    which holds for any tokenizer whose decoded prefixes are prefixes of the whole; the pieces of one character decode
    to several replacements until it is whole, so an end never goes beyond a later one.
    """
    text = _decoded(tokenizer, ids)
    ends = list(accumulate(reversed(_lengths(tokenizer, ids)), min, initial=len(text)))[:0:-1]
    turn = re.search(r"(?s:.*)USER\s*:", text)
    begin = turn.end() if turn else 0
    answer = re.search(r"(?s:.*)(ASSISTANT\s*:)", text[begin:])
    end = begin + answer.start(1) if answer else len(text)
    begin += len(text[begin:end]) - len(text[begin:end].lstrip())
    end -= len(text[begin:end]) - len(text[begin:end].rstrip())
    indices, spans = [], []
    for index, (start, stop) in enumerate(zip([0, *ends], ends, strict=False)):
        start, stop = max(start, begin), min(stop, end)
        if start < stop:
            indices.append(index)
            spans.append((start - begin, stop - begin))
    return text[begin:end], indices, spans


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _lengths(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> list[int]:
    """Return how many characters every prefix decodes to, in time linear in the ids.

    What is decoded is the prefix's end. Its start moves on to where decoding from there on ends as before: neither
    inside a character, nor where a tokenizer writes a first token in another way.
    """
    lengths, start, before = [], 0, 0  # before: characters in front of what is decoded
    for stop in range(1, len(ids) + 1):
        text = _decoded(tokenizer, ids[start:stop])
        lengths.append(before + len(text))
        if stop - start >= 2 * CONTEXT:
            end = _decoded(tokenizer, ids[stop - CONTEXT : stop])
            if end.strip() and "\N{REPLACEMENT CHARACTER}" not in end and text.endswith(end):
                start, before = stop - CONTEXT, lengths[-1] - len(end)
    return lengths


def forget(encoder: TextEncoder | None) -> None:
    """Drop what an earlier reading of a question would spare a later one; encoder: None where CLIP reads none."""
    question.cache_clear()
    if encoder is not None:
        encoder.encode.cache_clear()


class Asked(NamedTuple):
    """An image's question, as far as it is read without the image."""

    text: str
    slots: Tensor  # [T] of the question's tokens in their row
    spans: list[Span]  # [T]
    clip: tuple[Tensor, list[Span]] | None  # CLIP's features of it and their ranges, for a method that reads those


def ask(tokenizer: PreTrainedTokenizerBase, encoder: TextEncoder | None, ids: Tensor, is_text: Tensor) -> Asked:
    """Read the question of a row of tokens, ids [L] and is_text [L]; encoder: None for a method that reads no CLIP.

    It asks the device, so it comes before the image is encoded.
    """
    slots = is_text.nonzero()[:, 0]
    text, indices, spans = question(tokenizer, tuple(ids[slots].tolist()))
    return Asked(text, slots[indices], spans, encoder.encode(text) if encoder is not None else None)


def words(
    asked: Asked,
    encoder: TextEncoder | None,
    embeddings: Tensor,
    last_cls: Tensor,
    projected_cls: Tensor,
    project: Callable[[Tensor], Tensor],
) -> Words:
    """Return one image's `Words`; embeddings [L, D] are its row's, project is LLaVA's projector."""
    clip = None
    if asked.clip is not None:
        assert encoder is not None
        features, spans = asked.clip
        clip = Reading(
            features=features,
            spans=spans,
            cls=encoder.project_cls(last_cls),
            lift=lambda joint: project(encoder.unproject(joint)),
        )
    return Words(embeddings=embeddings[asked.slots], spans=asked.spans, projected_cls=projected_cls, clip=clip)
