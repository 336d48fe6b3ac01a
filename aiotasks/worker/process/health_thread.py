"""HealthThread: answers probes while the worker's own event loop is blocked."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["HealthThread", "kept"]

logger = logging.getLogger("aiotasks.health")

# Seconds for which the end of the block waits for the thread.
END_TIMEOUT = 1.0

type Job = Callable[[], Coroutine[Any, Any, None]]


class HealthThread:
    """Runs ``jobs`` in a daemon thread, on an event loop of its own, while ``running()`` lasts."""

    def __init__(self, *jobs: Job) -> None:
        self._jobs = jobs
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[Any] | None = None
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="aiotasks-health", daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the jobs until the end of the block."""
        if not self._jobs:
            yield
            return
        self._thread.start()
        try:
            yield
        finally:
            self._ending = True
            if self._loop is not None and self._main is not None:
                with suppress(RuntimeError):  # it has been closed
                    self._loop.call_soon_threadsafe(self._main.cancel)
            self._thread.join(END_TIMEOUT)

    def _run(self) -> None:
        # Not uvloop, because a child that a task forks has no hook to leave its loops alone.
        with (
            asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner,
            suppress(asyncio.CancelledError),
        ):
            runner.run(self._work())

    async def _work(self) -> None:
        self._main = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        if not self._ending:
            await asyncio.gather(*(kept(job) for job in self._jobs))


async def kept(job: Job) -> None:
    """Run ``job``; if it fails, the others go on."""
    try:
        await job()
    except Exception:
        logger.exception("A part of the health endpoints has failed")
