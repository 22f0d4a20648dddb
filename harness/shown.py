"""What a sweep file says of its report, beside its trials; `vtbench run` leaves it with the results as sweep.json."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Convention = Literal["flops", "macs", "ivtp", "lvpruning", "fastv", "sparsevlm"]


# What a row of `published` may name beside a method's parameters.
SETTINGS = ("limit", "seed", "dtype", "attention", "compile")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _setting(value: object) -> object:
    if not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not possible; it should be a number or a word")
    return value


def _row(entry: object) -> object:
    one = isinstance(entry, dict) and len(entry) == 1 and isinstance(next(iter(entry.values())), dict | None)
    if not isinstance(entry, str) and not one:
        raise ValueError(f"{entry!r} is not possible; it should be a name, or {{name: {{parameter: value}}}}")
    return entry


def parameters_of(entry: Any) -> Any:
    """Return a row of `published` without what is no parameter of a method but a setting that a sweep can vary."""
    if not isinstance(entry, dict) or not isinstance(given := next(iter(entry.values())), dict):
        return entry
    return {next(iter(entry)): {key: value for key, value in given.items() if key not in SETTINGS}}


class Unreproduced(_Frozen):
    """Printed figures that no sane reading gives: those with all of these settings, and why."""

    # by table, row, metric, or a key of the printed setting
    where: dict[str, Annotated[Any, AfterValidator(_setting)]] = Field(min_length=1)
    reason: str = Field(min_length=1)


class Published(_Frozen):
    """A paper's tables that a report is held against."""

    paper: str
    tables: tuple[str, ...] = Field(min_length=1)
    rows: dict[str, Annotated[Any, AfterValidator(_row)]]  # the paper's name: a method, {method: {parameter: value}}
    missing: dict[str, str] = {}  # rows that vtbench has not, and why
    unreproduced: tuple[Unreproduced, ...] = ()


class Shown(_Frozen):
    """A report's text, its FLOPs convention, the paper's tables beside it, and the ids of the trials asked for."""

    description: str = ""
    convention: Convention = "flops"
    published: Published | None = None
    trials: tuple[str, ...] = ()
