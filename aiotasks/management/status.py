"""``manage.py aiotasks status``: the state of a backend, read without writing anything."""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from aiotasks.management.subcommand import Write, add_json, as_json, backend_or_error, import_tasks, run_over
from aiotasks.operations.status import read_status
from aiotasks.operations.text import status_as_text
from aiotasks.worker.process.cli import add_backend

__all__ = ["HELP", "add_arguments", "run"]

HELP = "show queues, running tasks, workers, and the session that delays vacuum"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``status``."""
    add_backend(parser)
    add_json(parser)


def run(options: Namespace, write: Write) -> int:
    """Print the state; returns 0. Raises CommandError where the database fails."""
    backend = backend_or_error(options.backend)
    status = run_over(backend, read_status(backend, imports=import_tasks()))
    write(as_json(asdict(status)) if options.json else status_as_text(status))
    return 0
