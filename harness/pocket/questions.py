"""Questions about a scene: seven families, each a function from a scene and a random generator to a question.

A family returns None where a scene does not allow it. Answers are single words. `describe` is training text only.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from harness.pocket.scenes import COLORS, LETTERS, PLACES, SHAPES, SIZES, Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four")
OPTIONS = ("A", "B", "C")
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}


class Question(NamedTuple):
    """A question and its answer."""

    text: str
    answer: str


def _pick(rng: np.random.Generator, values: list[Thing]) -> Thing | None:
    return values[rng.integers(len(values))] if values else None


def _name(thing: Thing) -> str:
    return f"{thing.color} {thing.shape}"


def attribute(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The colour of the one thing of a size and shape, or the shape of the one thing of a size and colour."""
    asked, by = ("color", "shape") if rng.random() < 0.5 else ("shape", "color")
    keys = [(thing.size, getattr(thing, by)) for thing in scene.things]
    thing = _pick(rng, [t for t, key in zip(scene.things, keys, strict=True) if keys.count(key) == 1])
    if thing is None:
        return None
    subject = thing.shape if by == "shape" else f"{thing.color} object"
    return Question(f"what {asked} is the {thing.size} {subject}?", getattr(thing, asked))


def existence(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Half yes; a no names a colour and a shape that are both there, but not together, where that can be had."""
    there = {(thing.color, thing.shape) for thing in scene.things}
    if rng.random() < 0.5:
        color, shape = sorted(there)[rng.integers(len(there))]
        return Question(f"is there a {color} {shape} in the picture?", "yes")
    crossed = sorted({(c, s) for c, _ in there for _, s in there} - there)
    if not crossed:
        crossed = sorted({(c, s) for c in COLORS for s in SHAPES} - there)
    color, shape = crossed[rng.integers(len(crossed))]
    return Question(f"is there a {color} {shape} in the picture?", "no")


def count(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How many things have a colour or a shape; the number is drawn first, so that the answers balance."""
    wanted = rng.integers(len(NUMBERS))
    colors = [thing.color for thing in scene.things]
    shapes = [thing.shape for thing in scene.things]
    subjects = [f"{color} objects" for color in COLORS if colors.count(color) == wanted]
    subjects += [PLURALS[shape] for shape in SHAPES if shapes.count(shape) == wanted]
    if not subjects:
        return None
    return Question(f"how many {subjects[rng.integers(len(subjects))]} are there?", NUMBERS[wanted])


def where(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The cell of the 3×3 grid that a thing stands in."""
    thing = scene.things[rng.integers(len(scene.things))]
    return Question(f"where is the {_name(thing)}?", thing.place)


def relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Left or right, above or below, of two things at least 20 px apart along that axis."""
    axis, words = ("x", ("left", "right")) if rng.random() < 0.5 else ("y", ("above", "below"))
    first, second = (scene.things[i] for i in rng.permutation(len(scene.things))[:2])
    distance = getattr(first, axis) - getattr(second, axis)
    if abs(distance) < 20:
        return None
    asked = "left or right of" if axis == "x" else "above or below"
    return Question(f"is the {_name(first)} {asked} the {_name(second)}?", words[int(distance > 0)])


def ocr(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The letter on a thing."""
    thing = _pick(rng, [thing for thing in scene.things if thing.letter is not None])
    if thing is None or thing.letter is None:
        return None
    return Question(f"what letter is on the {_name(thing)}?", thing.letter)


def choice(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The attribute question with three options, answered by A, B or C."""
    question = attribute(scene, rng)
    if question is None:
        return None
    values = list(COLORS) if question.answer in COLORS else list(SHAPES)
    wrong = [value for value in values if value != question.answer]
    options = [question.answer, *rng.permutation(wrong)[:2]]
    order = rng.permutation(3)
    listed = " ".join(f"{letter}. {options[i]}" for letter, i in zip(OPTIONS, order, strict=True))
    return Question(f"{question.text} {listed}", OPTIONS[list(order).index(0)])


def describe(scene: Scene, rng: np.random.Generator) -> Question:
    """All that there is to say of one thing."""
    thing = scene.things[rng.integers(len(scene.things))]
    letter = [] if thing.letter is None else [thing.letter]
    return Question(
        f"describe the {_name(thing)}.", " ".join([thing.size, thing.color, thing.shape, thing.place, *letter])
    )


FAMILIES: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "attribute": attribute,
    "existence": existence,
    "count": count,
    "where": where,
    "relation": relation,
    "ocr": ocr,
    "choice": choice,
}


def caption(scene: Scene) -> str:
    """All things of a scene in one line, for the contrastive loss."""
    return " , ".join(" ".join(filter(None, (t.size, t.color, t.shape, t.letter))) for t in scene.things)


def visible_words(scene: Scene) -> set[str]:
    """The words that name something seen in the picture."""
    return {word for t in scene.things for word in (t.color, t.shape, PLURALS[t.shape], t.letter) if word}


def vocabulary() -> list[str]:
    """Every word of the questions and answers, in a fixed order."""
    function = (  # noqa: SIM905
        "what color shape letter size is are the a in on of or there how many where left right above below describe "
        "object objects picture yes no"
    ).split()
    named = [*COLORS, *SHAPES, *PLURALS.values(), *SIZES, *PLACES, *LETTERS, *NUMBERS, *OPTIONS]
    return list(dict.fromkeys([*function, *named, "?", ".", ",", ":", "USER", "ASSISTANT"]))
