"""Why there is no task at a path, for people who have written it."""

from aiotasks.exceptions import UnknownTask

__all__ = ["about_task"]


def about_task(error: UnknownTask) -> str:
    """Return a sentence that says why."""
    cause = error.__cause__
    if cause is None:
        return str(error)
    module, _, name = error.task_path.rpartition(".")
    missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
    if not module:
        why = "it has no module in front, as in mysite.tasks.report"
    elif missing and f"{module}.".startswith(f"{missing}."):
        why = f"there is no module {missing!r}"
    elif isinstance(cause.__cause__, AttributeError):
        why = f"module {module!r} has no {name!r}"
    else:
        why = f"module {module!r} can't be imported: {' '.join(str(cause).split()) or type(cause).__name__}"
    return f"{error.task_path!r:.500} is not a task that can be run here: {why}."
