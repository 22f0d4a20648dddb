import subprocess
import sys

from transformers import AutoProcessor, AutoTokenizer

from harness.pocket import WEIGHTS
from harness.pocket.questions import vocabulary
from harness.pocket.tokenization import llm_tokenizer

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


def test_clips_tokenizer_is_the_same_in_every_process():
    code = (
        "from harness.pocket.tokenization import clip_tokenizer; from harness.pocket.train import training_texts;"
        "print(clip_tokenizer(training_texts(20)).backend_tokenizer.to_str())"
    )
    ran = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert ran[0].stdout == ran[1].stdout != ""
