"""ImmediateBackend: runs a task within ``enqueue()``, for tasks that have policies.

No database and no worker. What it imitates of the policies, and what not, is in docs/howto/tests.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from django.tasks import TaskResultStatus
from django.tasks.backends.immediate import ImmediateBackend as DjangosImmediateBackend
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.utils import timezone

from ..codec import dump_json
from ..compat import RETURN_VALUE
from ..conf import Options
from ..exceptions import Snooze
from ..results import Counts, PostgresTaskResult
from ..rows import AnyResult, AnyTask
from .attempts import is_tried_again, run_body
from .backend_base import BackendForTests, by_id, error_of, set_fields

__all__ = ["ImmediateBackend"]


class ImmediateBackend(BackendForTests, DjangosImmediateBackend):
    """Runs a task within ``enqueue()``, with all its attempts one after another, without their delays."""

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._running: list[AnyResult] = []

    def enqueue(  # type: ignore[override]  # the base's parameters are generic in the stubs
        self, task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> AnyResult:
        """Run the task, and return its result. Raises for arguments as ``PostgresBackend.enqueue`` does."""
        result = self._new_result(task, args, kwargs)
        duplicate = self._duplicate(result, self._running)  # of a task that enqueues itself
        if duplicate is not None:
            return duplicate
        self._running.append(result)
        try:
            task_enqueued.send(type(self), task_result=result)
            while not self._attempt(result):
                pass
        finally:
            self._running.remove(result)
            self._keys.pop(result.id, None)
        return result

    def cancel(self, result: AnyResult) -> bool:
        """Return False: it is too late."""
        return False

    def join(self, result: PostgresTaskResult, timeout: float | None = None) -> None:
        """Return at once: the task has ended within ``enqueue()``. Raises RuntimeError if it has snoozed."""
        if not result.is_finished:
            raise RuntimeError(
                f"Task {result.id} has snoozed, or runs at the moment, and ImmediateBackend runs a task "
                "within its enqueue() alone: a join would wait forever."
            )

    def _kept(self, result: Any) -> Any:
        """A result itself, because none is kept here; the id of a task that runs."""
        if not isinstance(result, str):
            return result
        return by_id(self._running, result)

    def _options(self) -> Options:
        """MAX_ATTEMPTS and BACKOFF, as of a PostgresBackend."""
        return Options.from_params(self.alias, self._params)

    def _attempt(self, result: AnyResult) -> bool:
        """Run the body once; return whether no other attempt follows."""
        now = timezone.now()
        set_fields(result, status=TaskResultStatus.RUNNING, last_attempted_at=now)
        if result.started_at is None:
            set_fields(result, started_at=now)
        result.worker_ids.append(self.worker_id)
        task_started.send(sender=type(self), task_result=result)
        try:
            value = run_body(result)
        except KeyboardInterrupt:
            raise  # as Django's: who runs the tests wants to stop them
        except Snooze:
            result.worker_ids.pop()
            set_fields(result, status=TaskResultStatus.READY)
            return True
        except BaseException as error:  # as workers do  # noqa: BLE001
            result.errors.append(error_of(error))
            try:
                again = is_tried_again(self._options(), result, error)
            except BaseException as raised:  # a backoff's  # noqa: BLE001
                result.errors[-1] = error_of(raised)
                again = False
            if again:
                set_fields(result, status=TaskResultStatus.READY, counts=Counts(failures=len(result.errors)))
                return False
            self._end(result, TaskResultStatus.FAILED)  # with the error in sys.exc_info()
            return True
        try:
            value, _ = dump_json(value, where="the return value", limit=self._options().max_result_size)
        except Exception as error:  # another attempt would do again what the body has done to its end  # noqa: BLE001
            result.errors.append(error_of(error))
            self._end(result, TaskResultStatus.FAILED)
            return True
        set_fields(result, **{RETURN_VALUE: value})
        self._end(result, TaskResultStatus.SUCCESSFUL)
        return True

    def _end(self, result: AnyResult, status: TaskResultStatus) -> None:
        set_fields(result, status=status, finished_at=timezone.now())
        task_finished.send(type(self), task_result=result)
