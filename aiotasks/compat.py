"""Whether sync code waits for the coroutine that runs."""

import asyncio

from asgiref.sync import AsyncToSync

__all__ = ["sync_code_waits"]


def sync_code_waits() -> bool:
    """Whether this coroutine runs below somebody's ``async_to_sync``.

    Then the waiting thread has a Django connection, perhaps with a transaction open on it, and
    that is where our statements belong: an async view under WSGI, an async test of TestCase, a
    helper called inside ``atomic()``. asgiref keeps the waiting thread's executor in a context
    variable, or, for tasks that didn't inherit it, by its short-lived loop.
    """
    if getattr(AsyncToSync.executors, "current", None) is not None:
        return True
    return asyncio.get_running_loop() in AsyncToSync.loop_thread_executors
