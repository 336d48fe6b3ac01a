"""assert_enqueued: asserts that the table has a row of a task."""

from collections.abc import Mapping, Sequence
from typing import Any

from asgiref.sync import sync_to_async

from .. import models
from ..codec import normalize
from ..rows import AnyResult, AnyTask
from ..worker.startup import backend_of
from .calls import AwaitableResult, here_or_awaited

__all__ = ["assert_enqueued"]


def assert_enqueued(
    task: AnyTask, *, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None
) -> Any:
    """Assert that ``task`` was enqueued, with these arguments where given, in whatever status it is.

    ``assert_enqueued(…)`` in sync code, ``await assert_enqueued(…)`` in coroutines. Returns the
    latest such task's TaskResult. The AssertionError says what was enqueued instead.
    """

    def run() -> AnyResult:
        return _assert_enqueued(task, args, kwargs)

    return here_or_awaited(
        "assert_enqueued", lambda: AwaitableResult.of(run()), sync_to_async(run, thread_sensitive=True)
    )


def _assert_enqueued(
    task: AnyTask, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None
) -> AnyResult:
    backend = backend_of(task.backend)
    rows = list(
        models.Task.objects.using(backend.config.database)
        .filter(backend=task.backend)
        .order_by("-enqueued_at", "-id")
        .only("task_path", "args", "kwargs")
    )
    wanted_args = None if args is None else normalize(list(args), "args")
    wanted_kwargs = None if kwargs is None else normalize(dict(kwargs), "kwargs")
    for row in rows:
        if (
            row.task_path == task.module_path
            and wanted_args in (None, row.args)
            and wanted_kwargs in (None, row.kwargs)
        ):
            return backend.get_result(str(row.pk))  # type: ignore[no-any-return]  # SyncMethod's descriptor
    asked = f"{task.module_path} with args={'any' if args is None else repr(wanted_args)}"
    asked += f" and kwargs={'any' if kwargs is None else repr(wanted_kwargs)}"
    found = [f"{row.task_path} args={row.args!r} kwargs={row.kwargs!r}" for row in rows]
    raise AssertionError(f"{asked} was not enqueued; this was: {'; '.join(found) or 'nothing'}.")
