"""``manage.py aiotasks``: the worker, and the commands for operators."""

import asyncio
import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.core.serializers.json import DjangoJSONEncoder
from django.db import utils

from aiotasks.backend import PostgresBackend
from aiotasks.db.errors import describe
from aiotasks.management import prune
from aiotasks.operations.check import check_settings, diagnose, findings_as_text
from aiotasks.operations.status import read_status
from aiotasks.operations.text import status_as_text
from aiotasks.worker.process import cli
from aiotasks.worker.startup import backend_of

__all__ = ["Command"]


class Command(BaseCommand):
    """One command with subcommands, so that it is one entry in the site's list of commands."""

    help = "Run and look after background tasks."
    # The worker's start reports what is wrong with the database, or waits for it.
    requires_migrations_checks = False

    _from_command_line = False  # False: called by call_command()

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(
            dest="subcommand", required=True, metavar="worker|status|check|prune"
        )
        cli.add_arguments(commands.add_parser("worker", help="run a worker"))
        for name, what in (
            ("status", "show queues, running tasks, workers, and the session that delays vacuum"),
            ("check", "check the set-up; exits with 1 if there is an error"),
        ):
            command = commands.add_parser(name, help=what)
            cli.add_backend(command)
            command.add_argument("--json", action="store_true", help="print JSON")
            if name == "check":
                cli.add_grace(command, help="the --grace of the workers (25)")
        prune.add_arguments(
            commands.add_parser("prune", help="delete finished tasks whose time is over, as the workers do")
        )

    def run_from_argv(self, argv: list[str]) -> None:
        self._from_command_line = True
        super().run_from_argv(argv)

    def execute(self, *args: Any, **options: Any) -> str | None:
        if options["subcommand"] != "worker":
            # A command that reports mistakes must not be stopped by one.
            options["skip_checks"] = True
        return super().execute(*args, **options)

    def handle(self, *args: Any, **options: Any) -> None:
        match options["subcommand"]:
            case "worker":
                sys.exit(cli.run(Namespace(**options), from_command_line=self._from_command_line))
            case "status":
                self._show_status(options["backend"], as_json=options["json"])
            case "check":
                self._check_set_up(options["backend"], options["grace"], as_json=options["json"])
            case "prune":
                backend = _backend(options["backend"])
                self.stdout.write(_run(backend, prune.run(backend, options["older_than"])))

    def _show_status(self, alias: str, *, as_json: bool) -> None:
        backend = _backend(alias)
        status = _run(backend, read_status(backend))
        self.stdout.write(_json(asdict(status)) if as_json else status_as_text(status))

    def _check_set_up(self, alias: str, grace: float, *, as_json: bool) -> None:
        findings = asyncio.run(diagnose(alias, grace=grace))
        failed = any(finding.verdict == "error" for finding in findings)
        if as_json:
            found = [asdict(finding) for finding in findings]
            self.stdout.write(_json({"backend": alias, "ok": not failed, "checks": found}))
        else:
            self.stdout.write(findings_as_text(findings))
        if failed:
            sys.exit(1)


def _backend(alias: str) -> PostgresBackend:
    if errors := [finding for finding in check_settings(alias) if finding.verdict == "error"]:
        raise CommandError(" ".join(error.message for error in errors))
    return backend_of(alias)


def _run[Result](backend: PostgresBackend, work: Coroutine[Any, Any, Result]) -> Result:
    try:
        return asyncio.run(work)
    except utils.Error as error:
        raise CommandError(describe(error, backend.config.database)) from error


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, cls=DjangoJSONEncoder, indent=2)
