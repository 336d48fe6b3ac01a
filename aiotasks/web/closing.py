"""When streams end: after their time, and when the server stops.

A server that stops waits for its open responses. Uvicorn tells neither an application nor a response of it,
so its own flag is looked at, while there are streams.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

__all__ = ["Closing", "closing_of_loop"]

# Seconds between two looks at the server: one timer for all streams.
LOOK_INTERVAL = 0.25


def server_is_stopping() -> bool:
    """Whether the server that has this process's signal handlers is stopping.

    Uvicorn's ``Server.handle_exit()`` sets ``should_exit``, which its embedders set, too. Of other servers
    nothing is known: their streams end after their time.
    """
    handlers = (signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT))
    return any(getattr(getattr(each, "__self__", None), "should_exit", False) is True for each in handlers)


class Closing:
    """Interrupts what the streams of one loop wait for when the server stops."""

    def __init__(self) -> None:
        # Neither the loop nor a timer of it: a loop that is gone would never be freed.
        self._waits: set[asyncio.Timeout] = set()
        self._looks = False

    @property
    def has_begun(self) -> bool:
        """Whether the server is stopping."""
        return server_is_stopping()

    @asynccontextmanager
    async def until(self, deadline: float) -> AsyncIterator[None]:
        """Run the block, which must not yield, until ``deadline`` (by the loop's clock), or until the server
        stops: then it raises TimeoutError.
        """
        if server_is_stopping():
            raise TimeoutError
        async with asyncio.timeout_at(deadline) as wait:
            self._waits.add(wait)
            if not self._looks:
                self._look_later()
            try:
                yield
            finally:
                self._waits.discard(wait)

    def _look_later(self) -> None:
        self._looks = True
        asyncio.get_running_loop().call_later(LOOK_INTERVAL, self._look)

    def _look(self) -> None:
        self._looks = False
        if server_is_stopping():
            now = asyncio.get_running_loop().time()
            for wait in self._waits:
                if not wait.expired():
                    wait.reschedule(now)
        elif self._waits:
            self._look_later()


_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Closing] = WeakKeyDictionary()


def closing_of_loop() -> Closing:
    """The running loop's."""
    loop = asyncio.get_running_loop()
    if loop not in _by_loop:
        _by_loop[loop] = Closing()
    return _by_loop[loop]
