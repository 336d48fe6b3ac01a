"""``manage.py aiotasks``: the worker, and the commands for operators. Each is a module of its own."""

import sys
from argparse import ArgumentParser, Namespace
from typing import Any

from django.core.management.base import BaseCommand

from aiotasks.management import check, limit, limits, prune, schedules, status, worker
from aiotasks.management.subcommand import Subcommand

__all__ = ["Command"]

SUBCOMMANDS: dict[str, Subcommand] = {
    "worker": worker,
    "status": status,
    "check": check,
    "prune": prune,
    "limits": limits,
    "limit": limit,
    "schedules": schedules,
}


class Command(BaseCommand):
    """One command with subcommands, so that it is one entry in the site's list of commands."""

    help = "Run and look after background tasks."
    # The worker's start reports what is wrong with the database, or waits for it.
    requires_migrations_checks = False

    _from_command_line = False  # False: called by call_command()

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="subcommand", required=True, metavar="|".join(SUBCOMMANDS))
        for name, subcommand in SUBCOMMANDS.items():
            subcommand.add_arguments(commands.add_parser(name, help=subcommand.HELP))

    def run_from_argv(self, argv: list[str]) -> None:
        self._from_command_line = True
        super().run_from_argv(argv)

    def execute(self, *args: Any, **options: Any) -> str | None:
        if options["subcommand"] != "worker":
            # A command that reports mistakes must not be stopped by one.
            options["skip_checks"] = True
        return super().execute(*args, **options)

    def handle(self, *args: Any, **options: Any) -> None:
        given = Namespace(**options, from_command_line=self._from_command_line)
        if code := SUBCOMMANDS[options["subcommand"]].run(given, self.stdout.write):
            sys.exit(code)
