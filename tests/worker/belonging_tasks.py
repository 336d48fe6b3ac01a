"""More of what tasks do to the worker that they run in."""

import asyncio

from aiotasks import task

from .tasks import wait_for_file_sync


@task
async def wait_for_file_in_executor(path: str) -> None:
    """Occupy a thread of the loop's default executor until the test has made the file."""
    await asyncio.to_thread(wait_for_file_sync.func, path)


@task
async def cancel_running(name: str) -> None:
    """Cancel other tasks' asyncio tasks by their name."""
    for one in asyncio.all_tasks():
        if one.get_name() == name:
            one.cancel()
    await asyncio.sleep(0)
