from transformers import AutoProcessor, AutoTokenizer

from harness.pocket import WEIGHTS
from harness.pocket.questions import vocabulary
from harness.pocket.tokenization import byte_pairs, clip_tokenizer, llm_tokenizer

QUESTION = "is there a red cross in the picture?"


def pieces(tokenizer, text: str) -> list[str]:
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [text[begin:end] for begin, end in offsets]


def test_both_give_offsets_that_cover_the_words_and_split_some_of_them_differently():
    llm, clip = AutoProcessor.from_pretrained(WEIGHTS).tokenizer, AutoTokenizer.from_pretrained(WEIGHTS / "clip")
    assert "".join(pieces(llm, QUESTION)) == "".join(pieces(clip, QUESTION)) == QUESTION.replace(" ", "")
    assert [word for word in vocabulary() if pieces(llm, word) != pieces(clip, word)]


def test_the_committed_llm_tokenizer_is_the_one_that_the_code_makes():
    made, committed = llm_tokenizer(), AutoProcessor.from_pretrained(WEIGHTS).tokenizer
    assert made.get_vocab() == committed.get_vocab()
    assert made(QUESTION)["input_ids"] == committed(QUESTION)["input_ids"]


def test_every_word_is_known_and_answers_are_one_token():
    llm = llm_tokenizer()
    for word in vocabulary():
        assert llm.unk_token_id not in llm(word)["input_ids"]
    assert len(llm("topleft", add_special_tokens=False)["input_ids"]) == 1


def test_byte_pairs_by_hand_ties_by_the_alphabet():
    # Words ab ×2 and cab: pairs (a, b</w>) ×3, then (c, ab</w>) ×1.
    vocabulary, merges = byte_pairs(["ab cab", "ab"], 5)
    assert vocabulary == ["a", "b</w>", "c", "ab</w>", "cab</w>"]
    assert merges == [("a", "b</w>"), ("c", "ab</w>")]
    assert byte_pairs(["ba dc"], 5)[1] == [("b", "a</w>")]


def test_clips_tokenizer_splits_as_its_merges_say():
    tokenizer = clip_tokenizer(["red circle", "red"])
    assert tokenizer.tokenize("red circle") == ["red</w>", "circle</w>"]
    assert tokenizer.tokenize("cred") == ["c", "red</w>"]
