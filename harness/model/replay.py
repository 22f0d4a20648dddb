"""A method's schedule without its choosing: what a run kept is recorded, and given back in a later run of the prompt.

What a method takes longer than its replay is the method's own cost: scores, `needs`, merging, the pseudo CLS with the
text encoder, a trained module. What both pay is the cutting itself: gathering what stays, masks and positions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle
from typing import ClassVar

from torch import Tensor

from methods.interface import Method, PseudoCLS, Reduced, Shape, Stage, View, Words


@dataclass(frozen=True, kw_only=True)
class Recorded(Method):
    """The method itself, which notes what each of its cuts keeps; `cuts` is filled while it is attached."""

    paper: ClassVar[str] = "none"

    method: Method
    cuts: list[tuple[Stage, list[Tensor]]] = field(default_factory=list)  # one cut each, with every call's index

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.method.name)  # which errors begin with

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return the method's stages, one a cut. Errors: the method's."""
        stages = self.method.stages(shape)
        self.cuts[:] = [(replace(stage, cuts=(cut,)), []) for stage in stages for cut in stage.cuts]
        return tuple(replace(stage, reduce=partial(_noted, stage.reduce, kept)) for stage, kept in self.cuts)

    @property
    def reads_question(self) -> bool:
        """Whether the method does."""
        return self.method.reads_question

    @property
    def reads_clip(self) -> bool:
        """Whether the method does."""
        return self.method.reads_clip

    @property
    def inserts_pseudo_cls(self) -> bool:
        """Whether the method does."""
        return self.method.inserts_pseudo_cls

    def guide(self, words: Words) -> PseudoCLS:
        """Return the method's pseudo CLS."""
        return self.method.guide(words)

    def replay(self) -> "Replay":
        """Return the method that keeps the same again; to be asked after a run."""
        return Replay(positions=self.positions, recorded=tuple(self.cuts))


@dataclass(frozen=True, kw_only=True)
class Replay(Method):
    """Keeps, on the prompt of which it was recorded, the patches that the method kept, at every layer.

    Tokens are not merged: each is the one whose patch and position the method's token has. No pseudo CLS comes into
    being, so where the method has it as a token of the sequence, the replay's sequence is one token an image shorter,
    and that token's way through the LLM is part of what the method takes longer.
    """

    name: ClassVar[str] = "replay"
    paper: ClassVar[str] = "none"

    recorded: tuple[tuple[Stage, list[Tensor]], ...]

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return the recorded cuts, which need nothing."""
        return tuple(
            Stage(
                seam=stage.seam,
                reduce=partial(
                    _again, cycle(kept)
                ),  # a cut is called once a pass, or once an image where counts differ
                cuts=stage.cuts,
                inside=stage.inside,
                adaptive=stage.adaptive,
            )
            for stage, kept in self.recorded
        )


def _noted(reduce: Callable[[View, int], Reduced], kept: list[Tensor], view: View, n: int) -> Reduced:
    reduced = reduce(view, n)
    kept.append(reduced.index)
    return reduced


def _again(kept: Iterator[Tensor], view: View, n: int) -> Reduced:
    return Reduced(next(kept))


def recorded(method: Method) -> Recorded:
    """Return the method with its cuts noted: `with attach(model, noted := recorded(method)): …; noted.replay()`."""
    return Recorded(positions=method.positions, method=method)
