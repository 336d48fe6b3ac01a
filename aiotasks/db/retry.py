"""Repeating statements, those that may be repeated, while the server or the connection is at fault."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from django.db import utils

from .errors import is_transient

__all__ = ["backoff", "repeat"]


def backoff(failures: int, *, longest: float = 5.0) -> float:
    """Seconds to wait after so many failures in a row: 0.05 doubled each time, with jitter.

    Jitter keeps a herd of clients apart after a restart of the server.
    """
    return min(longest, 0.05 * 2.0 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0)


async def repeat[Result](operation: Callable[[], Awaitable[Result]], *, within: float) -> Result:
    """Run ``operation`` until it succeeds, beginning no attempt after ``within`` seconds.

    Raises the error of the last attempt, and at once an error that no repetition fixes.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    failures = 0
    while True:
        try:
            return await operation()
        except utils.Error as error:
            failures += 1
            pause = backoff(failures, longest=1.0)
            if not is_transient(error) or loop.time() + pause > end:
                raise
            await asyncio.sleep(pause)
