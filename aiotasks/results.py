"""PostgresTaskResult: Django's TaskResult that can wait for its task's end, and cancel it."""

from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, Self
from uuid import UUID

from django.tasks import TaskResult, TaskResultStatus
from django.tasks.base import TASK_REFRESH_ATTRS

from .codec import CANCELLED
from .compat import RETURN_VALUE, set_frozen, slot_setters
from .metadata.values import Metadata, public, read_row
from .rows import AnyResult, AnyTask

__all__ = ["OTHER_FIELDS", "Counts", "PostgresTaskResult", "new_result", "parse_id"]


# What refresh() copies.
_REFRESHED = (*TASK_REFRESH_ATTRS, "counts", "stored_metadata")


class Counts(NamedTuple):
    """What a row counts. One field of the result, because each costs every enqueue."""

    failures: int = 0
    snoozes: int = 0
    errors_omitted: int = 0


NO_COUNTS = Counts()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fields(TaskResult):  # type: ignore[type-arg,misc]  # the stubs differ
    """The fields of a PostgresTaskResult.

    A class of its own, because a dataclass with slots drops a property that has the name of an inherited
    field.
    """

    counts: Counts = NO_COUNTS
    is_duplicate: bool = field(default=False, compare=False)
    stored_metadata: str | None = field(default=None, repr=False)


# A dataclass as well, because only then an assignment to a property raises FrozenInstanceError.
@dataclass(frozen=True, kw_only=True)
class PostgresTaskResult(_Fields):  # type: ignore[misc]  # as above
    """A TaskResult that can wait for the end of its task, and cancel it, and shows its metadata.

    counts: see ``failures``, ``snoozes`` and ``errors_omitted``. is_duplicate: whether the enqueue that
    returned the result has stored no task, because this one holds its unique key. stored_metadata: see
    ``metadata``, as JSON text; None: none.
    """

    __slots__ = ()

    @property
    def metadata(self) -> Metadata:
        """What the caller, the task itself and others have noted about it: a copy.

        Without the keys that are aiotasks' own, which begin with an underscore. Raises InvalidRow where other
        code has written something else.
        """
        return public(self.raw_metadata)

    @metadata.setter
    def metadata(self, value: object) -> None:
        """Ignored: a later Django may have a field of this name, which is set as the others are."""

    @property
    def raw_metadata(self) -> Metadata:
        """``metadata`` with all keys."""
        return read_row(self.stored_metadata, self.id)

    @raw_metadata.setter
    def raw_metadata(self, value: object) -> None:
        """Ignored, as above."""

    @property
    def failures(self) -> int:
        """Failed executions after which the task is tried again; a retry by hand begins from 0."""
        return self.counts.failures

    @property
    def snoozes(self) -> int:
        """How often the task has put itself off."""
        return self.counts.snoozes

    @property
    def errors_omitted(self) -> int:
        """How many errors are left out of ``errors``, between the first 20 and the last 20."""
        return self.counts.errors_omitted

    @property
    def is_cancelled(self) -> bool:
        """Whether the task was cancelled, before it ran or while it ran; ``status`` is FAILED then."""
        errors = self.errors if self.status == TaskResultStatus.FAILED else []
        return bool(errors) and errors[-1].exception_class_path == CANCELLED

    def __setstate__(self, state: list[Any]) -> None:
        """Restore a pickled result. What a release with fewer fields has pickled gets the defaults."""
        known = fields(self)
        for each, value in zip(
            known, (*state, *(each.default for each in known[len(state) :])), strict=False
        ):
            set_frozen(self, each.name, value)

    def refresh(self) -> None:
        """Read the task's state again."""
        self.update(_backend_of(self).get_result(self.id))

    async def arefresh(self) -> None:
        """See refresh()."""
        self.update(await _backend_of(self).aget_result(self.id))

    def update(self, refreshed: AnyResult) -> None:
        """Take over the state of another result of the same task."""
        for name in _REFRESHED:
            set_frozen(self, name, getattr(refreshed, name))

    async def ajoin(self, timeout: float | None = None) -> Self:
        """Wait for the task's end; return this result, refreshed then, also if the task has failed.

        A NOTIFY ends the wait, or a look within five seconds. Raises TimeoutError ``timeout`` seconds later
        (0: at once) and after one more look, TaskResultDoesNotExist if the task is deleted meanwhile,
        RuntimeError inside a transaction that enqueues the task, or has changed or locked it. While the
        database is away the wait goes on.
        """
        await _backend_of(self).ajoin(self, timeout)
        return self

    def join(self, timeout: float | None = None) -> Self:
        """See ajoin(). Ctrl-C ends the wait."""
        _backend_of(self).join(self, timeout)
        return self

    async def acancel(self) -> bool:
        """Cancel the task; return whether that was still possible.

        A task that waits is FAILED at once, with ``TaskCancelled``. A coroutine that runs is cancelled
        by its worker soon; a sync function runs to its end. ``arefresh()`` shows the outcome.
        """
        cancelled: bool = await _backend_of(self).acancel(self)
        return cancelled

    def cancel(self) -> bool:
        """See acancel()."""
        cancelled: bool = _backend_of(self).cancel(self)
        return cancelled


READY = TaskResultStatus.READY

# The fields that ``new_result`` sets, in the order of its values. Setting slots takes a quarter of the time
# of ``__init__``: 0.1 s less for an enqueue of 20,000.
_RESULT_FIELDS = (
    "task",
    "id",
    "status",
    "enqueued_at",
    "started_at",
    "finished_at",
    "last_attempted_at",
    "args",
    "kwargs",
    "backend",
    "errors",
    "worker_ids",
    RETURN_VALUE,
    "counts",
    "is_duplicate",
    "stored_metadata",
)
_RESULT_SETTERS = slot_setters(PostgresTaskResult, _RESULT_FIELDS)


def _same(value: Any) -> Any:
    return value


def _defaults(kind: type, without: Iterable[str]) -> list[tuple[str, Callable[[], Any]]]:
    """Return name and maker of the default of each field of a dataclass that isn't in ``without``.

    A later Django may add such fields. Raises RuntimeError for a field without a default.
    """
    defaults: list[tuple[str, Callable[[], Any]]] = []
    for each in fields(kind):
        if each.name in without:
            continue
        if each.default_factory is not MISSING:
            defaults.append((each.name, each.default_factory))
        elif each.default is not MISSING:
            defaults.append((each.name, partial(_same, each.default)))
        else:
            raise RuntimeError(
                f"This Django's {kind.__name__} has a field {each.name!r} without a default, which this "
                "release of aiotasks doesn't know: upgrade aiotasks."
            )
    return defaults


# A later Django's fields of a TaskResult: name and maker of the default of each.
OTHER_FIELDS = _defaults(PostgresTaskResult, _RESULT_FIELDS)
_OTHER_SETTERS = [(getattr(PostgresTaskResult, name).__set__, make) for name, make in OTHER_FIELDS]


def _backend_of(result: TaskResult) -> Any:  # type: ignore[type-arg]  # generic in the stubs alone
    return result.task.get_backend()


def new_result(
    task: AnyTask,
    id: str,
    enqueued_at: datetime,
    args: list[Any],
    kwargs: dict[str, Any],
    backend: str,
    metadata: str | None,
) -> AnyResult:
    """Return the TaskResult of a new call. The arguments must be normalised: ``TaskResult()`` would do that
    again, for 14 µs. metadata: JSON text.
    """
    result: AnyResult = object.__new__(PostgresTaskResult)
    values: tuple[Any, ...] = (
        task,
        id,
        READY,
        enqueued_at,
        None,
        None,
        None,
        args,
        kwargs,
        backend,
        [],
        [],
        None,
        NO_COUNTS,
        False,
        metadata,
    )
    for set_field, value in zip(_RESULT_SETTERS, values, strict=True):
        set_field(result, value)
    for set_field, make in _OTHER_SETTERS:
        set_field(result, make())
    return result


def parse_id(result_id: str) -> UUID | None:
    """Return a result's id as a UUID; None if it is malformed."""
    try:
        return UUID(result_id)
    except (ValueError, AttributeError, TypeError):
        return None
