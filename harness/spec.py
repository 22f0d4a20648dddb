"""Reads a sweep file and expands it to frozen trials, each with an id made of everything that can change its numbers.

Every key is in sweeps/README.md. Mistakes are VtbenchErrors of one line: the file, the key, what is allowed. What
can be said without the methods comes first, for they import torch, which takes seconds.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from harness.amounts import Bytes, Seconds
from harness.check import look as look_at
from harness.errors import VtbenchError
from harness.fingerprint import fingerprint
from harness.lmms.names import OWN, own_tasks
from harness.method_axes import Asked, MethodAxes, asked, check_one, method_axes, named, with_budget
from harness.model.look import SHAPES
from harness.pocket import WEIGHTS
from harness.reading import LARGEST_NUMBER, Axis, as_axis, brief, explain, read_mapping
from harness.shown import Convention, Published, Shown, Unreproduced, parameters_of

if TYPE_CHECKING:
    from methods.interface import Method

# Raise it when the code measures anything differently: every id changes with it, so that every trial runs again.
PROTOCOL = 3

MANY = 10_000  # trials of a sweep that is meant
LEAST = 0.0001  # of a CPU or GPU that Ray can reserve; of several GPUs it reserves whole ones

Measure = Literal["accuracy", "flops", "latency", "memory", "tokens"]
MEASURES: tuple[Measure, ...] = ("accuracy", "flops", "latency", "memory", "tokens")
COUNTED: tuple[Measure, ...] = ("flops", "memory", "tokens")  # what a model without weights gives


def _printable(value: str) -> str:
    if not value.isprintable() or not all(len(part.encode()) <= 255 for part in value.split("/")) or len(value) > 1000:
        raise ValueError(f"{brief(value)} is not possible; allowed are printable characters, at most 1000")
    return value


def _text(value: str) -> str:
    for each in value:
        if not each.isprintable() and each not in "\n\t":
            raise ValueError(f"has the character {each!a}; allowed are those that can be printed")
    return value


Name = Annotated[str, Field(min_length=1), AfterValidator(_printable)]
Text = Annotated[str, AfterValidator(_text)]
Natural = Annotated[int, Field(ge=1, le=LARGEST_NUMBER)]
Label = Annotated[str, Field(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?$")]  # as Kubernetes allows


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Trial(_Frozen):
    """One cell of a sweep: a model with a method on a task, or on a prompt of so many text tokens for its costs."""

    model: str
    task: str | None
    text_tokens: int | None
    method: str
    parameters: dict[str, Any]  # complete, defaults filled in
    limit: int | None  # samples of each leaf task, None = all
    seed: int
    dtype: str
    attention: str
    compile: bool
    batch_size: int
    text_encoder: str | None
    trust_remote_code: bool
    measure: tuple[Measure, ...]
    content: dict[str, str]  # fingerprints of the model's, task's and text encoder's files, where they are local
    protocol: int = PROTOCOL

    @property
    def id(self) -> str:
        """The first 16 hex digits of a hash of all fields."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def warm_key(self) -> tuple[str, str, str, bool, bool]:
        """What a worker's model depends on."""
        return self.model, self.dtype, self.attention, self.compile, self.trust_remote_code

    @property
    def label(self) -> str:
        """The method with its budget and the parameters that are not defaults, and the task."""
        from methods import METHODS

        defaults = {field.name: field.default for field in fields(METHODS[self.method])}
        words = [self.method]
        for name, value in self.parameters.items():
            if name == "tokens":
                words.insert(1, "adaptive" if value is None else str(value))
            elif value != defaults[name]:
                words.append(f"{name}={value}")
        return f"{' '.join(words)} on {self.task or f'{self.text_tokens} text tokens'}"

    def make_method(self) -> "Method":
        """Return the method itself."""
        from methods import METHODS

        return METHODS[self.method](**self.parameters)


def _gpus(value: float) -> float:
    if 0 < value < LEAST or (value > 1 and not value.is_integer()):
        raise ValueError(f"{brief(value)} is not possible; it should be 0, {LEAST} to 1, or a whole number")
    return value


class Resources(_Frozen):
    """What Ray reserves for a trial."""

    cpus: Annotated[float, Field(ge=LEAST, le=LARGEST_NUMBER)] = 1
    gpus: Annotated[float, Field(ge=0, le=LARGEST_NUMBER), AfterValidator(_gpus)] = 0
    memory: Bytes | None = None
    accelerator_type: Name | None = None  # as Ray calls it: H100, A100, …
    labels: dict[str, Label] | None = None  # of the node


class Axes(_Frozen):
    """A sweep file's keys."""

    name: Name | None = None
    description: Text = ""
    model: Axis[Name]
    tasks: Axis[Name] | None = None
    text_tokens: Axis[Annotated[int, Field(ge=2, le=LARGEST_NUMBER)]] | None = None
    methods: Annotated[tuple[Any, ...], BeforeValidator(as_axis), Field(min_length=1)]
    tokens: Axis[Natural] | None = None
    limit: Axis[Natural | None] = (None,)
    seed: Axis[Annotated[int, Field(ge=0, lt=2**32)]] = (0,)  # numpy's range
    dtype: Axis[Literal["float32", "bfloat16", "float16"]] = ("float32",)
    attention: Axis[Literal["sdpa", "eager", "flash_attention_2"]] = ("sdpa",)
    compile: Axis[bool] = (False,)
    batch_size: Natural = 8
    text_encoder: Name | None = None
    trust_remote_code: bool = False
    measure: Axis[Measure] | None = None
    resources: Resources = Resources()
    time_limit: Seconds | None = None
    shards: Annotated[int, Field(ge=1, le=1000)] = 1  # workers that share a trial's questions
    convention: Convention = "flops"
    published: Published | None = None

    @property
    def shown(self) -> Shown:
        """What the report shows besides the trials."""
        return Shown(description=self.description, convention=self.convention, published=self.published)


class Sweep(NamedTuple):
    """A grid of trials."""

    path: Path
    name: str
    axes: Axes
    methods: tuple[MethodAxes, ...]

    def cells(self) -> Iterator[tuple[MethodAxes, Trial]]:
        """Expand the grid, models outermost."""
        axes = self.axes
        prompts = [(task, None) for task in axes.tasks or ()] + [(None, text) for text in axes.text_tokens or ()]
        grid = product(
            axes.model, axes.dtype, axes.attention, axes.compile, prompts, axes.limit, axes.seed, self.methods
        )
        for model, dtype, attention, compiled, (task, text_tokens), limit, seed, method in grid:
            possible = measurable(model, task)
            for parameters in method.parameters():
                trial = Trial(
                    model=model,
                    task=task,
                    text_tokens=text_tokens,
                    method=method.name,
                    parameters=parameters,
                    limit=limit,
                    seed=seed,
                    dtype=dtype,
                    attention=attention,
                    compile=compiled,
                    batch_size=axes.batch_size,
                    text_encoder=axes.text_encoder,
                    trust_remote_code=axes.trust_remote_code,
                    measure=tuple(each for each in MEASURES if each in (axes.measure or possible)),
                    content=_content(model, task, axes.text_encoder),
                )
                yield method, trial

    def trials(self) -> list[Trial]:
        """Return the trials in the order of the file; one that the grid holds twice comes once."""
        return list({trial.id: trial for _, trial in self.cells()}.values())


def measurable(model: str, task: str | None) -> tuple[Measure, ...]:
    """Return what can be measured of a model on a task, or on a prompt that asks nothing."""
    if task is not None:
        return MEASURES
    return COUNTED if model in SHAPES else MEASURES[1:]


def load_sweep(path: Path, *, limit: int | None = None, most: int | None = None, look: bool = False) -> Sweep:
    """Read a sweep file.

    limit: instead of its own; most: trials beyond which it is refused, before the grid is expanded; look: whether to
    look at models' folders and tasks' names too, as far as that needs no torch (`check` does the rest).
    Errors: VtbenchError.
    """
    raw = read_mapping(path)
    if limit is not None:
        raw["limit"] = limit
    try:
        axes = Axes.model_validate(raw)
    except ValidationError as error:
        # a key that is unknown explains one that is missing
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        inner = {"resources": Resources, "published": Unreproduced if "unreproduced" in first["loc"] else Published}
        known = inner.get(str(first["loc"][0]), Axes).model_fields if len(first["loc"]) > 1 else Axes.model_fields
        raise VtbenchError(f"{path}:{_key(first, raw)}: {explain(first, known)}") from None
    if axes.tasks and axes.text_tokens:
        raise VtbenchError(f"{path}:text_tokens: is there beside tasks; allowed is one of the two")
    if not axes.tasks and not axes.text_tokens:
        raise VtbenchError(f"{path}:tasks: is missing; a sweep of costs alone has text_tokens instead")
    name = axes.name or path.stem
    if not re.fullmatch(r"[^/\\]{1,100}", name) or not name.isprintable() or name.startswith("."):
        wanted = "it names a folder, so no slashes, no dot in front, and at most 100 characters"
        raise VtbenchError(f"{path}:name: {brief(name)} is not possible; {wanted}")
    entries = []
    for index, entry in enumerate(axes.methods):
        place = f"{path}:methods" + (f"[{index}]" if isinstance(raw["methods"], list) else "")
        method, given = named(place, entry)
        entries.append(with_budget(asked(f"{place}.{method}", method, given), axes.tokens))
    _check_size(path, axes, entries, most)
    if look:
        look_at(path, axes, entries)
    methods = [method_axes(entry) for entry in entries]
    for method_values in methods:
        for _ in method_values.parameters():  # each is tried
            pass
    if axes.published:
        for row, entry in axes.published.rows.items():
            check_one(f"{path}:published.rows.{row}", parameters_of(entry))
    return Sweep(path, name, axes, tuple(methods))


def _check_size(path: Path, axes: Axes, entries: list[Asked], most: int | None) -> None:
    """Refuse a grid of more trials than this, without expanding it."""
    others = (axes.model, axes.dtype, axes.attention, axes.compile, axes.tasks or axes.text_tokens or ())
    sizes = (*others, axes.limit, axes.seed)
    trials = prod(map(len, sizes)) * sum(entry.cells for entry in entries)
    if most is not None and trials > most:
        raise VtbenchError(f"{path}:methods: the grid has {trials:,} trials; more than {most:,} need --yes")


def _key(error: ErrorDetails, raw: dict[str, Any]) -> str:
    """Write pydantic's location as the file has it, without the list that a scalar was taken for, and its own marks."""
    location = error["loc"]
    key = str(location[0])
    value = raw.get(key)
    for step in location[1:]:
        if isinstance(value, list) and isinstance(step, int):
            key += f"[{step}]"
            value = value[step]
        elif isinstance(value, dict) and (step in value or error["type"] == "missing"):
            key += f".{step}"
            value = value.get(step)
    return key


def _content(model: str, task: str | None, text_encoder: str | None) -> dict[str, str]:
    paths = {"model": WEIGHTS if model == "pocket" else Path(model)}
    if task in own_tasks():
        paths["task"] = OWN
    if text_encoder is not None:
        # open_clip:ARCHITECTURE/PATH may name a checkpoint or a folder
        is_open_clip = text_encoder.startswith("open_clip:")
        paths["text_encoder"] = Path(text_encoder.partition("/")[2] if is_open_clip else text_encoder)
    return {name: fingerprint(path) for name, path in paths.items() if path.exists() and path != Path()}
