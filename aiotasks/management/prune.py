"""``manage.py aiotasks prune``: prune at once, as the workers do once a minute."""

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace

from aiotasks.backend import PostgresBackend
from aiotasks.management.output import Output, add_json
from aiotasks.management.subcommand import backend_or_error, run_over
from aiotasks.operations.connection import operator_connection
from aiotasks.policies.keep import parse_keep_time
from aiotasks.store.store import Store
from aiotasks.worker.maintenance.pruner import Pruner
from aiotasks.worker.process.cli import add_backend

__all__ = ["HELP", "add_arguments", "run"]

HELP = "delete finished tasks whose time is over, as the workers do"

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``prune``."""
    add_backend(parser)
    add_json(parser)
    parser.add_argument(
        "--older-than",
        type=_age,
        metavar="AGE",
        help="delete tasks that were finished so long ago, such as 90m, 36h, 7d or 2w, instead of by "
        "KEEP_SUCCESSFUL and KEEP_FAILED; a task's own keep_result applies in any case",
    )


def _age(text: str) -> float:
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} isn't a number with a unit of {', '.join(UNITS)}, such as 7d")
    try:
        return parse_keep_time(int(match[1]) * UNITS[match[2]])
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is more than 100 years") from None


def run(options: Namespace, output: Output) -> int:
    """Prune, and print the numbers; returns 0. Raises CommandError where the database fails."""
    backend = backend_or_error(options.backend)
    tasks, workers = run_over(backend, _prune(backend, options.older_than))
    if options.json:
        output.json({"tasks": tasks, "workers": workers})
    else:
        output.show(f"Deleted: {tasks} finished tasks, {workers} rows of dead workers.")
    return 0


async def _prune(backend: PostgresBackend, older_than: float | None) -> tuple[int, int]:
    """Prune; return how many tasks, and rows of dead workers. Raises a ``django.db`` error if the database
    fails, or doesn't answer within COMMAND_TIMEOUT."""
    options = backend.config
    async with operator_connection(options.database, timeout=options.command_timeout) as connection:
        store = Store(connection)
        pruner = Pruner(
            store,
            backend=backend.alias,
            keep_successful=options.keep_successful if older_than is None else older_than,
            keep_failed=options.keep_failed if older_than is None else older_than,
        )
        tasks = await pruner.run_once()
        workers = await store.remove_dead_workers(backend.alias)
    return tasks, len(workers)
