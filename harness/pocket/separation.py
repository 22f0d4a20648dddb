"""Measures whether PocketVQA separates kinds of methods on a pocket model: `python -m harness.pocket.separation`.

An oracle, which knows what a question is about, should beat methods that the instruction guides, those should beat
methods that CLS guides, and those random pruning; each beyond its 95 % paired interval. Also IVTP over thresholds.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from harness.lmms.model import VtBench
from harness.model.attach import attach
from harness.model.load import load
from harness.pocket.data import Row
from harness.pocket.evaluate import pictures, rows
from harness.pocket.questions import FAMILIES, PLURALS
from harness.pocket.scenes import draw, patch_owners, scene
from harness.report.statistics import interval, paired
from methods import method
from methods.interface import Cut, Method, Reduced, Shape, Stage, View
from methods.reduce import keep_top

BATCH, MOST_WORDS = 20, 4
GUIDED = {"ivtp": {}, "fastv": {"budget": "kept"}, "pyramiddrop": {"budget": "kept"}, "sparsevlm": {"budget": "kept"}}
BY_CLS = ("topk", "evit", "visionzip", "ivtp-v")
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


@dataclass(frozen=True, kw_only=True)
class Oracle(Method):
    """Keeps, at the LLM's input, the patches that rank highest for each question of a batch."""

    name: ClassVar[str] = "oracle"
    paper: ClassVar[str] = "control"

    tokens: int
    rank: Tensor  # [B, 576]

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return one stage at the LLM's input."""
        return (Stage(seam="input", reduce=self.keep, cuts=(Cut(0, self.tokens),)),)

    def keep(self, view: View, n: int) -> Reduced:
        """Keep the n patches of highest rank."""
        return keep_top(self.rank, n)


def rank(row: Row) -> NDArray[np.float32]:
    """Return how much each patch [576] matters to a question.

    First the things of which it names most (colour, shape, size), then the other things, then the ground. Patches of
    one kind come in an order drawn by the scene's seed, so that a small budget is spread over all of them.
    """
    picture = scene(int(row["image_id"]))
    owners = patch_owners(draw(picture)[1])
    words = set(re.findall(r"\w+", str(row["question"]).partition("?")[0]))
    named = [len(words & {t.color, t.shape, PLURALS[t.shape], t.size}) for t in picture.things]
    drawn = np.random.default_rng([picture.seed, 4]).random(owners.size)
    return (np.array([1 + count for count in named] + [0])[owners] + drawn).astype(np.float32)


def foreseen(n: int, batch: list[Row]) -> Oracle:
    """Return the oracle of a batch."""
    return Oracle(tokens=n, rank=torch.from_numpy(np.stack([rank(row) for row in batch])))


def answers(lm: VtBench, asked: list[Row], make: Callable[[list[Row]], Method]) -> pd.DataFrame:
    """Ask every question with the method that `make` gives for its batch; the samples as a record's."""
    images = pictures()
    samples: list[dict[str, Any]] = []
    tokenizer = lm.loaded.processor.tokenizer
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        inputs = lm.inputs(
            [lm.prompt(str(row["question"]), 1) for row in batch], [images[int(row["image_id"])] for row in batch]
        )
        with attach(lm.loaded.model, make(batch), tokenizer=tokenizer), torch.inference_mode():
            new = lm.loaded.model.generate(**inputs, max_new_tokens=MOST_WORDS, do_sample=False)
        given = tokenizer.batch_decode(new[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        samples += [
            {
                "task": str(row["question_id"]).partition("-")[0],
                "doc_id": row["question_id"],
                "image_id": row["image_id"],
                "score": float(answer.strip().lower() == str(row["answer"]).lower()),
            }
            for row, answer in zip(batch, given, strict=True)
        ]
    return pd.DataFrame(samples)


def main(
    weights: Annotated[str, typer.Argument(help="pocket, or an exported folder")] = "pocket",
    tokens: Annotated[list[int] | None, typer.Option(help="budgets; by default 64 and 16")] = None,
    limit: Annotated[int | None, typer.Option(help="questions of each family")] = None,
    thresholds: Annotated[bool, typer.Option(help="IVTP's thresholds at 64 tokens too")] = True,
    out: Annotated[Path | None, typer.Option(help="a parquet file of all samples")] = None,
) -> None:
    """Print the accuracy of every kind of method, and each kind's lead over the next."""
    lm = VtBench(load(weights))
    asked = [row for family in FAMILIES for row in rows(family, limit)]
    kept: list[pd.DataFrame] = []

    def measure(label: str, make: Callable[[list[Row]], Method]) -> pd.DataFrame:
        samples = answers(lm, asked, make)
        kept.append(samples.assign(method=label))
        mean, low, high = interval(samples)
        print(f"{label:<28}{100 * mean:5.1f} ({100 * low:.1f}–{100 * high:.1f})", flush=True)
        return samples

    def lead(better: str, samples: pd.DataFrame, worse: str, others: pd.DataFrame) -> None:
        mean, low, high, *_ = paired(samples, others)
        print(f"  {better} − {worse}: {100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})", flush=True)

    def best(names: dict[str, dict[str, str]], n: int) -> tuple[str, pd.DataFrame]:
        tried = {name: measure(f"{name} {n}", one(name, tokens=n, **more)) for name, more in names.items()}
        return max(tried.items(), key=lambda item: interval(item[1]).mean)

    full = measure("full", one("full"))
    for n in tokens or (64, 16):
        oracle = measure(f"oracle {n}", partial(foreseen, n))
        guided, by_cls = best(GUIDED, n), best({name: {} for name in BY_CLS}, n)
        random = measure(f"random {n}", one("random", tokens=n))
        lead("full", full, "oracle", oracle)
        lead("oracle", oracle, *guided)
        lead(*guided, *by_cls)
        lead(*by_cls, "random", random)
    for threshold in THRESHOLDS if thresholds else ():
        measure(f"ivtp 64, threshold {threshold}", one("ivtp", tokens=64, threshold=threshold))
    if out is not None:
        pd.concat(kept, ignore_index=True).to_parquet(out, index=False)


def one(name: str, **parameters: Any) -> Callable[[list[Row]], Method]:
    """Return what gives the same method for every batch."""
    chosen = method(name, **parameters)
    return lambda batch: chosen


if __name__ == "__main__":
    typer.run(main)
