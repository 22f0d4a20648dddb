"""Draws scenes with a question of each family, as the card shows them: `python -m harness.pocket.gallery`."""

from pathlib import Path
from textwrap import fill

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np

from harness.pocket.questions import FAMILIES
from harness.pocket.scenes import draw, scene
from harness.pocket.train import VALIDATION

PICTURE = Path(__file__).parent / "scenes.png"


def main(out: Path = PICTURE) -> None:
    """Draw for every family the first validation scene from its place on that has a question of it."""
    figure, panels = plt.subplots(2, 4, figsize=(10, 7.4), layout="constrained")
    for place, (axes, (name, family)) in enumerate(zip(panels.flat, FAMILIES.items(), strict=False)):
        seed = VALIDATION + 100 * place
        while (question := family(scene(seed), np.random.default_rng([seed, 3]))) is None:
            seed += 1
        axes.imshow(draw(scene(seed))[0], interpolation="nearest")
        axes.set_title(name, fontsize=10, fontweight="bold")
        axes.set_xlabel(f"{fill(question.text, 30)}\n→ {question.answer}", fontsize=9)
        axes.set(xticks=[], yticks=[])
    panels.flat[len(FAMILIES)].axis("off")
    figure.savefig(out, dpi=90, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
