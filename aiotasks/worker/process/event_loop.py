"""The event loop of a worker that has its process to itself: tasks can use it, but not stop or change it."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from ...db.connection_thread import fulfil
from ...executing import current
from ..belonging import log_interference
from ..task_factory import task_factory

__all__ = ["LEFTOVERS_TIMEOUT", "drive", "end_leftovers", "until_first", "worker_loop"]

logger = logging.getLogger("aiotasks.worker")

# Seconds for the asyncio tasks that tasks have left behind to end, and for closing the connections.
LEFTOVERS_TIMEOUT = 0.2


class _Protected(asyncio.AbstractEventLoop):
    """Refuses calls by tasks that would end the loop; ignores, with a warning, calls that would change it.

    Libraries make the ignored calls in passing, as if the loop were theirs. From any thread.
    """

    def stop(self) -> None:
        _refuse("stop")
        super().stop()

    def close(self) -> None:
        _refuse("close")
        super().close()

    def set_default_executor(self, executor: Any) -> None:
        _refuse("set_default_executor")
        super().set_default_executor(executor)

    def add_signal_handler[*Args](self, sig: int, callback: Callable[[*Args], object], *args: *Args) -> None:
        if current.get() is not None:  # libraries expect it, because loops without signals raise it
            raise NotImplementedError(_REFUSED.format("add_signal_handler"))
        super().add_signal_handler(sig, callback, *args)

    def remove_signal_handler(self, sig: int) -> bool:
        return not _ignored("remove_signal_handler") and super().remove_signal_handler(sig)

    def set_exception_handler(self, handler: Any) -> None:
        if not _ignored("set_exception_handler"):
            super().set_exception_handler(handler)

    def set_task_factory(self, factory: Any) -> None:
        if not _ignored("set_task_factory"):
            super().set_task_factory(factory)

    def set_debug(self, enabled: bool) -> None:
        if not _ignored("set_debug"):
            super().set_debug(enabled)

    async def shutdown_asyncgens(self) -> None:
        if not _ignored("shutdown_asyncgens"):
            await super().shutdown_asyncgens()

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        if not _ignored("shutdown_default_executor"):
            # uvloop's takes a timeout, too; typeshed's AbstractEventLoop doesn't say so.
            await super().shutdown_default_executor(timeout)  # type: ignore[call-arg]


_REFUSED = "The event loop belongs to the worker: a task can't call its {}()."


def _refuse(method: str) -> None:
    """Raise RuntimeError if the caller is a task."""
    if current.get() is not None:
        raise RuntimeError(_REFUSED.format(method))


def _ignored(method: str) -> bool:
    """Whether the caller is a task; its call is logged, and must do nothing."""
    if (execution := current.get()) is None:
        return False
    log_interference(execution, f"call {method}() of the worker's event loop")
    return True


class _AsyncioLoop(_Protected, asyncio.SelectorEventLoop):
    """Looks up host names for the worker in threads of their own: tasks may occupy the default executor's."""

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        if current.get() is not None:
            return await super().getaddrinfo(host, port, **options)
        return await _in_a_thread(socket.getaddrinfo, host, port, **options)

    async def getnameinfo(self, sockaddr: Any, flags: int = 0) -> Any:
        if current.get() is not None:
            return await super().getnameinfo(sockaddr, flags)
        return await _in_a_thread(socket.getnameinfo, sockaddr, flags)


async def _in_a_thread[Result](call: Callable[..., Result], *args: Any, **options: Any) -> Result:
    """Run a look-up in a thread of its own. Raises OSError, as look-ups do, where none can be started."""
    future: Future[Result] = Future()
    thread = threading.Thread(
        target=fulfil, args=(future, call, args, options), name="aiotasks-resolver", daemon=True
    )
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(f"no thread for looking up a host name: {error}") from error
    return await asyncio.wrap_future(future)


def worker_loop() -> asyncio.AbstractEventLoop:
    """Make the loop of a worker's process: uvloop's if that is installed."""
    loop: asyncio.AbstractEventLoop
    try:
        import uvloop
    except ImportError:
        loop = _AsyncioLoop()
    else:
        # Not by a class statement: uvloop's stubs and typeshed's don't agree on a dozen methods.
        loop = type("UvloopLoop", (_Protected, uvloop.Loop), {})()
    loop.set_task_factory(task_factory)
    return loop


def drive(loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, None]) -> None:
    """Run ``main`` on ``loop`` until it is done; raises what it raises.

    If an exception in a callback, or a ``stop()`` from elsewhere, ends the loop's run, the loop is run again
    and ``main`` continues. Only Ctrl-C before ``main`` has a handler for it ends both.
    """
    task = loop.create_task(main, name="aiotasks main")
    while True:
        try:
            return loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt, RuntimeError) as error:
            interrupted = isinstance(error, KeyboardInterrupt) and _has_default_interrupt()
            if task.done() or loop.is_closed() or interrupted:
                raise
            logger.critical("A callback stopped the event loop; the worker runs it again error=%r", error)


def _has_default_interrupt() -> bool:
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


async def end_leftovers(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel the asyncio tasks that tasks have left on the loop, and close its async generators."""
    left = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
    for task in left:
        task.cancel()
    if left:
        _, stubborn = await asyncio.wait(left, timeout=LEFTOVERS_TIMEOUT)
        if stubborn:
            names = ", ".join(task.get_name() for task in stubborn)
            logger.warning("Asyncio tasks left behind by tasks do not end names=%s", names)
    await asyncio.wait([asyncio.ensure_future(loop.shutdown_asyncgens())], timeout=LEFTOVERS_TIMEOUT)


async def until_first(*awaitables: Coroutine[Any, Any, object]) -> None:
    """Wait for the first of these, cancel the others and wait for their end; raises an error of any."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
