"""PostgresTask: Django's Task with aiotasks' policies, and the decorator that makes one."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Unpack, overload

from django.tasks import DEFAULT_TASK_BACKEND_ALIAS, DEFAULT_TASK_QUEUE_NAME, Task
from django.tasks.base import DEFAULT_TASK_PRIORITY
from django.tasks.exceptions import InvalidTask
from django.utils.module_loading import import_string

from .compat import set_frozen
from .metadata.values import Metadata, dump_metadata
from .policies.limit_keys import check_limit
from .policies.policy import (
    POLICIES,
    CallKeywords,
    PolicyFields,
    PolicyKeywords,
    check_keywords,
    parse_policies,
)

if TYPE_CHECKING:
    from .results import PostgresTaskResult

__all__ = ["PostgresTask", "metadata_of", "task"]


def _registered(path: str) -> Any:
    """The Task of the code at ``path``; None if there is none."""
    try:
        found = import_string(path)
    except ImportError:
        return None
    return found if isinstance(found, Task) else None


def metadata_of(task: Any) -> str | None:
    """Return the metadata that a new task of ``task`` has, as JSON text; None: none. Raises InvalidTask."""
    metadata = getattr(task, "metadata", None)  # Django's Task may have them one day
    return _check_metadata(metadata)[1] if metadata else None


def _check_metadata(metadata: Any) -> tuple[Metadata, str]:
    try:
        return dump_metadata(metadata)
    except (TypeError, ValueError) as error:
        raise InvalidTask(str(error)) from None


def _check_limit(task: "PostgresTask") -> None:
    try:
        check_limit(task)
    except ValueError as error:
        raise InvalidTask(str(error)) from None


# The fields that Django's Task doesn't have, and what stands for them in one.
_OWN_FIELDS: dict[str, Any] = {**dict.fromkeys(POLICIES), "metadata": {}}


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresTask(Task, PolicyFields):  # type: ignore[type-arg]  # generic in the stubs alone
    """A Task with policies of its own: see PolicyFields.

    ``metadata``: what its tasks have for a start, set by ``using()``.
    """

    metadata: Metadata = field(default_factory=dict, hash=False)  # a dict has no hash

    def __post_init__(self) -> None:
        parse_policies(self)
        _check_limit(self)
        set_frozen(self, "metadata", _check_metadata(self.metadata)[0])
        Task.__post_init__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what differs from the task of the code; a policy that doesn't is restored from there.

        So functions that can't be pickled (a lambda as ``backoff``) don't matter, and a release without some
        policy reads a task that says nothing about it.
        """
        registered = _registered(self.module_path)
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        for name, otherwise in _OWN_FIELDS.items():
            own, registered_one = values[name], getattr(registered, name, otherwise)
            if own is registered_one or own == registered_one:
                del values[name]
        return type(self)._reconstruct, ({**values, "func": self.module_path},)

    @classmethod
    def _reconstruct(cls, kwargs: dict[str, Any]) -> "PostgresTask":
        """Django's name, which pickles of every release have. Raises ValueError for a wrong path."""
        path = kwargs["func"]
        registered = _registered(path)
        if registered is None:
            raise ValueError(f"Expected {path!r} to point to a Task instance.")
        own = {name: getattr(registered, name, otherwise) for name, otherwise in _OWN_FIELDS.items()}
        return cls(**{**own, **kwargs, "func": registered.func})

    def using(
        self,
        *,
        priority: int | None = None,
        queue_name: str | None = None,
        run_after: datetime | None = None,
        backend: str | None = None,
        metadata: Metadata | None = None,
        **policies: Unpack[CallKeywords],
    ) -> "PostgresTask":
        """Return a copy with other values.

        metadata: what a result's ``metadata`` shows from the beginning: a dict of JSON values, up to 64 KiB,
        without keys that begin with an underscore.

        Of these five, None leaves the value as it is. A policy that isn't given stays as it is; one that is
        None is the backend's again. Raises TypeError for a policy that only the decorator takes
        (max_attempts, backoff, timeout, limit, …), InvalidTask for a bad value.
        """
        check_keywords("using()", {**policies}, CallKeywords)
        given: dict[str, Any] = {
            "priority": priority,
            "queue_name": queue_name,
            "run_after": run_after,
            "backend": backend,
            "metadata": metadata,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        changes.update(policies)
        return replace(self, **changes)

    if TYPE_CHECKING:
        # Django's own methods, which return what the backend makes.
        def enqueue(self, *args: Any, **kwargs: Any) -> PostgresTaskResult: ...
        async def aenqueue(self, *args: Any, **kwargs: Any) -> PostgresTaskResult: ...
        def get_result(self, result_id: str) -> PostgresTaskResult: ...
        async def aget_result(self, result_id: str) -> PostgresTaskResult: ...


@overload
def task(function: Callable[..., Any], /) -> PostgresTask: ...
@overload
def task(
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: bool = ...,
    **policies: Unpack[PolicyKeywords],
) -> Callable[[Callable[..., Any]], PostgresTask]: ...
def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    priority: int = DEFAULT_TASK_PRIORITY,
    queue_name: str = DEFAULT_TASK_QUEUE_NAME,
    backend: str = DEFAULT_TASK_BACKEND_ALIAS,
    takes_context: bool = False,
    **policies: Unpack[PolicyKeywords],
) -> PostgresTask | Callable[[Callable[..., Any]], PostgresTask]:
    """``django.tasks.task`` with aiotasks' policies as typed keywords.

    Works on Django 6.0, whose own decorator passes no keywords on, and with any backend: a backend
    that isn't aiotasks' ignores the policies. Raises InvalidTask, as Django's does.
    """
    check_keywords("task()", {**policies}, PolicyKeywords)

    def wrapper(function: Callable[..., Any]) -> PostgresTask:
        values: dict[str, Any] = {**policies}
        return PostgresTask(
            func=function,
            priority=priority,
            queue_name=queue_name,
            backend=backend,
            takes_context=takes_context,
            run_after=None,
            **values,
        )

    return wrapper if function is None else wrapper(function)
