"""``manage.py aiotasks worker``: run a worker, or a supervisor of several."""

from argparse import Namespace

from aiotasks.management.output import Output
from aiotasks.worker.process import cli
from aiotasks.worker.process.cli import add_arguments

__all__ = ["HELP", "add_arguments", "run"]

HELP = "run a worker"


def run(options: Namespace, output: Output) -> int:
    """Run until a signal stops it; returns the exit code. It logs, and prints nothing."""
    return cli.run(options, from_command_line=options.from_command_line)
