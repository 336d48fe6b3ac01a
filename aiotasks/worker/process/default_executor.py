"""DefaultExecutor: for ``asyncio.to_thread()`` on the loop of a worker that has its process to itself."""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ...db.connection_thread import fulfil
from ..thread_pool import ThreadPool

__all__ = ["DefaultExecutor"]


class DefaultExecutor(ThreadPoolExecutor):
    """The default executor of a worker's loop: for ``asyncio.to_thread()`` and the like.

    Each call is a separate job for Django's connections. Shut it down before the process ends, which waits
    for these threads. (asyncio demands a ThreadPoolExecutor; nothing of that class's own is used.)
    """

    def __init__(self, max_workers: int | None = None) -> None:
        super().__init__(max_workers, thread_name_prefix="aiotasks-default")
        limit = max_workers or min(32, (os.cpu_count() or 1) + 4)
        self._calls = ThreadPool(
            "aiotasks-default", "the loop's default executor", limit, daemon=False, connects=False
        )
        self._closed = False
        self._cancels = False
        self._calls.start()  # with one thread calls can wait, even if the machine refuses more

    def submit[Result](self, call: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Run ``call`` in a thread. Raises RuntimeError after the shutdown, or if there is no thread."""
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[Result] = Future()

        def run(after: Callable[[], None]) -> None:
            if self._cancels:
                future.cancel()
            fulfil(future, call, args, kwargs, then=after)

        self._calls.put(run, may_wait=True)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. Waiting calls still run, unless ``cancel_futures``."""
        if not self._closed:
            self._closed = True
            if cancel_futures:
                self._cancels = True
                for run in self._calls.take_waiting():
                    run(lambda: None)
            self._calls.close()
        if wait:
            for thread in self._calls.threads:
                thread.join()

    def ends_within(self, seconds: float) -> bool:
        """After the shutdown: wait at most so many seconds; returns whether the threads have ended."""
        end = time.monotonic() + seconds
        for thread in self._calls.threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._calls.threads)
