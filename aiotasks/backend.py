"""PostgresBackend, which ``TASKS[alias]["BACKEND"]`` names. Async first; connects to nothing."""

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from asgiref.sync import sync_to_async
from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured
from django.db import ProgrammingError
from django.tasks import Task
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist
from django.tasks.signals import task_enqueued
from django.utils import timezone

from . import checks, joining, signals, tracing
from .bulk import BulkCounts, Progress, Report, Which, act
from .bulk_actions import ActionName, DryRun, action_named
from .codec import dump_error
from .conf import Options
from .db.errors import about_tables
from .enqueueing import Calls, check_path, make_rows, store_rows
from .exceptions import TaskCancelled
from .metadata.values import dump_metadata
from .results import PostgresTaskResult, parse_id
from .row_results import result_of
from .rows import AnyResult, AnyTask, Status
from .store.blocks import belongs_to_django
from .store.django_route import DjangoRoute
from .store.merging import merge_metadata
from .store.route import Route
from .store.routes import route_on_loop
from .sync import SyncMethod, drive
from .tasks import PostgresTask

__all__ = ["PostgresBackend"]

# Characters. A name goes into NOTIFY payloads, whose limit is 8,000 bytes.
MAX_QUEUE_NAME = 200

# The limits of run_after: a day from either end of Python's datetime, because PostgreSQL and Django convert
# it to a time zone, and asyncpg stores datetime.max as 'infinity'.
EARLIEST = datetime(1, 1, 2, tzinfo=UTC)
LATEST = datetime(9999, 12, 31, tzinfo=UTC)


class PostgresBackend(BaseTaskBackend):
    """Stores tasks in PostgreSQL, for aiotasks' workers to run.

    Django makes an instance per thread and context, at import time too: it is cheap, owns
    nothing and connects to nothing. The logic stands once, in coroutines that take the route to the
    database as an argument (``store/route.py``):

    - ``aenqueue`` and ``aget_result`` go over asyncpg on the running loop, or, where sync code
      waits for them, over that code's Django connection;
    - ``enqueue`` and ``get_result`` over Django's connection always, so inside ``atomic()``.
    """

    task_class = PostgresTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_metadata = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._params = params

    @cached_property
    def config(self) -> Options:
        """The OPTIONS, parsed. Raises ImproperlyConfigured for a bad one.

        Not in ``__init__``: instances are made wherever a task is defined, and a mistake in the
        settings is for ``manage.py check`` to report.
        """
        return Options.from_params(self.alias, self._params)

    def validate_task(self, task: AnyTask) -> None:
        if apps.ready and not _is_installed():
            # Django checks TASKS only after something has imported django.tasks, so the check may not have
            # run.
            raise ImproperlyConfigured(
                f"TASKS[{self.alias!r}] uses aiotasks, but INSTALLED_APPS doesn't have it: add 'aiotasks' "
                "and run `manage.py migrate`."
            )
        name = task.queue_name
        if not isinstance(name, str) or not 0 < len(name) <= MAX_QUEUE_NAME or not name.isprintable():
            raise InvalidTask(
                f"queue_name must be 1 to {MAX_QUEUE_NAME} printable characters, not {name!r:.300}."
            )
        if task.run_after is not None and not isinstance(task.run_after, datetime):
            raise InvalidTask(f"run_after must be a datetime, not {task.run_after!r}.")
        if task.run_after is not None and not _is_within_bounds(task.run_after):
            raise InvalidTask(
                f"run_after must be from {EARLIEST.date()} to {LATEST.date()} (UTC), to be a time in every "
                f"time zone, not {task.run_after.isoformat()}."
            )
        super().validate_task(task)  # relies on both checks

    async def aenqueue(  # type: ignore[override]  # the base's parameters are generic in the stubs
        self, task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> AnyResult:
        """Store a task; its row is durable on return, or part of the transaction around it.

        Raises TypeError for arguments that the function doesn't take, TypeError or ValueError for those
        that JSON can't hold, InvalidTask for a task that no worker could run, ``django.db`` errors where
        the database fails.
        """
        return await self.dispatch(PostgresBackend._enqueue, task, args, kwargs)

    async def aenqueue_many(self, task: AnyTask, calls: Calls) -> list[AnyResult]:
        """Store one task for each ``(args, kwargs)``: all tasks, or on an error none.

        Raises ValueError for more than 256 MiB of arguments, TypeError for a call that isn't such a pair,
        else what ``aenqueue`` does; an error names the call by its number (``calls[3]``).
        """
        return await self.dispatch(PostgresBackend._enqueue_many, task, calls)

    async def aget_result(self, result_id: str) -> AnyResult:
        """Return the result of a task. Raises TaskResultDoesNotExist, also for a malformed id."""
        return await self.dispatch(PostgresBackend._get_result, result_id)

    async def acancel(self, result: AnyResult) -> bool:
        """Cancel a task; return whether that was still possible. See ``PostgresTaskResult.acancel``."""
        return await self.dispatch(PostgresBackend._cancel, result)

    async def ajoin(self, result: PostgresTaskResult, timeout: float | None = None) -> None:
        """See ``PostgresTaskResult.ajoin``."""
        await joining.ajoin(result, timeout)

    def join(self, result: PostgresTaskResult, timeout: float | None = None) -> None:
        """See ``PostgresTaskResult.ajoin``."""
        joining.join(result, timeout)

    async def acancel_many(
        self, which: Which, *, everything: bool = False, progress: Progress | None = None
    ) -> BulkCounts:
        """Cancel tasks, as ``acancel`` does one; return how many had which outcome.

        which: a TaskFilter, or ids or results. everything: must be True for a TaskFilter without a condition,
        which is for all tasks; ValueError otherwise. progress: called with the counts so far after each batch
        of 500 tasks, each of which is a transaction of its own unless one is open; what it raises ends the
        action. Raises TypeError for another ``which``, ``django.db`` errors where the database fails: what
        is done by then stays done.
        """
        return await self.dispatch(PostgresBackend._cancel_many, which, everything, progress)

    async def aretry_many(self, which: Which, *, progress: Progress | None = None) -> BulkCounts:
        """Have FAILED tasks run again, with all their attempts and their history.

        They don't expire any more. A task whose unique key another task holds isn't retried. Parameters and
        errors: see ``acancel_many``.
        """
        return await self.dispatch(PostgresBackend._retry_many, which, progress)

    async def adelete_many(
        self, which: Which, *, everything: bool = False, progress: Progress | None = None
    ) -> BulkCounts:
        """Delete tasks that don't run, without a signal. Parameters and errors: see ``acancel_many``."""
        return await self.dispatch(PostgresBackend._delete_many, which, everything, progress)

    async def arun_many_now(
        self, which: Which, *, everything: bool = False, progress: Progress | None = None
    ) -> BulkCounts:
        """Have SCHEDULED tasks run before their time: they are READY, as if they had just been enqueued.

        Their results go on showing the ``run_after`` that their callers asked for. Parameters and errors: see
        ``acancel_many``.
        """
        return await self.dispatch(PostgresBackend._run_many_now, which, everything, progress)

    async def asave_metadata(self, result: AnyResult | str, metadata: Mapping[str, Any]) -> None:
        """Write these keys over a task's metadata, in whatever state the task is. Its other keys stay.

        result: a TaskResult, which isn't refreshed by it, or an id. Raises TaskResultDoesNotExist; TypeError
        or ValueError for metadata that can't be stored (keys that begin with an underscore, values that JSON
        can't keep, more than 64 KiB together with what is there); InvalidRow; ``django.db`` errors where the
        database fails.
        """
        await self.dispatch(PostgresBackend._save_metadata, result, metadata)

    async def dispatch[Result](self, logic: Callable[..., Coroutine[Any, Any, Result]], *args: Any) -> Result:
        """Run ``logic(self, route, *args)`` on this loop, or, where sync code waits for it, on its thread."""
        if belongs_to_django(self.config.database):
            return await sync_to_async(self.run_over_django, thread_sensitive=True)(logic, *args)
        try:
            return await logic(self, route_on_loop(self.config), *args)
        except ProgrammingError as error:
            raise self._explained(error) from error.__cause__

    def run_over_django[Result](
        self, logic: Callable[..., Coroutine[Any, Any, Result]], *args: Any, **kwargs: Any
    ) -> Result:
        """Run ``logic``, as ``dispatch`` does, over the calling thread's Django connection."""
        try:
            return drive(logic(self, DjangoRoute(self.config), *args, **kwargs))
        except ProgrammingError as error:
            raise self._explained(error) from error.__cause__

    def _explained(self, error: ProgrammingError) -> ProgrammingError:
        """Return the error; where tables or columns are missing, one that says what to do."""
        reason = about_tables(error, self.config.database)
        return error if reason is None else ProgrammingError(reason)

    async def _enqueue(
        self, route: Route, task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> AnyResult:
        (result,) = await self._store(route, task, [(args, kwargs)], many=False)
        return result

    async def _enqueue_many(self, route: Route, task: AnyTask, calls: Calls) -> list[AnyResult]:
        if not isinstance(calls, Iterable):
            raise TypeError(f"calls must be a list of pairs (args, kwargs), not {calls!r:.100}.")
        return await self._store(route, task, calls, many=True)

    async def _store(
        self,
        route: Route,
        task: AnyTask,
        calls: Calls,
        *,
        many: bool,
        own: Mapping[str, Any] | None = None,
    ) -> list[AnyResult]:
        """``own``: keys of aiotasks' own for the rows' metadata; None: not known yet."""
        if not isinstance(task, Task):
            raise TypeError(f"Expected a task made by @task, not {task!r:.100}.")
        self.validate_task(task)
        check_path(task)
        await route.room()
        if own is None and (tracer := tracing.tracer) is not None:
            with tracing.sending(tracer, task.queue_name, task.module_path) as sent:
                own = {tracing.KEY: sent.carrier} if sent.carrier else {}
                results = await self._store(route, task, calls, many=many, own=own)
                sent.ids += (result.id for result in results)
            return results
        jobs, results = make_rows(task, calls, self.alias, self.config, many=many, own=own)
        stored = await store_rows(route, task, jobs, results, self.config, many=many)
        if signals.audience(task_enqueued, type(self)) is not signals.Audience.NOBODY:
            for result in stored:
                await route.send(task_enqueued, type(self), result)
        return results

    async def _get_result(self, route: Route, result_id: str) -> AnyResult:
        id = parse_id(result_id)
        job = None if id is None else await route.select(self.alias, id)
        if job is None:
            raise TaskResultDoesNotExist(result_id)
        return result_of(job, self.config.moved_tasks)

    async def _cancel(self, route: Route, result: AnyResult) -> bool:
        id = parse_id(result.id)
        error = TaskCancelled("The task was cancelled before it ran.")
        text = dump_error(error, limit=self.config.max_error_size, redact=self.config.redact)
        job = None if id is None else await route.cancel(self.alias, id, text)
        if job is not None and job.status == Status.FAILED:
            ended = result_of(job, self.config.moved_tasks)
            await route.after_commit(lambda route: route.send_finished(type(self), ended, error))
        return job is not None

    async def act_on_many(
        self,
        route: Route,
        name: ActionName,
        which: Which,
        *,
        everything: bool = False,
        progress: Progress | None = None,
        report: Report | None = None,
        dry_run: bool = False,
    ) -> BulkCounts:
        """The logic of the four bulk actions, and of a dry run of each, which only counts."""
        action = action_named(name, route, self.alias, type(self), self.config)
        return await act(
            DryRun(action, route) if dry_run else action,
            which,
            route,
            self.alias,
            everything=everything,
            progress=progress,
            report=report,
        )

    async def _cancel_many(
        self, route: Route, which: Which, everything: bool = False, progress: Progress | None = None
    ) -> BulkCounts:
        return await self.act_on_many(route, "cancel", which, everything=everything, progress=progress)

    async def _retry_many(self, route: Route, which: Which, progress: Progress | None = None) -> BulkCounts:
        return await self.act_on_many(route, "retry", which, progress=progress)

    async def _delete_many(
        self, route: Route, which: Which, everything: bool = False, progress: Progress | None = None
    ) -> BulkCounts:
        return await self.act_on_many(route, "delete", which, everything=everything, progress=progress)

    async def _run_many_now(
        self, route: Route, which: Which, everything: bool = False, progress: Progress | None = None
    ) -> BulkCounts:
        return await self.act_on_many(route, "run_now", which, everything=everything, progress=progress)

    async def _save_metadata(
        self, route: Route, result: AnyResult | str, metadata: Mapping[str, Any]
    ) -> None:
        values, _ = dump_metadata(metadata)
        result_id = result if isinstance(result, str) else result.id
        id, within = parse_id(result_id), self.config.command_timeout
        if id is None or not await merge_metadata(route, self.alias, id, values, within=within):
            raise TaskResultDoesNotExist(result_id)

    enqueue = SyncMethod(_enqueue, name="aenqueue")
    enqueue_many = SyncMethod(_enqueue_many, name="aenqueue_many")
    get_result = SyncMethod(_get_result, name="aget_result")
    cancel = SyncMethod(_cancel, name="acancel")
    cancel_many = SyncMethod(_cancel_many, name="acancel_many")
    retry_many = SyncMethod(_retry_many, name="aretry_many")
    delete_many = SyncMethod(_delete_many, name="adelete_many")
    run_many_now = SyncMethod(_run_many_now, name="arun_many_now")
    save_metadata = SyncMethod(_save_metadata, name="asave_metadata")

    def close(self) -> None:
        """Do nothing: connections belong to event loops, and end with them."""

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        return checks.check_backend(self.alias, self._params)


def _is_installed() -> bool:
    """Return whether the app is installed: 0.1 µs, where apps.is_installed() compares all apps."""
    return "aiotasks" in apps.app_configs or apps.is_installed("aiotasks")


def _is_within_bounds(moment: datetime) -> bool:
    """Return whether every time zone can show the moment."""
    try:
        if timezone.is_naive(moment):
            if settings.USE_TZ:
                return True  # Django refuses it, because it is naive
            moment = timezone.make_aware(moment)
        return EARLIEST <= moment <= LATEST
    except (OverflowError, ValueError):  # its own time zone can't show it
        return False
