"""``manage.py aiotasks prune``: what the workers' pruners do once a minute, now."""

import re
import time
from argparse import ArgumentParser, ArgumentTypeError

from django.core.management.base import CommandError
from django.db import utils

from aiotasks.backend import PostgresBackend
from aiotasks.conf import keep_time
from aiotasks.store.drivers import DjangoDriver
from aiotasks.store.store import Store
from aiotasks.sync import run_now
from aiotasks.worker.pruner import Pruner
from aiotasks.worker.startup import describe

__all__ = ["add_arguments", "run"]

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--backend", default="default", metavar="ALIAS", help="an alias of TASKS (default)")
    parser.add_argument(
        "--older-than",
        type=_age,
        metavar="AGE",
        help="delete what was finished so long ago, such as 90m, 36h, 7d or 2w, instead of by "
        "KEEP_SUCCESSFUL and KEEP_FAILED; a task's own keep_result holds in any case",
    )


def _age(text: str) -> float:
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} isn't a number with a unit of {', '.join(UNITS)}, such as 7d")
    try:
        return keep_time(int(match[1]) * UNITS[match[2]])
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is more than 100 years") from None


def run(backend: PostgresBackend, older_than: float | None) -> str:
    """Prune; returns the sentence that says what was done. Over Django's connection."""
    options = backend.config
    store = Store(DjangoDriver(options.database))
    pruner = Pruner(
        store,
        backend=backend.alias,
        keep_successful=options.keep_successful if older_than is None else older_than,
        keep_failed=options.keep_failed if older_than is None else older_than,
        sleep=_block,
    )
    try:
        tasks = run_now(pruner.run_once())
        workers = run_now(store.remove_dead_workers(backend.alias))
    except utils.Error as error:
        raise CommandError(describe(error, options.database)) from error
    return f"Deleted: {tasks} finished tasks, {len(workers)} rows of dead workers."


async def _block(seconds: float) -> None:
    """Sync code drives the pruner: nothing else runs in this thread."""
    time.sleep(seconds)  # noqa: ASYNC251
