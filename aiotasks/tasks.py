"""PostgresTask: Django's Task with aiotasks' policies, and the decorator that makes one."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, overload

from django.tasks import DEFAULT_TASK_BACKEND_ALIAS, DEFAULT_TASK_QUEUE_NAME, Task
from django.tasks.base import DEFAULT_TASK_PRIORITY
from django.tasks.exceptions import InvalidTask

from .conf import keep_time

__all__ = ["PostgresTask", "task"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresTask(Task):  # type: ignore[type-arg]  # generic in the stubs alone
    """A Task with policies of its own.

    ``max_crashes``: after how many crashes of its worker the task is FAILED with ``WorkerLost``
    (None: the backend's MAX_CRASHES; 0, as 1, never runs it again).
    ``keep_result``: for how long the finished task is kept, in seconds; a timedelta is turned into
    them (None: the backend's KEEP_SUCCESSFUL or KEEP_FAILED; ``math.inf``: for ever).
    """

    max_crashes: int | None = None
    keep_result: float | timedelta | None = None

    def __post_init__(self) -> None:
        crashes = self.max_crashes
        if crashes is not None and (type(crashes) is not int or not 0 <= crashes <= 32_000):
            raise InvalidTask(f"max_crashes must be a whole number from 0 to 32000, not {crashes!r}.")
        if self.keep_result is not None and self.keep_result != math.inf:
            try:
                object.__setattr__(self, "keep_result", keep_time(self.keep_result))
            except ValueError as error:
                raise InvalidTask(
                    f"keep_result must be {error}, or math.inf, not {self.keep_result!r}."
                ) from None
        Task.__post_init__(self)

    def using(
        self,
        *,
        priority: int | None = None,
        queue_name: str | None = None,
        run_after: datetime | None = None,
        backend: str | None = None,
        max_crashes: int | None = None,
        keep_result: float | timedelta | None = None,
    ) -> "PostgresTask":
        """Return a copy with other values; what is None stays as it is."""
        given: dict[str, Any] = {
            "priority": priority,
            "queue_name": queue_name,
            "run_after": run_after,
            "backend": backend,
            "max_crashes": max_crashes,
            "keep_result": keep_result,
        }
        return replace(self, **{name: value for name, value in given.items() if value is not None})


@overload
def task(function: Callable[..., Any], /) -> PostgresTask: ...
@overload
def task(
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: bool = ...,
    max_crashes: int | None = ...,
    keep_result: float | timedelta | None = ...,
) -> Callable[[Callable[..., Any]], PostgresTask]: ...
def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    priority: int = DEFAULT_TASK_PRIORITY,
    queue_name: str = DEFAULT_TASK_QUEUE_NAME,
    backend: str = DEFAULT_TASK_BACKEND_ALIAS,
    takes_context: bool = False,
    max_crashes: int | None = None,
    keep_result: float | timedelta | None = None,
) -> PostgresTask | Callable[[Callable[..., Any]], PostgresTask]:
    """``django.tasks.task`` with aiotasks' policies as typed keywords.

    Works on Django 6.0, whose own decorator passes no keywords on, and over any backend: one
    that isn't aiotasks' ignores the policies. Raises InvalidTask as Django's does.
    """

    def wrapper(function: Callable[..., Any]) -> PostgresTask:
        return PostgresTask(
            func=function,
            priority=priority,
            queue_name=queue_name,
            backend=backend,
            takes_context=takes_context,
            run_after=None,
            max_crashes=max_crashes,
            keep_result=keep_result,
        )

    return wrapper if function is None else wrapper(function)
