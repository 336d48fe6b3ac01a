"""System checks of schedules: what of the code's can't be declared."""

from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.tasks import task_backends
from django.tasks.exceptions import InvalidTaskBackend

__all__ = ["check_schedules"]


@register
def check_schedules(**kwargs: Any) -> list[CheckMessage]:
    """Return E012 for each schedule that can't be declared, and W005 for each module that may declare some
    and can't be imported. Connects nowhere."""
    if not apps.ready:
        return []  # the modules may import models
    # Imported here, because it takes 75 ms, and most processes run no checks.
    from ..backend import PostgresBackend
    from .declarations import find_problems
    from .discovery import import_modules, modules_of

    problems: dict[str, None] = {}  # in their order; one of no backend is found with each
    failed: dict[str, BaseException] = {}
    for alias in task_backends.settings:
        try:
            backend = task_backends[alias]
            if not isinstance(backend, PostgresBackend) or backend.config.schedules is False:
                continue
            failed |= import_modules(modules_of(backend.config))
        except (ImproperlyConfigured, InvalidTaskBackend):
            continue  # E002 reports it, or Django
        problems |= dict.fromkeys(find_problems(alias))
    errors: list[CheckMessage] = [Error(problem, id="aiotasks.E012") for problem in problems]
    return errors + [_about(module, error) for module, error in failed.items()]


def _about(module: str, error: BaseException) -> CheckMessage:
    return Warning(
        f"{module} can't be imported, so workers don't declare its schedules, and stop none that the table "
        f"has: {type(error).__name__}: {error}",
        hint="Fix it; or have OPTIONS['SCHEDULES'] name the modules that declare schedules.",
        id="aiotasks.W005",
    )
