"""``manage.py aiotasks running``: the tasks that run, and those that don't end."""

from argparse import ArgumentParser, Namespace

from aiotasks.backend import PostgresBackend
from aiotasks.management.output import Output, add_json
from aiotasks.management.subcommand import backend_or_error, run_over
from aiotasks.operations.connection import reading
from aiotasks.operations.running import Running, read_running
from aiotasks.operations.task_text import running_parts
from aiotasks.worker.process.cli import add_backend

__all__ = ["HELP", "add_arguments", "run"]

HELP = "show the tasks that run, those that outlast their time, and workers whose event loop is blocked"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``running``."""
    add_backend(parser)
    add_json(parser)


def run(options: Namespace, output: Output) -> int:
    """Print what runs; returns 0. Raises CommandError where the database fails."""
    backend = backend_or_error(options.backend)
    found = run_over(backend, _read(backend))
    if options.json:
        output.json(found)
    else:
        output.show(*running_parts(found))
    return 0


async def _read(backend: PostgresBackend) -> Running:
    async with reading(backend) as store:
        return await read_running(store, backend.alias, moved_tasks=backend.config.moved_tasks)
