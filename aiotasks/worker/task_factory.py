"""The task factory of the worker's loop, which SystemExit and KeyboardInterrupt of tasks must not stop.

asyncio (and uvloop) re-raise both out of ``run_forever()`` from *any* task, so also from one that
a task spawned: ``gather(child())`` with a child that calls ``sys.exit()`` ends the process.
"""

import asyncio
import os
from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any

from ..executing import current
from .belonging import OwnTask

__all__ = ["ExitRaised", "task_factory"]


class ExitRaised(BaseException):
    """Stands for the SystemExit or KeyboardInterrupt that a spawned task raised."""

    def __init__(self, original: BaseException) -> None:
        super().__init__(repr(original))
        self.original = original


class _Guarded(Coroutine[Any, Any, Any]):
    """A coroutine that behaves as the one it wraps, but raises ExitRaised in place of exits."""

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

    def __getattr__(self, name: str) -> Any:  # cr_code and the like, for code that inspects asyncio tasks
        return getattr(self._coroutine, name)


def task_factory(
    loop: asyncio.AbstractEventLoop, coroutine: Any, *, context: Context | None = None, **options: Any
) -> "asyncio.Task[Any]":
    """For ``loop.set_task_factory``, on the loop of a worker's process.

    Tasks start plain asyncio tasks, which any code may cancel: clients that tasks share have some. While a
    task waits, this package may start an asyncio task for all callers (a wake-up): that is the worker's own.
    """
    own = current.get() is None or (
        context is not None and context.get(current) is None and _is_of_this_package(coroutine)
    )
    if isinstance(coroutine, Coroutine):
        coroutine = _Guarded(coroutine)
    return (OwnTask if own else asyncio.Task)(coroutine, loop=loop, context=context, **options)


_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")


def _is_of_this_package(coroutine: Any) -> bool:
    code = getattr(coroutine, "cr_code", None)
    return code is not None and code.co_filename.startswith(_PACKAGE)
