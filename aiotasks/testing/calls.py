"""Calls of drain() and assert_enqueued(): at once in sync code, awaited on an event loop."""

import asyncio
import warnings
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from dataclasses import fields
from typing import Any

from django.core.exceptions import SynchronousOnlyOperation

from ..compat import set_frozen, sync_code_waits
from ..results import PostgresTaskResult
from ..rows import AnyResult
from ..sync import async_unsafe_allowed, running_loop_hidden

__all__ = ["AwaitableResult", "Count", "here_or_awaited"]


def here_or_awaited(
    name: str, run: Callable[[], Any], run_async: Callable[[], Coroutine[Any, Any, Any]]
) -> Any:
    """Run at once in sync code; on an event loop return an awaitable.

    Sync code on an event loop's thread looks like a coroutine there, so if the site allows the former, both
    get a result that may be awaited. Below ``async_to_sync`` the thread that waits has
    the connection, so there awaiting is the only way.
    """
    if asyncio._get_running_loop() is None:
        return run()
    if async_unsafe_allowed() and not sync_code_waits():
        with running_loop_hidden():
            return run()
    current = asyncio.current_task()
    if current is None:
        raise SynchronousOnlyOperation(
            f"{name}() can't run in sync code on the thread of an event loop. Set DJANGO_ALLOW_ASYNC_UNSAFE, "
            f"or use `await {name}()` in a coroutine."
        )
    return _MustBeAwaited(name, run_async, current)


class _MustBeAwaited(Coroutine[Any, Any, Any]):
    """A coroutine that cancels the asyncio task in which it was made, if it is never awaited.

    An ordinary one only warns at garbage collection, and the test passes.
    """

    def __init__(
        self, name: str, run: Callable[[], Coroutine[Any, Any, Any]], caller: "asyncio.Task[Any]"
    ) -> None:
        self._name = name
        self._run = run
        self._caller = caller
        self._coroutine: Coroutine[Any, Any, Any] | None = None

    def _started(self) -> Coroutine[Any, Any, Any]:
        if self._coroutine is None:
            self._coroutine = self._run()
        return self._coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._started().__await__()

    def send(self, value: Any) -> Any:
        return self._started().send(value)

    def throw(self, *error: Any) -> Any:
        return self._started().throw(*error)

    def close(self) -> None:
        self._started().close()

    def __repr__(self) -> str:
        return f"<{self._name}() on an event loop: `await` it>"

    def __del__(self) -> None:
        if self._coroutine is not None:
            return
        message = f"{self._name}() did nothing, because it wasn't awaited: write `await {self._name}(…)`."
        if self._caller.done():
            warnings.warn(message, RuntimeWarning, stacklevel=2, source=self)
        elif asyncio._get_running_loop() is (loop := self._caller.get_loop()):
            self._caller.cancel(message)
        else:
            with suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(self._caller.cancel, message)


class Count(int):
    """The number of tasks that ran; may be awaited, too."""

    def __await__(self) -> Generator[Any, Any, int]:
        yield from ()
        return int(self)


class AwaitableResult(PostgresTaskResult):
    """A TaskResult that may be awaited; that returns an ordinary one."""

    __slots__ = ()
    __hash__ = PostgresTaskResult.__hash__

    @classmethod
    def of(cls, result: AnyResult) -> AnyResult:
        return _copied(result, cls)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PostgresTaskResult):
            return all(getattr(self, each.name) == getattr(other, each.name) for each in fields(self))
        return NotImplemented

    def __reduce__(self) -> Any:
        return _copied(self, PostgresTaskResult).__reduce_ex__(2)

    def __await__(self) -> Generator[Any, Any, AnyResult]:
        yield from ()
        return _copied(self, PostgresTaskResult)


def _copied(result: AnyResult, kind: type[AnyResult]) -> AnyResult:
    copy = object.__new__(kind)
    for each in fields(result):
        set_frozen(copy, each.name, getattr(result, each.name))
    return copy
