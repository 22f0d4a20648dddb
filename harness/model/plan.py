"""From a method's stages to what happens at every layer of a tower; refuses what cannot work before anything runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from harness.errors import VtbenchError
from methods.interface import Cut, Method, Need, Seam, Shape, Stage

Needs = frozenset[Need]

RIDER: Needs = frozenset({"cls", "rider_row", "rider_rows", "rider_rollout"})
NEXT: Needs = frozenset({"next_keys", "next_cls_row", "next_last_row"})
ROWS: Needs = frozenset({"cls_rows", "rider_rows"})
ROLLED: Needs = frozenset({"cls_rollout", "rider_rollout"})
OF_CLS: Needs = frozenset({"cls_row", "rider_row"})
OWN_ROW: Needs = ROWS | ROLLED | OF_CLS  # of CLS or the pseudo CLS
OF_TEXT: Needs = frozenset({"last_row", "rater_row"})
OF_PROMPT: Needs = OF_TEXT | {"next_last_row"}  # of text behind the image, too
ATTENTION: Needs = ROLLED | OF_CLS | OF_TEXT | NEXT - {"next_keys"}
KEYS: Needs = frozenset({"keys", "next_keys"})
OF_ANY: Needs = frozenset({"keys", "value_norm"})
PROBED: Needs = OWN_ROW | OF_TEXT | OF_ANY  # of the last layer run

IN_VIT: Needs = frozenset({"cls", "cls_row", "cls_rows", "cls_rollout", "next_keys", "next_cls_row"})
DRAWN: Needs = frozenset({"random"})
POSSIBLE: dict[Seam, Needs] = {
    "image": frozenset(),
    "vit": IN_VIT | OF_ANY | DRAWN,
    "input": DRAWN,
    "llm": RIDER | OF_TEXT | OF_ANY | DRAWN | {"next_last_row"},
}


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
    rows: frozenset[int]  # layers of which CLS's own row, in the LLM the pseudo CLS's, is wanted
    matrix: frozenset[int]  # layers whose whole attention matrix a rollout goes through
    rider: int  # the pseudo CLS goes through the layers below this one, −1 where there is none


def reads_text(method: Method, stages: Iterable[Stage]) -> bool:
    """Whether a method's cuts depend on text behind the image, so that prompts cannot share what is before."""
    return method.reads_question or any(stage.needs & OF_PROMPT or stage.module for stage in stages)


def plan(stages: Iterable[Stage], seam: Seam, shape: Shape, layers: int) -> Plan:
    """Return what these stages do at one seam of a tower that has so many layers, read or not.

    A rollout, and the rows of a group, go through the layers since the tower's previous cut, whichever stage made it,
    as tokens are others beyond it. Errors: VtbenchError for a stage that cannot work there.
    """
    mine = [Planned(stage, cut) for stage in stages if stage.seam == seam for cut in stage.cuts]
    mine.sort(key=lambda each: (each.above, not each.stage.inside))
    before: dict[int, list[Planned]] = {}
    inside: dict[int, list[Planned]] = {}
    heard: set[int] = set()
    rows: set[int] = set()
    matrix: set[int] = set()
    previous = None
    for each in mine:
        stage, cut = each
        _check(each, shape, layers)
        (inside if stage.inside else before).setdefault(cut.layer, []).append(each)
        if stage.needs & PROBED:
            if each.above == previous:
                raise VtbenchError(
                    f"{seam}: a second cut behind layer {each.above} cannot have {_names(stage.needs & PROBED)}, "
                    "since the tokens are others after the first"
                )
            heard.add(each.above)
        group = set(range(0 if previous is None else previous + 1, each.above))
        if stage.needs & OWN_ROW:
            rows.add(each.above)
        if stage.needs & ROWS:
            rows |= group
        if stage.needs & ROLLED:
            matrix |= group
        previous = each.above
    rider = max((each.cut.layer for each in mine if seam == "llm" and each.stage.needs & RIDER), default=-1)
    heard |= rows | matrix | set(range(rider))
    return Plan(before, inside, frozenset(heard), frozenset(rows), frozenset(matrix), rider)


def _check(planned: Planned, shape: Shape, layers: int) -> None:
    stage, cut = planned
    seam = stage.seam
    impossible = stage.needs - POSSIBLE[seam]
    if impossible:
        allowed = _names(POSSIBLE[seam]) or "none"
        raise VtbenchError(f"{seam}: a stage there cannot have {_names(impossible)}; allowed are {allowed}")
    for field, needs in (("attention", ATTENTION), ("keys", KEYS)):
        if len(stage.needs & needs) > 1:
            raise VtbenchError(
                f"{seam}: a stage has one View.{field}, not {_names(stage.needs & needs)}; name one of them"
            )
    if seam != "vit" and (stage.inside or stage.proportional):
        raise VtbenchError(f"{seam}: inside and proportional are possible in the ViT only")
    if seam == "image" and stage.adaptive:
        raise VtbenchError("image: adaptive is not possible, since a batch's images are of one size")
    last = {"image": 0, "vit": shape.vit_layers - stage.inside, "input": cut.layer, "llm": shape.llm_layers - 1}
    if not 0 <= cut.layer <= last[seam]:
        raise VtbenchError(f"{seam}: a cut at layer {cut.layer} is not possible; allowed are 0 to {last[seam]}")
    if stage.needs & PROBED and planned.above < 0:
        raise VtbenchError(
            f"{seam}: a cut before layer 0 cannot have {_names(stage.needs & PROBED)}, since no layer has run"
        )
    if stage.needs & NEXT and (stage.inside or cut.layer >= layers):
        raise VtbenchError(
            f"{seam}: a cut at layer {cut.layer} cannot have {_names(stage.needs & NEXT)}; "
            f"allowed is a cut before one of the {layers} layers"
        )


def _names(needs: Iterable[str]) -> str:
    return ", ".join(sorted(needs))
