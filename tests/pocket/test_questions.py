"""Answers are checked against a reader of the question's words that shares no code with the families."""

import re

import numpy as np
import pytest

from harness.pocket.questions import FAMILIES, NUMBERS, vocabulary
from harness.pocket.scenes import COLORS, Scene, Thing, scene

SCENES = [scene(seed) for seed in range(300)]


def named(picture: Scene, color: str, shape: str) -> list[Thing]:
    return [thing for thing in picture.things if (thing.color, thing.shape) == (color, shape)]


def read(picture: Scene, text: str) -> str:
    """Answer a question from the scene's symbols."""
    if match := re.fullmatch(r"what (color|shape) is the (\w+) (\w+)(?: object)?\?(.*)", text):
        asked, size, value, options = match.groups()
        by = "color" if value in COLORS else "shape"
        (thing,) = (thing for thing in picture.things if thing.size == size and getattr(thing, by) == value)
        answer = getattr(thing, asked)
        return {word: letter for letter, word in re.findall(r"([ABC])\. (\w+)", options)}[answer] if options else answer
    if match := re.fullmatch(r"is there a (\w+) (\w+) in the picture\?", text):
        return "yes" if named(picture, *match.groups()) else "no"
    if match := re.fullmatch(r"how many (\w+)( objects)? are there\?", text):
        word = match[1] if match[2] else {"crosses": "cross"}.get(match[1], match[1].removesuffix("s"))
        return NUMBERS[sum(word in (thing.color, thing.shape) for thing in picture.things)]
    if match := re.fullmatch(r"where is the (\w+) (\w+)\?", text):
        return named(picture, *match.groups())[0].place
    if match := re.fullmatch(r"what letter is on the (\w+) (\w+)\?", text):
        return str(named(picture, *match.groups())[0].letter)
    match = re.fullmatch(r"is the (\w+) (\w+) (left or right of|above or below) the (\w+) (\w+)\?", text)
    assert match, text
    first, second = named(picture, match[1], match[2])[0], named(picture, match[4], match[5])[0]
    if match[3] == "above or below":
        return "above" if first.y < second.y else "below"
    return "left" if first.x < second.x else "right"


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_right_and_every_word_is_known(family):
    rng = np.random.default_rng(0)
    known = set(vocabulary())
    asked = 0
    for picture in SCENES[:150]:
        if question := FAMILIES[family](picture, rng):
            asked += 1
            assert read(picture, question.text) == question.answer
            assert {question.answer, *re.findall(r"\w+|[^\w\s]", question.text)} <= known
    assert asked > 50


def test_half_of_the_existence_questions_are_yes_and_a_no_names_what_is_there_apart():
    rng = np.random.default_rng(0)
    given, apart = [], []
    for seed in range(300):
        question = FAMILIES["existence"](SCENES[seed], rng)
        assert question is not None
        given.append(question.answer)
        _, _, _, color, shape, *_ = question.text.split()
        there = SCENES[seed].things
        apart.append(color in {thing.color for thing in there} and shape in {thing.shape for thing in there})
    assert 0.43 < given.count("yes") / len(given) < 0.57
    assert np.mean(apart) > 0.95  # a scene of one colour leaves nothing to cross
