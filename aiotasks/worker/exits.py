"""Keeping SystemExit and KeyboardInterrupt of user code from stopping the worker's loop.

asyncio (and uvloop) re-raise both out of ``run_forever()`` from *any* task, so also from one that
a task spawned: ``gather(child())`` with a child that calls ``sys.exit()`` ends the process.
"""

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any

from .belonging import OwnTask, current

__all__ = ["ExitRaised", "task_factory"]


class ExitRaised(BaseException):
    """Stands for the SystemExit or KeyboardInterrupt that a spawned task raised."""

    def __init__(self, original: BaseException) -> None:
        super().__init__(repr(original))
        self.original = original


class _Guarded(Coroutine[Any, Any, Any]):
    """A coroutine that passes everything on, but exits as ExitRaised."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def send(self, value: Any) -> Any:
        try:
            return self._coroutine.send(value)
        except (SystemExit, KeyboardInterrupt) as error:
            raise ExitRaised(error) from error

    def throw(self, *error: Any) -> Any:
        try:
            return self._coroutine.throw(*error)
        except (SystemExit, KeyboardInterrupt) as raised:
            raise ExitRaised(raised) from raised

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()

    def __getattr__(self, name: str) -> Any:  # cr_code and the like, for those who look into tasks
        return getattr(self._coroutine, name)


def task_factory(
    loop: asyncio.AbstractEventLoop, coroutine: Any, *, context: Context | None = None, **options: Any
) -> "asyncio.Task[Any]":
    """For ``loop.set_task_factory``, on a loop that is the worker's own.

    What a task starts is a plain asyncio task, which anybody may cancel: clients that tasks share have some.
    """
    if isinstance(coroutine, Coroutine):
        coroutine = _Guarded(coroutine)
    owner = current.get() if context is None else context.get(current)
    kind = OwnTask if owner is None else asyncio.Task
    return kind(coroutine, loop=loop, context=context, **options)
