"""From a method's stages to what happens at every layer of a tower; refuses what cannot work before anything runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from harness.errors import VtbenchError
from methods.interface import Cut, Need, Seam, Shape, Stage

POSSIBLE: dict[Seam, frozenset[Need]] = {
    "vit": frozenset({"cls", "keys", "value_norm", "random", "cls_row", "cls_rollout"}),
    "input": frozenset({"random"}),
    "llm": frozenset({"value_norm", "random", "last_row", "rider_rollout"}),
}
ATTENTION: frozenset[Need] = frozenset({"cls_row", "cls_rollout", "last_row", "rider_rollout"})
PROBED: frozenset[Need] = ATTENTION | {"keys", "value_norm"}
ROLLED: frozenset[Need] = frozenset({"cls_rollout", "rider_rollout"})


class Planned(NamedTuple):
    """One cut with the stage that makes it."""

    stage: Stage
    cut: Cut

    @property
    def above(self) -> int:
        """The last layer whose attention has run, −1 where none has."""
        return self.cut.layer - (not self.stage.inside)


@dataclass(frozen=True)
class Plan:
    """What one tower does. Several cuts at one place are made one after another."""

    before: dict[int, list[Planned]]  # by layer
    inside: dict[int, list[Planned]]
    heard: frozenset[int]  # layers whose projections are overheard
    matrix: frozenset[int]  # layers whose whole attention matrix a rollout goes through
    rider: int  # the rider goes through the layers below this one


def plan(stages: Iterable[Stage], seam: Seam, shape: Shape) -> Plan:
    """Return what these stages do at one seam.

    A rollout goes through the layers since the tower's previous cut, whichever stage made it, as tokens are others
    beyond it. Errors: VtbenchError for a stage that cannot work there.
    """
    mine = [Planned(stage, cut) for stage in stages if stage.seam == seam for cut in stage.cuts]
    mine.sort(key=lambda each: (each.above, not each.stage.inside))
    before: dict[int, list[Planned]] = {}
    inside: dict[int, list[Planned]] = {}
    heard: set[int] = set()
    matrix: set[int] = set()
    previous = None
    for each in mine:
        stage, cut = each
        _check(each, shape)
        (inside if stage.inside else before).setdefault(cut.layer, []).append(each)
        if stage.needs & PROBED:
            if each.above == previous:
                raise VtbenchError(
                    f"{seam}: a second cut behind layer {each.above} cannot have {_names(stage.needs & PROBED)}, "
                    "since the tokens are others after the first"
                )
            heard.add(each.above)
        if stage.needs & ROLLED:
            matrix |= set(range(0 if previous is None else previous + 1, each.above))
        previous = each.above
    rider = max((each.cut.layer for each in mine if "rider_rollout" in each.stage.needs), default=0)
    return Plan(before, inside, frozenset(heard | matrix | set(range(rider))), frozenset(matrix), rider)


def _check(planned: Planned, shape: Shape) -> None:
    stage, cut = planned
    seam = stage.seam
    impossible = stage.needs - POSSIBLE[seam]
    if impossible:
        raise VtbenchError(
            f"{seam}: a stage there cannot have {_names(impossible)}; allowed are {_names(POSSIBLE[seam])}"
        )
    if len(stage.needs & ATTENTION) > 1:
        raise VtbenchError(
            f"{seam}: a stage has one View.attention, not {_names(stage.needs & ATTENTION)}; name one of them"
        )
    if seam != "vit" and (stage.inside or stage.proportional):
        raise VtbenchError(f"{seam}: inside and proportional are possible in the ViT only")
    highest = {"vit": shape.vit_layers - stage.inside, "input": cut.layer, "llm": shape.llm_layers - 1}[seam]
    if not 0 <= cut.layer <= highest:
        raise VtbenchError(f"{seam}: a cut at layer {cut.layer} is not possible; allowed are 0 to {highest}")
    if stage.needs & PROBED and planned.above < 0:
        raise VtbenchError(
            f"{seam}: a cut before layer 0 cannot have {_names(stage.needs & PROBED)}, since no layer has run"
        )


def _names(needs: Iterable[str]) -> str:
    return ", ".join(sorted(needs))
