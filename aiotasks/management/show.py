"""``manage.py aiotasks show``: one task, its attempts, and what happened to it when."""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import Any
from uuid import UUID

from django.core.management.base import CommandError

from aiotasks.backend import PostgresBackend
from aiotasks.management.output import Output, add_json
from aiotasks.management.subcommand import backend_or_error, run_over
from aiotasks.management.usage import UsageError
from aiotasks.operations.connection import reading
from aiotasks.operations.detail import TaskDetail, attempts, read_task, timeline
from aiotasks.operations.task_text import detail_parts
from aiotasks.results import parse_id
from aiotasks.worker.process.cli import add_backend

__all__ = ["HELP", "add_arguments", "run"]

HELP = "show one task: its attempts, errors, and what happened to it when"

# Fields that may hold what isn't for everybody's eyes.
PRIVATE = ("args", "kwargs", "return_value", "metadata")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``show``."""
    add_backend(parser)
    parser.add_argument("id", metavar="ID", help="the task's id, as a whole")
    parser.add_argument(
        "--arguments", action="store_true", help="show its arguments, result and metadata, too"
    )
    parser.add_argument(
        "--traceback",
        dest="tracebacks",  # Django's own --traceback has errors of the command raised
        choices=["last", "all"],
        default="last",
        help="of which failed attempts (last)",
    )
    add_json(parser)


def run(options: Namespace, output: Output) -> int:
    """Print the task; returns 0. Raises UsageError for what is no id, and CommandError where there is no
    such task, or the database fails."""
    if (id := parse_id(options.id)) is None:
        raise UsageError(f"{options.id!r:.100} is not the id of a task: give all 36 characters of it.")
    backend = backend_or_error(options.backend)
    detail = run_over(backend, _read(backend, id))
    if detail is None:
        raise CommandError(f"Backend {backend.alias!r} has no task {id}. It may have been pruned.")
    if options.json:
        output.json(_as_json(detail, options.arguments))
    else:
        everything = options.tracebacks == "all"
        output.show(*detail_parts(detail, arguments=options.arguments, all_tracebacks=everything))
    return 0


async def _read(backend: PostgresBackend, id: UUID) -> TaskDetail | None:
    async with reading(backend) as store:
        return await read_task(store, backend.alias, id)


def _as_json(detail: TaskDetail, arguments: bool) -> dict[str, Any]:
    task = asdict(detail)
    task["workers"] = {str(id): name for id, name in detail.workers.items()}
    if not arguments:
        for name in PRIVATE:
            del task[name]
    return {"task": task, "attempts": attempts(detail), "timeline": timeline(detail)}
