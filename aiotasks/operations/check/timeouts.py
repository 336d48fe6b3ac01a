"""Check ``timeouts``: the time limits of sync tasks, and threads that are stuck because of them."""

import sys
from collections.abc import Iterable
from math import inf

from django.apps import apps

from ...rows import lane_of
from ...schedules.discovery import import_modules, modules_of_apps
from ...tasks import PostgresTask
from .examination import Examination
from .finding import Result

__all__ = ["check", "judge_timeouts"]

# More names than these don't help.
SHOWN = 5


async def check(examination: Examination) -> Result:
    """Return the sync tasks of the installed apps whose time limits have consequences, and stuck threads."""
    stuck = sum(worker.stuck_threads for worker in examination.live_workers())
    return judge_timeouts(
        _tasks_of_apps(examination.alias),
        grace=examination.grace,
        max_attempts=examination.options.max_attempts,
        stuck=stuck,
    )


def judge_timeouts(tasks: Iterable[PostgresTask], *, grace: float, max_attempts: int, stuck: int) -> Result:
    """Return the result for the tasks of a backend.

    grace: the seconds for which a stop of its workers waits. max_attempts: that of a task that says nothing.
    stuck: threads that don't come back from tasks whose time is over.
    """
    limited = [task for task in tasks if task.timeout is not None and lane_of(task.func) == "thread"]
    long = sorted(task.module_path for task in limited if (task.timeout or inf) > grace)
    again = sorted(
        task.module_path
        for task in limited
        if (max_attempts if task.max_attempts is None else task.max_attempts) > 1
    )
    messages, remedies = [], []
    if stuck:
        messages.append(f"Threads of live workers that are stuck in tasks whose time is over: {stuck:,}.")
        remedies.append("The log of those workers shows where they are.")
    if long:
        messages.append(
            f"Sync tasks whose timeout exceeds the workers' grace of {grace:g} s, so that a stop gives them "
            f"back while they run: {_named(long)}."
        )
        remedies.append("Make the timeout shorter, or the grace longer (check --grace, if it is).")
    if again:
        messages.append(
            "Sync tasks with a timeout and several attempts, of which the next may begin while the thread of "
            f"the last goes on: {_named(again)}."
        )
        remedies.append("Have the function end by itself in time: context.remaining() says what is left.")
    if messages:
        return "warning", " ".join(messages), " ".join(remedies)
    return "ok", "No time limit of a sync task outlasts a stop, or lets two attempts overlap.", ""


def _named(paths: list[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(paths[:SHOWN]) + more


def _tasks_of_apps(alias: str) -> list[PostgresTask]:
    """Return the backend's tasks in the modules of installed apps: ``tasks``, and those that are loaded."""
    import_modules(modules_of_apps(("tasks",)))  # workers report those that fail
    names = {config.name for config in apps.get_app_configs()}
    return [
        value
        for name, module in list(sys.modules.items())
        if any(name == app or name.startswith(f"{app}.") for app in names)
        for value in list(vars(module).values())
        if isinstance(value, PostgresTask) and value.backend == alias and value.func.__module__ == name
    ]
