"""Finds lmms-eval tasks by name: our own at once, lmms-eval's defaults only when a name is not ours."""

from functools import lru_cache
from typing import Any, Literal

from lmms_eval.tasks import TaskManager
from loguru import logger

from harness.lmms.names import OWN, unknown


class Tasks(TaskManager):
    """A task manager that keeps the tasks it loaded last: the next trial of a worker asks mostly the same ones.

    Loading them again reads their data sets and, of some (GQA), every picture.
    """

    _kept: tuple[object, dict[Any, Any]] = None, {}

    def load_task_or_group(
        self, task_list: str | list[str] | None = None, task_type: Literal["simple", "chat"] = "simple"
    ) -> dict[Any, Any]:
        """Return the tasks by name."""
        wanted = repr(task_list), task_type
        if self._kept[0] != wanted:
            self._kept = None, {}  # the old ones go before the new ones come
            self._kept = wanted, super().load_task_or_group(task_list, task_type)
        return self._kept[1]


@lru_cache(maxsize=2)
def _manager(include_defaults: bool) -> Tasks:
    logger.disable("lmms_eval")  # it tells of each of its files that is no task
    try:
        return Tasks("ERROR", include_path=str(OWN), include_defaults=include_defaults)
    finally:
        logger.enable("lmms_eval")


def manager_for(task: str) -> Tasks:
    """Return a task manager that knows the task; indexing lmms-eval's own takes seconds, so only if need be.

    Errors: VtbenchError with near misses when no task, group or tag has the name.
    """
    for include_defaults in (False, True):
        manager = _manager(include_defaults)
        if task in manager.all_tasks:
            return manager
    raise unknown(task, frozenset(map(str, manager.all_tasks)))
