from collections import Counter

import pyarrow.parquet as pq
import pytest

from harness.pocket.data import ANSWERS, FOLDER, QUESTIONS, RICH, SCENES, is_rich, picture, questions, seeds, write
from harness.pocket.evaluate import rows
from harness.pocket.questions import FAMILIES
from harness.pocket.train import TEST, VALIDATION


@pytest.mark.parametrize("family", FAMILIES)
def test_the_code_writes_the_committed_questions_byte_for_byte(family, tmp_path):
    write(questions(family), tmp_path / "questions.parquet")
    assert (tmp_path / "questions.parquet").read_bytes() == (FOLDER / f"{family}.parquet").read_bytes()


def test_the_code_draws_the_committed_pictures_byte_for_byte():
    committed = pq.read_table(FOLDER / "images.parquet").slice(0, 12).to_pylist()
    assert committed == [{"image_id": seed, "png": picture(seed)} for seed in range(TEST, TEST + 12)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_test_split_is_balanced_from_its_first_question_on(family):
    asked = rows(family)
    assert len({(row["image_id"], row["question"]) for row in asked}) == len(asked) == QUESTIONS
    for start in (len(ANSWERS[family]), QUESTIONS):
        counts = Counter(row["answer"] for row in asked[:start])
        assert set(counts) == set(ANSWERS[family])
        assert max(counts.values()) - min(counts.values()) <= 1


def test_splits_share_no_scene():
    used = {row["image_id"] for family in FAMILIES for row in rows(family)}
    assert 10_000_000 <= VALIDATION < TEST <= min(used)  # training seeds lie below ten million
    assert used <= set(seeds())


def test_only_count_and_ocr_ask_about_scenes_that_were_chosen():
    first, more = seeds()[:SCENES], seeds()[SCENES:]
    assert first == tuple(range(TEST, TEST + SCENES))
    assert len(more) == RICH and all(is_rich(seed) for seed in more)
    assert more[0] == next(seed for seed in range(TEST + SCENES, TEST + 10_000) if is_rich(seed))
    for family in FAMILIES:
        asked = {row["image_id"] for row in rows(family)}
        assert (asked <= set(first)) == (family not in ("count", "ocr"))
    assert len({row["image_id"] for family in FAMILIES for row in rows(family)}) >= 300
