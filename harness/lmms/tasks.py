"""Finds lmms-eval tasks by name: our own at once, lmms-eval's defaults only when a name is not ours."""

from functools import lru_cache

from lmms_eval.tasks import TaskManager
from loguru import logger

from harness.lmms.names import OWN, unknown


@lru_cache(maxsize=2)
def _manager(include_defaults: bool) -> TaskManager:
    logger.disable("lmms_eval")  # it tells of each of its files that is no task
    try:
        return TaskManager("ERROR", include_path=str(OWN), include_defaults=include_defaults)
    finally:
        logger.enable("lmms_eval")


def manager_for(task: str) -> TaskManager:
    """Return a task manager that knows the task; indexing lmms-eval's own takes seconds, so only if need be.

    Errors: VtbenchError with near misses when no task, group or tag has the name.
    """
    for include_defaults in (False, True):
        manager = _manager(include_defaults)
        if task in manager.all_tasks:
            return manager
    raise unknown(task, frozenset(map(str, manager.all_tasks)))
