"""The stacks of threads and of asyncio tasks, as text for a log. Can be called from any thread."""

import asyncio
import sys
import threading
import traceback
from collections.abc import Collection
from types import FrameType
from typing import Any

__all__ = ["stack_of_task", "stack_of_thread", "stacks_of_tasks", "stacks_of_threads"]

# More would make a log record too long to read.
MOST_STACKS = 100


def stack_of_thread(ident: int | None) -> str:
    """The stack of the thread with this ident; empty if there is no such thread."""
    frame = sys._current_frames().get(ident or 0)
    return "".join(traceback.format_stack(frame)) if frame is not None else ""


def stacks_of_threads() -> str:
    """The stack of every thread of this process, each below its name."""
    frames = sys._current_frames()
    threads = [thread for thread in threading.enumerate() if thread.ident in frames]
    return "".join(
        f"Thread {thread.name}{' (daemon)' if thread.daemon else ''}:\n"
        f"{''.join(traceback.format_stack(frames[thread.ident or 0]))}"
        for thread in threads[:MOST_STACKS]
    ) + _and_more(threads)


def stacks_of_tasks(loop: asyncio.AbstractEventLoop) -> str:
    """The stack of every asyncio task of ``loop``, each below its name."""
    tasks = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
    return "".join(stack_of_task(task) for task in tasks[:MOST_STACKS]) + _and_more(tasks)


def stack_of_task(task: "asyncio.Task[Any]") -> str:
    """The name of an asyncio task and its stack: the frames of the coroutines that await each other."""
    frames = _frames(task.get_coro())
    summary = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)
    return f"asyncio task {task.get_name()}:\n{''.join(summary.format())}"


def _frames(awaitable: Any) -> list[FrameType]:
    frames: list[FrameType] = []
    while awaitable is not None and len(frames) < MOST_STACKS:
        frame = getattr(awaitable, "cr_frame", None) or getattr(awaitable, "gi_frame", None)
        if not isinstance(frame, FrameType):
            break
        frames.append(frame)
        awaitable = getattr(awaitable, "cr_await", None) or getattr(awaitable, "gi_yieldfrom", None)
    return frames


def _and_more(shown: Collection[object]) -> str:
    return f"… and {len(shown) - MOST_STACKS} more\n" if len(shown) > MOST_STACKS else ""
