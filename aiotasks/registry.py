"""From the path that a row stores to the Task at that path, or at the path that MOVED_TASKS gives for it."""

import sys
from collections.abc import Mapping

from django.tasks import Task
from django.utils.module_loading import import_string

from .exceptions import UnknownTask
from .rows import AnyTask

__all__ = ["known", "resolve"]

# The module of the script that a process runs, and the name that multiprocessing gives it in children.
SCRIPTS = ("__main__.", "__mp_main__.")

_resolved: dict[str, AnyTask] = {}
_NONE_MOVED: Mapping[str, str] = {}


def known(task_path: str, moved_tasks: Mapping[str, str]) -> AnyTask | None:
    """Return the Task of a stored path if it has been resolved before, because an import may take long."""
    return _resolved.get(moved_tasks.get(task_path, task_path))


def resolve(task_path: str, moved_tasks: Mapping[str, str] = _NONE_MOVED) -> AnyTask:
    """Return the Task of a stored path. ``moved_tasks`` are the backend's MOVED_TASKS.

    Returns only a Task whose own path is this one, so that no row can make a worker run
    ``subprocess.call``. Raises UnknownTask.
    """
    task_path = moved_tasks.get(task_path, task_path)
    try:
        return _resolved[task_path]
    except KeyError:
        pass
    if task_path.startswith(SCRIPTS):
        raise UnknownTask(task_path, _of_a_script())
    try:
        found = import_string(task_path)
    except (Exception, SystemExit) as error:  # importing runs user code, which may raise anything
        raise UnknownTask(task_path, f"{type(error).__name__}: {error}") from error
    if not isinstance(found, Task):
        raise UnknownTask(task_path, f"it is a {type(found).__name__}, not a Task")
    if found.module_path != task_path:
        raise UnknownTask(task_path, f"the path of the Task there is {found.module_path!r}")
    _resolved[task_path] = found
    return found


def _of_a_script() -> str:
    """Return why no other process finds a task of the script that this process runs."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)  # there is one after `python -m`
    return (
        "its function is defined in the script that this process runs, which a worker can't import. Move it "
        "into a module of the site" + ("" if spec is None else f", or import it from {spec.name!r}") + "."
    )
