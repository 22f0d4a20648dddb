"""Looks for what a sweep names, so that it fails before anything of it has run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import VtbenchError
from harness.lmms.names import look_at_task, own_tasks
from harness.model.look import RANDOM, SHAPES, check_text, limits, look_at_model, look_at_text_encoder
from harness.papers import printed
from harness.reading import brief

if TYPE_CHECKING:
    from harness.method_axes import Asked
    from harness.spec import Axes, Sweep


def look(path: Path, axes: "Axes", entries: "Sequence[Asked]" = ()) -> None:
    """Look at names, local models' files and the entries' budgets, as far as that needs no torch.

    Errors: VtbenchError.
    """
    if axes.published:
        with _blame(f"{path}:"):
            printed(axes.published, costs=bool(axes.text_tokens))
    for model in axes.model:
        with _blame(f"{path}:model: "):
            look_at_model(model, trust_remote_code=axes.trust_remote_code)
            if axes.tasks and model in SHAPES + RANDOM and model != "random:pocket":
                raise VtbenchError(
                    f"{model!r} has no {'weights' if model in SHAPES else 'tokenizer'} to answer tasks with; "
                    "allowed is text_tokens instead of tasks"
                )
        patches, text = limits(model)
        for entry in entries:
            given = entry.given.get("tokens")
            for tokens in given if isinstance(given, list) else [given]:
                if patches is not None and type(tokens) is int and not 1 <= tokens <= patches:
                    place = f"{entry.place}.tokens"
                    raise VtbenchError(f"{place}: {brief(tokens)} is not possible; allowed are 1 to {patches}")
        for text_tokens in axes.text_tokens or ():
            if text is not None:
                check_text(model, text_tokens, text, place=f"{path}:text_tokens")
    if axes.text_encoder is not None:
        with _blame(f"{path}:text_encoder: "):
            look_at_text_encoder(axes.text_encoder)
    for task in axes.tasks or ():
        with _blame(f"{path}:tasks: "):
            look_at_task(task)


def check(sweep: "Sweep") -> None:
    """Look for every model and task and try every budget. Reads no weights. Errors: VtbenchError."""
    from harness.model.anatomy import shape_of_config
    from harness.model.load import config_of
    from harness.spec import measurable
    from methods import METHODS

    axes, shapes = sweep.axes, {}
    look(sweep.path, axes)
    for model in axes.model:
        with _blame(f"{sweep.path}:model: "):
            config: Any = config_of(model, trust_remote_code=axes.trust_remote_code)
            shapes[model] = shape_of_config(config)
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
        if task not in own_tasks():
            from harness.lmms.tasks import manager_for

            with _blame(f"{sweep.path}:tasks: "):
                manager_for(task)
    for method, trial in sweep.cells():
        with method.blame():
            stages = trial.make_method().stages(shapes[trial.model])
        if METHODS[method.name].trained and trial.model not in SHAPES:
            raise VtbenchError(
                f"{method.place}: needs trained modules, of which there are none; it can be counted alone, "
                f"with model: {' or '.join(SHAPES)}"
            )
        if trial.model in SHAPES and any(stage.adaptive for stage in stages):
            raise VtbenchError(
                f"{method.place}: adapts to the image, so it must run to be counted; allowed are models with weights"
            )


@contextmanager
def _blame(place: str) -> Iterator[None]:
    try:
        yield
    except VtbenchError as error:
        raise VtbenchError(f"{place}{error}") from None
