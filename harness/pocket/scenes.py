"""Scenes: what is in a PocketVQA picture, and the picture itself, both a function of the seed alone.

A picture is 120×120 px, 24×24 patches of 5 px, with 4 to 6 things, each in a cell of its own of a 3×3 grid, on a noisy
and cluttered background. No two things of a scene share both colour and shape, so "the red circle" names one thing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIZE, PATCH = 120, 5
GRID = SIZE // PATCH
CELL = SIZE // 3

COLORS = {
    "red": (214, 44, 44),
    "green": (48, 168, 64),
    "blue": (46, 84, 214),
    "yellow": (232, 210, 52),
    "purple": (150, 62, 190),
    "cyan": (62, 200, 210),
    "orange": (238, 136, 36),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
SIZES = ("small", "large")
PLACES = ("topleft", "top", "topright", "left", "center", "right", "bottomleft", "bottom", "bottomright")
LETTERS = {  # 5×5 bitmaps, drawn at 3 px a dot
    "E": ("11111", "10000", "11110", "10000", "11111"),
    "H": ("10001", "10001", "11111", "10001", "10001"),
    "K": ("10010", "10100", "11000", "10100", "10010"),
    "L": ("10000", "10000", "10000", "10000", "11111"),
    "O": ("01110", "10001", "10001", "10001", "01110"),
    "T": ("11111", "00100", "00100", "00100", "00100"),
    "X": ("10001", "01010", "00100", "01010", "10001"),
    "Z": ("11111", "00010", "00100", "01000", "11111"),
}
_BITMAPS = {
    letter: np.kron(np.array([[dot == "1" for dot in row] for row in rows]), np.ones((3, 3), bool))
    for letter, rows in LETTERS.items()
}


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One thing of a scene; x, y is its centre and radius half its extent, in pixels."""

    color: str
    shape: str
    size: str
    letter: str | None
    place: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """The things of a picture, and the seed that made them and draws them."""

    seed: int
    things: tuple[Thing, ...]


def scene(seed: int) -> Scene:
    """Return the scene of a seed."""
    rng = np.random.default_rng([seed, 0])
    # A colour or a shape that recurs makes counts above one common enough to ask for.
    theme_color, theme_shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
    by_color = rng.random() < 0.5
    themed = 0.55 if rng.random() < 0.7 else 0.0
    things: list[Thing] = []
    taken: set[tuple[str, str]] = set()
    for cell in rng.permutation(9)[: rng.integers(4, 7)]:
        while True:
            color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
            if rng.random() < themed:
                color, shape = (theme_color, shape) if by_color else (color, theme_shape)
            if (color, shape) not in taken:
                break
        taken.add((color, shape))
        size = SIZES[int(rng.random() < 0.55)]
        radius = rng.uniform(12.5, 14.5) if size == "large" else rng.uniform(7.5, 8.5)
        lettered = size == "large" and shape in ("circle", "square") and rng.random() < 0.85
        letter = str(rng.choice(list(LETTERS))) if lettered else None
        row, column = divmod(int(cell), 3)
        x, y = (_centre(rng, index, radius) for index in (column, row))
        things.append(
            Thing(
                color=str(color),
                shape=str(shape),
                size=size,
                letter=letter,
                place=PLACES[cell],
                x=x,
                y=y,
                radius=radius,
            )
        )
    return Scene(seed, tuple(things))


def _centre(rng: np.random.Generator, index: int, radius: float) -> float:
    """Place a centre in a cell, 4.5 px and more from its borders and wholly within the picture."""
    low, high = index * CELL + 4.5, (index + 1) * CELL - 4.5
    # Neighbours may touch but hardly overlap: a large thing stays near the middle of its cell.
    slack = 15.5 if radius < 10 else 8.0
    middle = (index + 0.5) * CELL
    low, high = max(low, middle - slack, radius + 1), min(high, middle + slack, SIZE - radius - 1)
    return float(rng.uniform(low, high))


def draw(picture: Scene) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Return the picture [120, 120, 3] and, per pixel [120, 120], the index of the thing seen there, −1 for none."""
    rng = np.random.default_rng([picture.seed, 1])
    image = _background(rng)
    owner = np.full((SIZE, SIZE), -1, np.int8)
    ys, xs = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    for index, thing in enumerate(picture.things):
        mask = _mask(thing, xs - thing.x, ys - thing.y)
        color = np.array(COLORS[thing.color]) + rng.integers(-14, 15, 3)
        image[mask] = color + rng.normal(0, 6, (int(mask.sum()), 3))
        owner[mask] = index
        if thing.letter is not None:
            top, left = round(thing.y - 7.5), round(thing.x - 7.5)
            window = image[top : top + 15, left : left + 15]
            window[_BITMAPS[thing.letter]] = 245 if sum(COLORS[thing.color]) < 400 else 15
    return image.clip(0, 255).astype(np.uint8), owner


def _background(rng: np.random.Generator) -> NDArray[np.float64]:
    base = rng.uniform(70, 170) + rng.normal(0, 8, 3)
    coarse = rng.normal(0, 14, (12, 12, 3)).repeat(10, axis=0).repeat(10, axis=1)
    image = base + coarse + rng.normal(0, 9, (SIZE, SIZE, 3))
    for _ in range(14):
        x, y = rng.integers(0, SIZE - 8, 2)
        width, height = rng.integers(2, 8, 2)
        image[y : y + height, x : x + width] = base + rng.normal(0, 28, 3)
    return image


def _mask(thing: Thing, dx: NDArray[np.float64], dy: NDArray[np.float64]) -> NDArray[np.bool_]:
    r = thing.radius
    ax, ay = np.abs(dx), np.abs(dy)
    match thing.shape:
        case "circle":
            return dx**2 + dy**2 <= r**2
        case "ring":
            distance = dx**2 + dy**2
            return (distance <= r**2) & (distance >= (0.55 * r) ** 2)
        case "square":
            return np.maximum(ax, ay) <= 0.88 * r
        case "diamond":
            return ax + ay <= 1.08 * r
        case "triangle":
            return (dy <= 0.85 * r) & (ax <= 0.55 * (dy + r))
        case _:
            return (np.minimum(ax, ay) <= 0.32 * r) & (np.maximum(ax, ay) <= r)


def patch_owners(owner: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return per patch [576] the thing that covers most of it, −1 where things cover less than 8 of its 25 pixels."""
    blocks = owner.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID * GRID, PATCH * PATCH)
    counts = np.stack([(blocks == index).sum(axis=1) for index in range(max(owner.max() + 1, 1))])
    return np.where(counts.max(axis=0) >= 8, counts.argmax(axis=0), -1).astype(np.int8)
