"""``manage.py aiotasks tasks``: list tasks by filter, a page at a time."""

import time
from argparse import ArgumentParser, Namespace
from dataclasses import replace

from django.utils import timezone

from aiotasks.backend import PostgresBackend
from aiotasks.filters import TaskFilter
from aiotasks.management.choosing import add_filters, filter_of
from aiotasks.management.output import Output, add_json
from aiotasks.management.subcommand import backend_or_error, run_over
from aiotasks.management.usage import UsageError
from aiotasks.operations.connection import reading
from aiotasks.operations.task_text import page_parts
from aiotasks.operations.tasks import Cursor, Page, WrongCursor, list_tasks
from aiotasks.worker.process.cli import add_backend

__all__ = ["HELP", "add_arguments", "run"]

HELP = "list tasks, the newest first (SCHEDULED ones: what is due next first)"

# Tasks of a page at most: each takes two lines of a terminal.
MOST = 1000

# Seconds for which a command goes on looking, while it has found less than a page.
PATIENCE = 2.0


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``tasks``."""
    add_backend(parser)
    add_filters(
        parser,
        times="--since and --until are about the end of tasks where only finished ones are asked for, by "
        "--status or --error, and about their enqueue otherwise.",
    )
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="so many tasks at most (50)")
    parser.add_argument("--after", metavar="CURSOR", help="go on where the page before has ended")
    add_json(parser)


def run(options: Namespace, output: Output) -> int:
    """Print a page; returns 0. Raises UsageError, and CommandError where the database fails."""
    chosen = filter_of(options)
    if not 1 <= options.limit <= MOST:
        raise UsageError(f"--limit must be a number from 1 to {MOST:,}, not {options.limit}.")
    after = None
    if options.after is not None:
        try:
            after = Cursor.read(options.after)
        except ValueError as error:
            raise UsageError(f"--after {error}") from None
    backend = backend_or_error(options.backend)
    try:
        page = run_over(backend, _read(backend, chosen, after, options.limit))
    except WrongCursor as error:
        raise UsageError(f"--after {error}") from None
    if options.json:
        output.json(
            {
                "tasks": page.rows,
                "next": None if page.next is None else str(page.next),
                "looked_at": page.looked_at,
                "complete": page.complete,
            }
        )
    else:
        output.show(*page_parts(page, timezone.now()))
    return 0


async def _read(backend: PostgresBackend, chosen: TaskFilter, after: Cursor | None, limit: int) -> Page:
    """Return a page that is full, if that can be had in PATIENCE."""
    end = time.monotonic() + PATIENCE
    async with reading(backend) as store:
        page = await list_tasks(store, backend.alias, chosen, after=after, limit=limit)
        while page.next is not None and len(page.rows) < limit and time.monotonic() < end:
            more = await list_tasks(
                store, backend.alias, chosen, after=page.next, limit=limit - len(page.rows)
            )
            page = replace(
                more,
                rows=[*page.rows, *more.rows],
                looked_at=page.looked_at + more.looked_at,
                complete=page.complete and more.complete,
            )
    return page
