"""``manage.py aiotasks status``: the state of a backend, read without writing anything."""

from argparse import ArgumentParser, Namespace

from aiotasks.management.output import Output, add_json
from aiotasks.management.subcommand import backend_or_error, import_tasks, run_over
from aiotasks.operations.status import read_status
from aiotasks.operations.text import status_parts
from aiotasks.worker.process.cli import add_backend

__all__ = ["HELP", "add_arguments", "run"]

HELP = "show queues, running tasks, workers, and the session that delays vacuum"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``status``."""
    add_backend(parser)
    add_json(parser)


def run(options: Namespace, output: Output) -> int:
    """Print the state; returns 0. Raises CommandError where the database fails."""
    backend = backend_or_error(options.backend)
    status = run_over(backend, read_status(backend, imports=import_tasks(output)))
    if options.json:
        output.json(status)
    else:
        output.show(*status_parts(status))
    return 0
