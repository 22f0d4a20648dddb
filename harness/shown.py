"""What a sweep file says of its report, beside its trials; `vtbench run` leaves it with the results as sweep.json."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Convention = Literal["flops", "macs", "ivtp", "lvpruning", "fastv", "sparsevlm"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Unreproduced(_Frozen):
    """Printed figures that no sane reading gives: those with all of these settings, and why."""

    where: dict[str, int | str] = Field(min_length=1)  # by table, row, metric, or a key of the printed setting
    reason: str = Field(min_length=1)


class Published(_Frozen):
    """A paper's tables that a report is held against."""

    paper: str
    tables: tuple[str, ...] = Field(min_length=1)
    rows: dict[str, str | dict[str, dict[str, Any] | None]]  # the paper's name: a method, {method: {parameter: value}}
    missing: dict[str, str] = {}  # rows that vtbench has not, and why
    unreproduced: tuple[Unreproduced, ...] = ()


class Shown(_Frozen):
    """A report's text, its FLOPs convention, and the paper's tables beside it."""

    description: str = ""
    convention: Convention = "flops"
    published: Published | None = None
