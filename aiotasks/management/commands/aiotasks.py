"""``manage.py aiotasks``: the worker, and what operators need."""

import sys
from argparse import ArgumentParser, Namespace
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from aiotasks.management import prune
from aiotasks.worker import cli

__all__ = ["Command"]


class Command(BaseCommand):
    """One command with subcommands, so that the site's list of commands gets one line."""

    help = "Run and look after background tasks."
    # The worker's own start says what is wrong with the database, or waits for it.
    requires_migrations_checks = False

    _from_command_line = False  # but from call_command()

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="subcommand", required=True, metavar="worker|prune")
        cli.add_arguments(commands.add_parser("worker", help="run a worker"))
        prune.add_arguments(
            commands.add_parser("prune", help="delete finished tasks whose time is over, as the workers do")
        )

    def run_from_argv(self, argv: list[str]) -> None:
        self._from_command_line = True
        super().run_from_argv(argv)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["subcommand"] == "worker":
            sys.exit(cli.run(Namespace(**options), from_command_line=self._from_command_line))
        try:
            self.stdout.write(prune.run(options["backend"], options["older_than"]))
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
