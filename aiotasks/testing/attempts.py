"""The attempts of a task that ImmediateBackend runs: body, metadata, and whether it is tried again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from inspect import isawaitable, iscoroutinefunction
from typing import Any, NamedTuple
from uuid import UUID

from asgiref.sync import async_to_sync

from ..conf import Options
from ..context import PostgresTaskContext
from ..exceptions import TaskTimeout
from ..metadata.running import RunningMetadata
from ..policies.policy import PolicyFields
from ..policies.timeout import TimeLimit
from ..rows import AnyResult
from ..worker.running.verdict import Delay, judge, seconds_of
from .backend_base import set_fields

__all__ = ["is_tried_again", "run_body"]

logger = logging.getLogger("aiotasks.testing")


class _IntoResult:
    """Saves an attempt's metadata in its result."""

    def __init__(self, result: Any) -> None:
        self._result = result

    @property
    def text(self) -> str | None:
        text: str | None = self._result.stored_metadata
        return text

    def save_soon(self, metadata: RunningMetadata) -> None:
        metadata.refused(self.text)  # save_metadata() may have been called meanwhile
        try:
            if metadata.begin():
                set_fields(self._result, stored_metadata=metadata.text)
                metadata.written()
        except (ValueError, RecursionError) as error:  # with what others have written
            self._log(metadata, error)

    def save_last(self, metadata: RunningMetadata) -> None:
        if metadata.is_untouched:
            return
        if (error := metadata.close()) is not None:
            self._log(metadata, error)
        self.save_soon(metadata)

    def _log(self, metadata: RunningMetadata, error: Exception) -> None:
        logger.error(
            "Metadata could not be saved; the task has those of its last save id=%s error=%r",
            metadata.id,
            f"{type(error).__name__}: {error}",
        )


class _Attempt(NamedTuple):
    """The attempt as its context sees it."""

    limit: TimeLimit | None
    metadata: RunningMetadata

    def is_cancelled(self) -> bool:
        return False  # nobody else could have run meanwhile


def run_body(result: AnyResult) -> Any:
    task = result.task
    timeout = task.timeout if isinstance(task, PolicyFields) else None
    saves: Any = _IntoResult(result)
    metadata = RunningMetadata(UUID(result.id), None, saves.text, saves)
    attempt = _Attempt(None if timeout is None else TimeLimit(timeout), metadata)
    if attempt.limit is not None:
        attempt.limit.begin()
    args = [PostgresTaskContext(task_result=result, running=attempt)] if task.takes_context else []
    try:
        if timeout is None or not iscoroutinefunction(task.func):
            return task.call(*args, *result.args, **result.kwargs)
        return async_to_sync(_within)(timeout, task.func, *args, *result.args, **result.kwargs)
    finally:
        saves.save_last(metadata)


async def _within(seconds: float, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Await a coroutine function; TaskTimeout if that takes longer. Its own TimeoutError stays its own."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await function(*args, **kwargs)
    except TimeoutError:
        if not limit.expired():
            raise
        raise TaskTimeout(f"The attempt has run for longer than its timeout of {seconds:g} s.") from None


def is_tried_again(options: Options, result: AnyResult, error: BaseException) -> bool:
    """Return what a worker decides. Raises what a backoff raises."""
    verdict = judge(result.task, options, len(result.errors), error)
    if verdict is None or isinstance(verdict, Delay):
        return verdict is not None
    answer = verdict(error, result)
    return seconds_of(async_to_sync(_awaited)(answer) if isawaitable(answer) else answer) is not None


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer
