"""``manage.py aiotasks status``: the state of a backend, read without writing anything."""

from argparse import ArgumentParser, Namespace

from aiotasks.management.output import Output, add_json
from aiotasks.management.subcommand import backend_or_error, import_tasks, run_over
from aiotasks.management.watch import add_watch, watch
from aiotasks.operations.status import Status, read_status
from aiotasks.operations.text import status_parts
from aiotasks.worker.process.cli import add_backend

__all__ = ["HELP", "add_arguments", "run"]

HELP = "show queues, running tasks, workers, and the session that delays vacuum"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``status``."""
    add_backend(parser)
    add_json(parser)
    add_watch(parser)


def run(options: Namespace, output: Output) -> int:
    """Print the state, once or until an interrupt; returns 0. Raises CommandError if the database fails."""
    backend = backend_or_error(options.backend)
    imports = import_tasks(output)

    def read() -> Status:
        return run_over(backend, read_status(backend, imports=imports))

    if options.watch is not None:
        watch(read, status_parts, output, seconds=options.watch, json=options.json)
    elif options.json:
        output.json(read())
    else:
        output.show(*status_parts(read()))
    return 0
