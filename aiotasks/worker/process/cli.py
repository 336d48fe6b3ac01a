"""``python -m aiotasks.worker`` and ``manage.py aiotasks worker``: a worker, or a supervisor of several."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from math import inf

from django.core.exceptions import ImproperlyConfigured

from ... import logs
from ..worker import Worker
from .descriptors import open_standard_descriptors
from .exits import leave, leave_now, report_error
from .http import Address, listen
from .parser import OneLineParser
from .pipe import SupervisorPipe
from .recycling import Limits
from .reload import Code, code_folders
from .reports import channel_from_environment
from .sd_notify import ServiceManager
from .signals import ProcessSignals
from .site import set_up
from .standalone import Standalone
from .supervisor import Supervisor

__all__ = ["add_arguments", "main", "run"]

logger = logging.getLogger("aiotasks.worker")

# Seconds for which the start waits for a database that can't be reached yet.
DATABASE_TIMEOUT = 30.0

# More is a typing error: each process has about thirty connections.
MAX_PROCESSES = 256


def add_backend(parser: argparse.ArgumentParser, *, default: str = "default") -> None:
    """Add the option that names the backend."""
    parser.add_argument("--backend", default=default, metavar="ALIAS", help="an alias of TASKS (default)")


def add_grace(parser: argparse.ArgumentParser, *, help: str) -> None:
    """Add the option for how long a stop of a worker waits."""
    parser.add_argument(
        "--grace",
        type=_number(float, 0, 86_400, "a number of seconds from 0 to 86400"),
        default=25.0,
        metavar="SECONDS",
        help=help,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``python -m aiotasks.worker`` and ``manage.py aiotasks worker`` share."""
    whole = _number(int, 0, inf, "a whole number of 0 or more")
    add_backend(parser)
    parser.add_argument(
        "--queue",
        action="append",
        dest="queues",
        metavar="NAME[=N]",
        help="serve this queue, at most N of its tasks at a time; may be repeated (all of the backend's)",
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
    from_one = _number(int, 1, inf, "a whole number of 1 or more")
    parser.add_argument(
        "--max-tasks",
        type=from_one,
        metavar="N",
        help="have another process take a worker's place once so many of its tasks have ended",
    )
    parser.add_argument(
        "--max-rss",
        type=from_one,
        metavar="MB",
        help="the same once it has so much memory; each limit is lower by up to 10 %% at random",
    )
    ends = parser.add_mutually_exclusive_group()
    ends.add_argument(
        "--until-empty",
        action="store_true",
        help="exit as soon as nothing is ready, running or due: with 3 if tasks have failed",
    )
    ends.add_argument("--reload", action="store_true", help="restart when the code changes (for development)")
    add_grace(
        parser,
        help="how long a stop waits for running tasks (25: below the 30 s of Kubernetes; Docker and "
        "supervisord kill after 10 s by default)",
    )
    parser.add_argument(
        "--health-port",
        type=_address,
        metavar="[HOST:]PORT",
        help="answer /livez, /readyz and /metrics over HTTP there (on 127.0.0.1 if HOST isn't given)",
    )
    logs.add_log_options(parser)
    # A supervisor passes it to its workers: the file descriptor of the pipe between them.
    parser.add_argument("--supervised", type=whole, metavar="FD", help=argparse.SUPPRESS)


def _number[Number: (int, float)](
    kind: type[Number], lowest: float, highest: float, what: str
) -> Callable[[str], Number]:
    """Return a ``type`` for argparse: ``kind`` within bounds. Its error says that the text isn't ``what``."""

    def read(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = kind(-1)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{text!r} isn't {what}")
        return value

    return read


def _address(text: str) -> Address:
    """A ``type`` for argparse: ``[HOST:]PORT``."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65_535):
        raise argparse.ArgumentTypeError(f"{text!r} isn't [HOST:]PORT with a port from 0 to 65535")
    return Address(host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port))


def main(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """Set up Django and run a worker or a supervisor, as the options say; returns the exit code.

    argv: the options; None: those that the process was started with.
    program: what the process was started as, where that has read a part of its command line itself.
    """
    open_standard_descriptors()
    if os.getpid() == 1:
        # The kernel has no default action for process 1: without a handler it couldn't be stopped while it
        # imports the site.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    parser = OneLineParser(
        prog=program or "python -m aiotasks.worker", description="Run the tasks of an aiotasks backend."
    )
    parser.add_argument(
        "--settings", metavar="MODULE", help="the settings module (DJANGO_SETTINGS_MODULE if not given)"
    )
    add_arguments(parser)
    options = parser.parse_args(argv)
    # A supervisor imports no code of the site, but logs as its settings say.
    if (reason := set_up(options.settings, imports_apps=not _needs_supervisor(options))) is not None:
        return report_error(reason)
    return run(options, from_command_line=argv is None or program is not None)


def run(options: argparse.Namespace, *, from_command_line: bool) -> int:
    """Run a worker, or a supervisor, with parsed options until a signal stops it; returns the exit code.

    ``from_command_line``: the options are those that this process was started with.
    """
    open_standard_descriptors()
    logs.start()
    logs.apply_log_options(options, warn=options.supervised is None)
    try:
        return _run(options, from_command_line=from_command_line)
    finally:
        logs.stop()


def _run(options: argparse.Namespace, *, from_command_line: bool) -> int:
    _warn_of_process_1()
    if not _needs_supervisor(options):
        return _work(options, leaves=from_command_line)
    if not from_command_line:
        return report_error("--processes and --reload need a command line that they can start again.")
    try:
        listening = _listening(options)
    except OSError as error:
        return _report_no_port(options, error)
    supervisor = Supervisor(
        [sys.executable, *sys.orig_argv[1:]],
        processes=options.processes,
        grace=options.grace,
        until_empty=options.until_empty,
        change=Code(code_folders()).change if options.reload else None,
        listening=listening,
        manager=ServiceManager.from_environment(),
    )
    code = asyncio.run(supervisor.run())
    signals = ProcessSignals(lambda number: leave_now(code))
    with signals.received():
        leave(code, signals=signals, until=0.0)


def queues_and_limits(wanted: Sequence[str] | None) -> dict[str, int | None] | None:
    """Return the queues that ``--queue`` names, each with its limit; None if it isn't given.

    What follows the last ``=`` is the limit; a name that has one itself ends with ``=`` or a limit. Raises
    ValueError.
    """
    if not wanted:
        return None
    queues: dict[str, int | None] = {}
    for text in wanted:
        name, equals, number = text.rpartition("=")
        if not equals:
            name, number = text, ""
        if number and not (number.isascii() and number.isdigit()):
            raise ValueError(
                f"--queue {text}: the limit must be a whole number, not {number!r}. "
                f"A name with = in it ends with =, as in --queue {text}="
            )
        limit = int(number) if number else None
        if queues.setdefault(name, limit) != limit:
            raise ValueError(f"--queue {text}: queue {name!r} is named twice with different limits.")
    return queues


def _needs_supervisor(options: argparse.Namespace) -> bool:
    return options.supervised is None and (options.processes > 1 or options.reload)


def _work(options: argparse.Namespace, *, leaves: bool) -> int:
    """Run one worker in this process. With ``leaves`` the process ends when the worker does."""
    reports = channel_from_environment(supervised=options.supervised is not None)
    try:
        pipe = None if options.supervised is None else SupervisorPipe(options.supervised)
    except (OSError, OverflowError):
        return report_error("--supervised is for a supervisor's workers only.")
    try:
        listening = _listening(options) if pipe is None else None
    except OSError as error:
        return _report_no_port(options, error)
    try:
        worker = Worker(
            backend=options.backend,
            queues=queues_and_limits(options.queues),
            concurrency=options.concurrency,
            threads=options.threads,
            grace=options.grace,
            database_timeout=DATABASE_TIMEOUT,
            own_process=True,
            metrics=options.health_port is not None,
        )
    except (ImproperlyConfigured, ValueError) as error:
        return report_error(str(error))
    return Standalone(
        worker,
        pipe,
        until_empty=options.until_empty,
        leaves=leaves,
        reports=reports,
        listening=listening,
        manager=ServiceManager.from_environment(),
        limits=Limits(
            options.max_tasks, None if options.max_rss is None else options.max_rss * 2**20
        ).drawn(),
    ).run()


def _listening(options: argparse.Namespace) -> socket.socket | None:
    """Return a socket for the health endpoints, if they are wanted. Raises OSError."""
    return None if options.health_port is None else listen(options.health_port)


def _report_no_port(options: argparse.Namespace, error: OSError) -> int:
    text = error.strerror if error.errno is None or error.errno <= 0 else os.strerror(error.errno)
    return report_error(
        f"--health-port {options.health_port}: can't listen there: {text}. Give a free port, and "
        "an address of this machine."
    )


def _warn_of_process_1() -> None:
    """Log a warning if this is process 1 of a container, because that should be an init."""
    if os.getpid() == 1:
        logger.warning(
            "This is process 1 of its container, where nothing reaps the processes that tasks leave behind: "
            "run it below an init (docker run --init; Compose: init: true; Kubernetes: tini in the image)"
        )
