"""``python -m aiotasks.worker`` and ``manage.py aiotasks worker``: a worker, or a supervisor of several."""

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import inf
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from ..store.pools import close_pools
from .descriptors import open_standard_descriptors
from .reload import Code, code_folders
from .supervisor import Line, Supervisor
from .worker import Worker
from .worker_loop import drive, worker_loop

__all__ = ["add_arguments", "main", "run"]

logger = logging.getLogger("aiotasks.worker")

# Seconds for which the start waits for a database that can't be reached yet.
DATABASE_TIMEOUT = 30.0

# Objects made, less those freed, between two collections: of running tasks and their results mostly.
GC_THRESHOLD = 20_000

# Seconds for which the end waits for threads that aren't the worker's own.
THREADS_TIMEOUT = 0.5

# Seconds that closing the connections may take once the worker has gone.
CLOSE_TIMEOUT = 0.2

# More is a slip: each process has some thirty connections.
MAX_PROCESSES = 256


def add_backend(parser: argparse.ArgumentParser) -> None:
    """The option that says whose tasks are meant."""
    parser.add_argument("--backend", default="default", metavar="ALIAS", help="an alias of TASKS (default)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that both commands have."""
    whole = _number(int, 0, inf, "a whole number of 0 or more")
    add_backend(parser)
    parser.add_argument(
        "--queue",
        action="append",
        dest="queues",
        metavar="NAME",
        help="serve this queue; may be repeated (all of the backend's)",
    )
    parser.add_argument(
        "--concurrency", type=whole, default=100, metavar="N", help="coroutine tasks at a time (100)"
    )
    parser.add_argument("--threads", type=whole, default=10, metavar="N", help="sync tasks at a time (10)")
    parser.add_argument(
        "--processes",
        type=_number(int, 1, MAX_PROCESSES, f"a whole number from 1 to {MAX_PROCESSES}"),
        default=1,
        metavar="N",
        help="worker processes, each with its own tasks at a time (1)",
    )
    ends = parser.add_mutually_exclusive_group()
    ends.add_argument(
        "--until-empty", action="store_true", help="exit as soon as nothing is ready, running or due"
    )
    ends.add_argument(
        "--reload", action="store_true", help="start anew when the code changes (for development)"
    )
    parser.add_argument(
        "--grace",
        type=_number(float, 0, 86_400, "a number of seconds from 0 to 86400"),
        default=25.0,
        metavar="SECONDS",
        help="how long a stop waits for running tasks (25)",
    )
    # Given by a supervisor to its workers: the file descriptor of the line between them.
    parser.add_argument("--supervised", type=whole, metavar="FD", help=argparse.SUPPRESS)


def _number[Number: (int, float)](
    kind: type[Number], lowest: float, highest: float, what: str
) -> Callable[[str], Number]:
    """What argparse takes an option's text to: ``kind``, within bounds."""

    def read(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = kind(-1)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{text!r} isn't {what}")
        return value

    return read


def main(argv: Sequence[str] | None = None) -> int:
    """Set Django up and run what the options ask for; returns the exit code."""
    open_standard_descriptors()
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
    if os.environ["DJANGO_SETTINGS_MODULE"].startswith("."):
        return _complain(
            f"the settings {os.environ['DJANGO_SETTINGS_MODULE']!r} aren't a module's full name."
        )
    with suppress(FileNotFoundError):  # the directory has been removed: the site may be installed
        sys.path.insert(0, os.getcwd())  # as manage.py has it
    import django
    from django.conf import settings
    from django.utils.log import configure_logging

    try:
        if _needs_supervisor(options):
            # The site's code is for its workers; a supervisor logs where the site wants it to.
            configure_logging(settings.LOGGING_CONFIG, settings.LOGGING)
        else:
            django.setup()
    except ImproperlyConfigured as error:
        return _complain(str(error))
    except ImportError as error:
        where = "" if _has_directory() else " The working directory, where they may be, has been removed."
        return _complain(
            f"the settings {os.environ['DJANGO_SETTINGS_MODULE']!r} can't be loaded: {error}.{where}"
        )
    return run(options, from_command_line=argv is None)


def run(options: argparse.Namespace, *, from_command_line: bool) -> int:
    """Run a worker, or a supervisor, with parsed options until told to stop; returns the exit code.

    ``from_command_line``: the options are those that this process was started with.
    """
    open_standard_descriptors()
    _show_log()
    if not _needs_supervisor(options):
        return _work(options)
    if not from_command_line:
        return _complain("--processes and --reload need a command line that they can start again.")
    supervisor = Supervisor(
        [sys.executable, *sys.orig_argv[1:]],
        processes=options.processes,
        until_empty=options.until_empty,
        change=Code(code_folders()).change if options.reload else None,
    )
    return asyncio.run(supervisor.run())


def _has_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _needs_supervisor(options: argparse.Namespace) -> bool:
    return options.supervised is None and (options.processes > 1 or options.reload)


def _work(options: argparse.Namespace) -> int:
    """Run one worker in this process."""
    try:
        line = None if options.supervised is None else Line(options.supervised)
    except (OSError, OverflowError):
        return _complain("--supervised is for a supervisor's workers only.")
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
            asyncio.Runner(loop_factory=worker_loop) as runner,
        ):
            runner.get_loop().set_default_executor(executor)
            failure: Exception | None = None
            try:
                drive(runner.get_loop(), _serve(worker, line, until_empty=options.until_empty))
            except Exception as error:  # raised again below, or told where a thread holds the end up
                failure = error
            if worker.stuck or not _ends_soon(executor):
                # A thread can't be cancelled, and everything else has been done.
                if failure is not None:
                    logger.critical("the worker has failed", exc_info=failure)
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0 if failure is None else 1)
            if failure is not None:
                raise failure
    except ImproperlyConfigured as error:
        return _complain(str(error))
    return 0


async def _serve(worker: Worker, line: Line | None, *, until_empty: bool) -> None:
    """Run ``worker`` until a signal, its end, the end of its supervisor, or an empty table."""
    stopping = asyncio.Event()

    def told() -> None:
        """The first signal ends it with grace, the second without; a supervisor says that otherwise."""
        if stopping.is_set() and line is None:
            worker.hurry()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    if line is not None:
        line.listen(gone=stopping.set, hurry=worker.hurry)

    # What Django has loaded stays, so no collection needs to look at it; nor at what is running each
    # time that a few hundred tasks have been started (measured: 6 of the 15 µs that a start takes
    # beside 10,000 others).
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)

    async def tell_ready(line: Line) -> None:
        with suppress(Exception):  # what the worker has ended with is raised by its block
            await worker.wait_for_database()
            line.tell_ready()

    async def work() -> None:
        # At once, not when it has started: a task that ends its worker by then mustn't be taken for a mistake
        # in the settings.
        telling = None if line is None else asyncio.create_task(tell_ready(line))
        async with worker:
            if telling is not None:
                await telling
            ends = [worker.wait()] + ([worker.wait_until_empty()] if until_empty else [])
            await _first(*ends)

    await _first(work(), stopping.wait())
    # run() may leave without the loop's own clearing up. What is still lent out now hangs.
    await close_pools(CLOSE_TIMEOUT)


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
