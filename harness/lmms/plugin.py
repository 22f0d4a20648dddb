"""Registers the model `vtbench` with lmms-eval, by the entry point group `lmms_eval.models`, and PocketVQA with it."""

from typing import Any

from lmms_eval.models.registry_v2 import ModelManifest

from harness.lmms.names import OWN


def manifests() -> list[ModelManifest]:
    """Return what lmms-eval's registry reads when lmms-eval is imported."""
    register_tasks()
    return [ModelManifest(model_id="vtbench", simple_class_path="harness.lmms.model.VtBench")]


def register_tasks() -> None:
    """Put our tasks among lmms-eval's defaults: for tasks it has no entry point, only --include_path."""
    from lmms_eval.tasks import TaskManager  # which imports the models' registry, that is at work here

    index = TaskManager.initialize_tasks

    def with_ours(self: Any, include_path: Any = None, include_defaults: bool = True) -> Any:
        ours = self._get_task_and_group(str(OWN)) if include_defaults else {}
        return ours | index(self, include_path, include_defaults)

    TaskManager.initialize_tasks = with_ours
