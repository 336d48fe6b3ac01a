"""DummyBackend: keeps what a test enqueues, for tasks that have policies.

No database and no worker. What it imitates of the policies, and what not, is in docs/howto/tests.md.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from django.tasks import TaskResultStatus
from django.tasks.backends.dummy import DummyBackend as DjangosDummyBackend
from django.tasks.signals import task_enqueued, task_finished
from django.utils import timezone

from ..exceptions import TaskCancelled
from ..results import PostgresTaskResult
from ..rows import AnyResult, AnyTask
from .backend_base import BackendForTests, by_id, error_of, set_fields

__all__ = ["DummyBackend"]


class DummyBackend(BackendForTests, DjangosDummyBackend):
    """Keeps what is enqueued in ``results``, and runs nothing. ``clear()`` forgets it."""

    results: list[Any]  # the stubs' elements are generic

    def enqueue(  # type: ignore[override]  # the base's parameters are generic in the stubs
        self, task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> AnyResult:
        """Keep the task, and return its result. Raises for arguments as ``PostgresBackend.enqueue`` does."""
        result = self._new_result(task, args, kwargs)
        duplicate = self._duplicate(result, self.results)
        if duplicate is not None:
            return duplicate
        self.results.append(result)
        task_enqueued.send(type(self), task_result=result)
        return deepcopy(result)

    def clear(self) -> None:
        """Forget all tasks, and their unique keys."""
        super().clear()
        self._keys.clear()

    def _kept(self, result: Any) -> Any:
        return by_id(self.results, result if isinstance(result, str) else result.id)

    def join(self, result: PostgresTaskResult, timeout: float | None = None) -> None:
        """Refresh the result if its task was cancelled. Raises RuntimeError for any other task."""
        kept = self.get_result(result.id)
        if not kept.is_finished:
            raise RuntimeError(
                f"DummyBackend runs no tasks, so task {result.id} never ends, and a join would wait forever. "
                "Use ImmediateBackend, or PostgresBackend and aiotasks.testing.drain(), in tests that join."
            )
        result.update(kept)

    def cancel(self, result: AnyResult) -> bool:
        """Make the task that is kept FAILED, with TaskCancelled, if it waits."""
        for kept in self.results:
            if kept.id == result.id and kept.status == TaskResultStatus.READY:
                error = TaskCancelled("The task was cancelled before it ran.")
                kept.errors.append(error_of(error))
                set_fields(kept, status=TaskResultStatus.FAILED, finished_at=timezone.now())
                _send_finished(type(self), kept, error)
                return True
        return False


def _send_finished(sender: type, result: AnyResult, error: BaseException) -> None:
    try:
        raise error
    except BaseException:  # for sys.exc_info()  # noqa: BLE001
        task_finished.send(sender, task_result=result)
