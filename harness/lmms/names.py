"""Names of tasks, as their files have them: importing lmms-eval takes seconds."""

import re
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from harness.errors import VtbenchError
from harness.reading import brief

OWN = Path(__file__).parent / "pocketvqa"
NAME = r"\w[\w.+-]*"
# a task, group or tag has the key, a list of tags a line each
LINE = re.compile(rf"""^(?:["']?(?:task|group|tag)["']?\s*:\s*|\s*-\s+)["']?({NAME})""", re.MULTILINE)


@cache
def own_tasks() -> frozenset[str]:
    """Return the names of our tasks and groups."""
    return frozenset(file.stem for file in OWN.glob("*.yaml"))


@cache
def lmms_tasks() -> frozenset[str]:
    """Return the names of lmms-eval's tasks, groups and tags, and some words that are none of them."""
    package = find_spec("lmms_eval")
    assert package is not None and package.submodule_search_locations is not None
    files = (Path(package.submodule_search_locations[0]) / "tasks").rglob("*yaml")  # what files include has no suffix
    return frozenset(name for file in files for name in LINE.findall(file.read_text("utf-8", "replace")))


def look_at_task(task: str) -> None:
    """Refuse what cannot be a task's name, and what no task is called. Errors: VtbenchError."""
    if not re.fullmatch(NAME, task):
        raise VtbenchError(f"{brief(task)} is not possible; allowed are the names of tasks, not their files")
    if task not in own_tasks() and task not in lmms_tasks():
        raise unknown(task, lmms_tasks())


def unknown(task: str, known: frozenset[str]) -> VtbenchError:
    """Return the error for a name that no task has, with near misses."""
    near = get_close_matches(task[:100], sorted(own_tasks() | known), n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    own = ", ".join(sorted(own_tasks()))
    return VtbenchError(f"{brief(task)} is not a task; {hint}allowed are {own} and the tasks of lmms-eval")
