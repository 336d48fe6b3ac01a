"""AsyncBackoffs: awaits what a task's ``async def`` backoff has returned, for a limited time."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from ... import forks
from ..stacks import stack_of_task
from ..task_factory import ExitRaised

__all__ = ["BACKOFF_TIMEOUT", "CANCEL_TIMEOUT", "AsyncBackoffs"]

# Seconds that an `async def` backoff may take. Chosen: it may ask a server, but a slot waits for it.
BACKOFF_TIMEOUT = 10.0

# Seconds for the ``finally`` of one that was cancelled.
CANCEL_TIMEOUT = 1.0


class AsyncBackoffs:
    """Runs each in an asyncio task of its own, because one that swallows its cancellation must not take its
    caller's slot forever.

    outlasting: those that were given up and go on.
    """

    def __init__(self) -> None:
        self.outlasting: set[asyncio.Task[Any]] = set()

    async def ask(self, answer: Awaitable[Any]) -> Any:
        """Return the backoff's answer. Call it on the loop.

        Raises what it raises, but ExitRaised in place of SystemExit and KeyboardInterrupt, which would stop
        the loop; TimeoutError after BACKOFF_TIMEOUT; CancelledError if the caller is cancelled.
        """
        asked = asyncio.get_running_loop().create_task(_ask(answer))
        self.outlasting.add(asked)
        asked.add_done_callback(self._ended)
        try:
            done, _ = await asyncio.wait([asked], timeout=BACKOFF_TIMEOUT)
        except asyncio.CancelledError:
            await self._cancel(asked)
            raise
        if done:
            return asked.result()
        await self._cancel(asked)
        error = TimeoutError(f"The backoff hasn't ended within {BACKOFF_TIMEOUT:g} s.")
        if not asked.done():
            error.add_note(f"It ignores its cancellation, and goes on:\n{stack_of_task(asked)}")
        raise error

    async def _cancel(self, asked: "asyncio.Task[Any]") -> None:
        asked.cancel()
        await asyncio.wait([asked], timeout=CANCEL_TIMEOUT)

    def _ended(self, asked: "asyncio.Task[Any]") -> None:
        self.outlasting.discard(asked)
        if not asked.cancelled():
            asked.exception()  # or the loop logs that nobody has retrieved it


async def _ask(answer: Awaitable[Any]) -> Any:
    since = forks.generation
    try:
        result = await answer
    except BaseException as error:
        if forks.generation != since:
            forks.end(error)
        if isinstance(error, SystemExit | KeyboardInterrupt):
            raise ExitRaised(error) from error
        raise
    if forks.generation != since:
        forks.end()
    return result
