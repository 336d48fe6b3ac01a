"""``python -m aiotasks.worker`` and ``manage.py aiotasks worker``: one worker, one process."""

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from ..store.pools import close_pools
from .exits import task_factory
from .worker import Worker

__all__ = ["add_arguments", "main", "run"]

logger = logging.getLogger("aiotasks.worker")

# Seconds for which the start waits for a database that can't be reached yet.
DATABASE_TIMEOUT = 30.0

# Seconds for which the end waits for threads that aren't the worker's own.
THREADS_TIMEOUT = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that both commands have."""
    parser.add_argument("--backend", default="default", metavar="ALIAS", help="an alias of TASKS (default)")
    parser.add_argument(
        "--queue",
        action="append",
        dest="queues",
        metavar="NAME",
        help="serve this queue; may be repeated (all of the backend's)",
    )
    parser.add_argument(
        "--concurrency", type=_whole, default=100, metavar="N", help="coroutine tasks at a time (100)"
    )
    parser.add_argument("--threads", type=_whole, default=10, metavar="N", help="sync tasks at a time (10)")
    parser.add_argument(
        "--until-empty", action="store_true", help="exit as soon as nothing is ready, running or due"
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=25.0,
        metavar="SECONDS",
        help="how long a stop waits for running tasks (25)",
    )


def _whole(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a whole number of 0 or more")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a number of seconds from 0 to 86400")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Set Django up and run a worker; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m aiotasks.worker", description="Run the tasks of an aiotasks backend."
    )
    parser.add_argument(
        "--settings", metavar="MODULE", help="the settings module (DJANGO_SETTINGS_MODULE if not given)"
    )
    add_arguments(parser)
    options = parser.parse_args(argv)
    if options.settings:
        os.environ["DJANGO_SETTINGS_MODULE"] = options.settings
    if not os.environ.get("DJANGO_SETTINGS_MODULE"):
        return _complain("no settings: give --settings or set DJANGO_SETTINGS_MODULE.")
    sys.path.insert(0, os.getcwd())  # as manage.py has it
    import django

    try:
        django.setup()
    except ImproperlyConfigured as error:
        return _complain(str(error))
    except ImportError as error:
        return _complain(f"the settings {os.environ['DJANGO_SETTINGS_MODULE']!r} can't be loaded: {error}")
    return run(options)


def run(options: argparse.Namespace) -> int:
    """Run one worker with parsed options until it is told to stop; returns the exit code."""
    _show_log()
    try:
        worker = Worker(
            backend=options.backend,
            queues=options.queues,
            concurrency=options.concurrency,
            threads=options.threads,
            grace=options.grace,
            database_timeout=DATABASE_TIMEOUT,
            own_process=True,
        )
        with (
            ThreadPoolExecutor(thread_name_prefix="aiotasks-default") as executor,
            asyncio.Runner(loop_factory=_loop_factory()) as runner,
        ):
            runner.get_loop().set_default_executor(executor)
            runner.run(_serve(worker, until_empty=options.until_empty))
            if worker.stuck or not _ends_soon(executor):
                # A thread can't be cancelled, and everything else has been done.
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
    except ImproperlyConfigured as error:
        return _complain(str(error))
    return 0


async def _serve(worker: Worker, *, until_empty: bool) -> None:
    """Run ``worker`` until a signal, its end, or an empty table."""
    stopping = asyncio.Event()

    def told() -> None:
        """The first signal ends it with grace, the second without."""
        if stopping.is_set():
            worker.hurry()
        stopping.set()

    loop = asyncio.get_running_loop()
    loop.set_task_factory(task_factory)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)

    async def work() -> None:
        async with worker:
            ends = [worker.wait()] + ([worker.wait_until_empty()] if until_empty else [])
            await _first(*ends)

    await _first(work(), stopping.wait())
    await close_pools()  # run() may leave without the loop's own clearing up


def _ends_soon(executor: ThreadPoolExecutor) -> bool:
    """Whether what tasks have put into threads by ``asyncio.to_thread()`` lets the process end."""
    executor.shutdown(wait=False, cancel_futures=True)
    end = time.monotonic() + THREADS_TIMEOUT
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("aiotasks-default")]
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


async def _first(*awaitables: Coroutine[Any, Any, object]) -> None:
    """Wait for the first of these, cancel the others and wait for them; raises what one raised."""
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


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _show_log() -> None:
    """Show our log on stderr, unless the site's LOGGING says where it goes."""
    package = logging.getLogger("aiotasks")
    if not package.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        package.addHandler(handler)
        package.setLevel(logging.INFO)


def _complain(sentence: str) -> int:
    print(f"aiotasks: {sentence}", file=sys.stderr)
    return 1
