"""Reads a sweep file and expands it to frozen trials, each with an id made of everything that can change its numbers.

Every key is in sweeps/README.md. Mistakes are VtbenchErrors of one line: the file, the key, what is allowed.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from harness.errors import VtbenchError
from harness.fingerprint import fingerprint
from harness.method_axes import Axis, MethodAxes, as_axis, check_one, method_axes, named
from harness.papers import printed
from harness.pocket import WEIGHTS
from harness.reading import explain, read_mapping
from harness.shown import Convention, Published, Shown, Unreproduced, parameters_of
from methods import METHODS
from methods.interface import Method

# Raise it when the code measures anything differently: every id changes with it, so that every trial runs again.
PROTOCOL = 3

# The embedded tasks are known by their files: asking lmms-eval takes seconds.
OWN_TASKS = Path(__file__).parent / "lmms" / "pocketvqa"

Measure = Literal["accuracy", "flops", "latency", "memory", "tokens"]
MEASURES: tuple[Measure, ...] = ("accuracy", "flops", "latency", "memory", "tokens")
COUNTED: tuple[Measure, ...] = ("flops", "memory", "tokens")  # what a model without weights gives

Name = Annotated[str, Field(min_length=1)]


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
        defaults = {field.name: field.default for field in fields(METHODS[self.method])}
        words = [self.method]
        for name, value in self.parameters.items():
            if name == "tokens":
                words.insert(1, "adaptive" if value is None else str(value))
            elif value != defaults[name]:
                words.append(f"{name}={value}")
        return f"{' '.join(words)} on {self.task or f'{self.text_tokens} text tokens'}"

    def make_method(self) -> Method:
        """Return the method itself."""
        return METHODS[self.method](**self.parameters)


class Resources(_Frozen):
    """What Ray reserves for a trial."""

    cpus: Annotated[float, Field(gt=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0


class Axes(_Frozen):
    """A sweep file's keys."""

    name: Name | None = None
    description: str = ""
    model: Axis[Name]
    tasks: Axis[Name] | None = None
    text_tokens: Axis[Annotated[int, Field(ge=2)]] | None = None
    methods: Annotated[tuple[Any, ...], BeforeValidator(as_axis), Field(min_length=1)]
    tokens: Axis[Annotated[int, Field(ge=1)]] | None = None
    limit: Axis[Annotated[int, Field(ge=1)] | None] = (None,)
    seed: Axis[Annotated[int, Field(ge=0)]] = (0,)
    dtype: Axis[Literal["float32", "bfloat16", "float16"]] = ("float32",)
    attention: Axis[Literal["sdpa", "eager", "flash_attention_2"]] = ("sdpa",)
    compile: Axis[bool] = (False,)
    batch_size: Annotated[int, Field(ge=1)] = 8
    text_encoder: Name | None = None
    trust_remote_code: bool = False
    measure: Axis[Measure] | None = None
    resources: Resources = Resources()
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
    from harness.model.shapes import LLAVA

    return COUNTED if model in LLAVA else MEASURES[1:]


def load_sweep(path: Path, *, limit: int | None = None) -> Sweep:
    """Read a sweep file; `limit` replaces its own. Errors: VtbenchError; models and tasks are not looked for."""
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
    if name in (".", "..") or Path(name).name != name:
        raise VtbenchError(f"{path}:name: {name!r} is not possible; it names a folder, so no slashes")
    methods = []
    for index, entry in enumerate(axes.methods):
        place = f"{path}:methods" + (f"[{index}]" if isinstance(raw["methods"], list) else "")
        method, given = named(place, entry)
        methods.append(method_axes(f"{place}.{method}", method, given, axes.tokens))
        list(methods[-1].parameters())
    if axes.published:
        for row, entry in axes.published.rows.items():
            check_one(f"{path}:published.rows.{row}", parameters_of(entry))
    return Sweep(path, name, axes, tuple(methods))


def check(sweep: Sweep) -> None:
    """Look for every model and task and try every budget, so that a sweep fails before anything of it has run.

    Reads no weights. Errors: VtbenchError.
    """
    from harness.costs import check_text
    from harness.model.anatomy import shape_of_config
    from harness.model.load import RANDOM, config_of
    from harness.model.shapes import LLAVA

    axes, shapes = sweep.axes, {}
    if axes.published:
        with _blame(f"{sweep.path}:"):
            printed(axes.published, costs=bool(axes.text_tokens))
    for model in axes.model:
        with _blame(f"{sweep.path}:model: "):
            config: Any = config_of(model, trust_remote_code=axes.trust_remote_code)
            shapes[model] = shape_of_config(config)
            if axes.tasks and (model in LLAVA or (model in RANDOM and model != "random:pocket")):
                raise VtbenchError(
                    f"{model!r} has no {'weights' if model in LLAVA else 'tokenizer'} to answer tasks with; "
                    "allowed is text_tokens instead of tasks"
                )
        for text_tokens in axes.text_tokens or ():
            most = config.text_config.max_position_embeddings - shapes[model].patches
            check_text(model, text_tokens, most, place=f"{sweep.path}:text_tokens")
        allowed = measurable(model, axes.tasks[0] if axes.tasks else None)
        for measure in axes.measure or ():
            if measure not in allowed:
                raise VtbenchError(
                    f"{sweep.path}:measure: {measure} is not possible of {model} without tasks; "
                    f"allowed are {', '.join(allowed)}"
                )
    for task in axes.tasks or ():
        if not _is_own(task):
            from harness.lmms.tasks import manager_for

            with _blame(f"{sweep.path}:tasks: "):
                manager_for(task)
    for method, trial in sweep.cells():
        with method.blame():
            stages = trial.make_method().stages(shapes[trial.model])
        if METHODS[method.name].trained and trial.model not in LLAVA:
            raise VtbenchError(
                f"{method.place}: needs trained modules, of which there are none; it can be counted alone, "
                f"with model: {' or '.join(LLAVA)}"
            )
        if trial.model in LLAVA and any(stage.adaptive for stage in stages):
            raise VtbenchError(
                f"{method.place}: adapts to the image, so it must run to be counted; allowed are models with weights"
            )


@contextmanager
def _blame(place: str) -> Iterator[None]:
    try:
        yield
    except VtbenchError as error:
        raise VtbenchError(f"{place}{error}") from None


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


def _is_own(task: str) -> bool:
    return (OWN_TASKS / f"{task}.yaml").is_file()


def _content(model: str, task: str | None, text_encoder: str | None) -> dict[str, str]:
    paths = {"model": WEIGHTS if model == "pocket" else Path(model)}
    if task is not None and _is_own(task):
        paths["task"] = OWN_TASKS
    if text_encoder is not None:
        # open_clip:ARCHITECTURE/PATH may name a checkpoint or a folder
        is_open_clip = text_encoder.startswith("open_clip:")
        paths["text_encoder"] = Path(text_encoder.partition("/")[2] if is_open_clip else text_encoder)
    return {name: fingerprint(path) for name, path in paths.items() if path.exists() and path != Path()}
