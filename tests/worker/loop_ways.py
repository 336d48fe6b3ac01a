"""What tasks do to the event loop and the process that they run in, each a function of the loop.

REFUSED are those that raise in the task; what the others do is ignored, or doesn't matter to anybody else.
"""

import _thread
import asyncio
import contextvars
import gc
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

Loop = asyncio.AbstractEventLoop

REFUSED = {
    "stop": "RuntimeError",
    "close": "RuntimeError",
    "set_default_executor": "RuntimeError",
    "add_signal_handler": "NotImplementedError",
    "run_until_complete": "RuntimeError",
    "cancel_all": "CancelledError",
    "terminate": "PermissionError",
    "hang_up": "PermissionError",
    "terminate_by_psutil": "AccessDenied",
    "raise_signal": "PermissionError",
    "interrupt_main": "PermissionError",
    "signal_thread": "PermissionError",
    "suspend": "PermissionError",
}
# A sync task that cancels asyncio tasks isn't one itself.
REFUSED_SYNC = {name: error for name, error in REFUSED.items() if name != "cancel_all"}


def stop(loop: Loop) -> None:
    loop.stop()


def stop_later(loop: Loop) -> None:
    loop.call_soon_threadsafe(loop.stop)


def close(loop: Loop) -> None:
    loop.close()


def run_until_complete(loop: Loop) -> None:
    waiting = asyncio.sleep(0)
    try:
        loop.run_until_complete(waiting)
    finally:
        waiting.close()


def cancel_all(loop: Loop) -> None:
    for one in asyncio.all_tasks(loop):
        one.cancel()


async def cancel_others_and_wait(loop: Loop) -> None:
    others = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for one in others:
        one.cancel()
    if others:
        await asyncio.wait(others, timeout=0.1)


async def cancel_others_and_await_their_end(loop: Loop) -> None:
    others = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for one in others:
        one.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def gather_others(loop: Loop) -> None:
    """It waits for the worker's own asyncio tasks, so for good. (Not one of the WAYS.)"""
    others = contextvars.Context().run(asyncio.all_tasks, loop) - {asyncio.current_task()}
    await asyncio.gather(*others)


async def cancel_in_empty_context(loop: Loop) -> None:
    """What a task has started is its own, whatever context it has."""
    started = loop.create_task(asyncio.sleep(3600), context=contextvars.Context())
    await asyncio.sleep(0)
    assert started.cancel()
    await asyncio.wait([started])


def exit_later(loop: Loop) -> None:
    loop.call_soon_threadsafe(sys.exit, 3)


def interrupt_later(loop: Loop) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    loop.call_soon_threadsafe(interrupt)


def set_exception_handler(loop: Loop) -> None:
    def exit(*_: Any) -> None:
        raise SystemExit

    def fail() -> None:
        raise ValueError("for the exception handler")

    loop.set_exception_handler(exit)
    loop.call_soon_threadsafe(fail)


def set_task_factory(loop: Loop) -> None:
    loop.set_task_factory(asyncio.eager_task_factory)


def set_debug(loop: Loop) -> None:
    loop.set_debug(True)


async def shutdown_asyncgens(loop: Loop) -> None:
    await loop.shutdown_asyncgens()


async def shutdown_default_executor(loop: Loop) -> None:
    await loop.shutdown_default_executor()


def set_default_executor(loop: Loop) -> None:
    with ThreadPoolExecutor() as executor:
        loop.set_default_executor(executor)


def add_signal_handler(loop: Loop) -> None:
    loop.add_signal_handler(15, print)


def remove_signal_handler(loop: Loop) -> None:
    loop.remove_signal_handler(15)


def terminate(_: Loop) -> None:
    os.kill(os.getpid(), 0)  # which only asks whether it is there
    os.kill(os.getpid(), signal.SIGTERM)


def terminate_later(loop: Loop) -> None:
    loop.call_soon_threadsafe(os.kill, os.getpid(), signal.SIGTERM)


def hang_up(_: Loop) -> None:
    os.kill(os.getpid(), signal.SIGHUP)


def terminate_by_psutil(_: Loop) -> None:
    psutil.Process().terminate()


def raise_signal(_: Loop) -> None:
    signal.raise_signal(signal.SIGTERM)


def interrupt_main(_: Loop) -> None:
    _thread.interrupt_main()


def signal_thread(_: Loop) -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def suspend(_: Loop) -> None:
    os.kill(os.getpid(), signal.SIGTSTP)


def take_wakeup_fd(_: Loop) -> None:
    if threading.current_thread() is threading.main_thread():  # nobody else may
        signal.set_wakeup_fd(-1)


def forget_loop(_: Loop) -> None:
    asyncio.set_event_loop(None)
    asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())


def disable_gc(_: Loop) -> None:
    gc.disable()


WAYS = [
    name
    for name, value in list(globals().items())
    if getattr(value, "__module__", None) == __name__ and callable(value) and name != "gather_others"
]
