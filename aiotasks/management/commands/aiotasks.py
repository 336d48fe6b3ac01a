"""``manage.py aiotasks``: the worker, and the commands for operators. Each is a module of its own."""

import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from io import TextIOWrapper
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import (
    BaseCommand,
    CommandError,
    CommandParser,
    SystemCheckError,
    handle_default_options,
)
from django.db import connections

from aiotasks import __version__
from aiotasks.management import (
    acting,
    check,
    completion,
    enqueue,
    limits,
    pausing,
    prune,
    running,
    schedules,
    show,
    status,
    tasks,
    worker,
)
from aiotasks.management.output import Output, OutputFailed
from aiotasks.management.subcommand import Subcommand
from aiotasks.management.usage import SubcommandParser, UsageError
from aiotasks.worker.process.exits import report_error
from aiotasks.worker.process.parser import sentence

__all__ = ["Command"]

SUBCOMMANDS: dict[str, Subcommand] = {
    "worker": worker,
    "status": status,
    "tasks": tasks,
    "show": show,
    "running": running,
    "check": check,
    "enqueue": enqueue,
    "retry": acting.RETRY,
    "cancel": acting.CANCEL,
    "delete": acting.DELETE,
    "run-now": acting.RUN_NOW,
    "pause": pausing.PAUSE,
    "resume": pausing.RESUME,
    "prune": prune,
    "limits": limits,
    "schedules": schedules,
    "completion": completion,
}


class Command(BaseCommand):
    """One command with subcommands, so that it is one entry in the site's list of commands."""

    help = "Run and look after background tasks."
    # The worker's start reports what is wrong with the database, or waits for it.
    requires_migrations_checks = False
    # Options of all of Django's commands, which would hide the few of this one in its help.
    suppressed_base_arguments = {  # noqa: RUF012  # Django's own form
        "--verbosity",
        "--pythonpath",
        "--traceback",
        "--no-color",
        "--force-color",
    }

    _from_command_line = False  # False: called by call_command()
    _program = ""

    def get_version(self) -> str:
        return f"aiotasks {__version__}"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.prog = self._program or parser.prog
        self._parsers = parser.add_subparsers(
            dest="subcommand",
            title="commands",
            metavar="COMMAND",
            prog=parser.prog,
            parser_class=SubcommandParser,
        )
        for name, subcommand in SUBCOMMANDS.items():
            subcommand.add_arguments(
                self._parsers.add_parser(name, help=subcommand.HELP, description=subcommand.HELP)
            )

    def run_from_argv(self, argv: list[str]) -> None:
        name = os.path.basename(argv[0])
        self.run_as(f"{'python -m django' if name == '__main__.py' else name} {argv[1]}", argv[2:])

    def run_as(self, program: str, arguments: list[str]) -> None:
        """Run as the program of a command line; mistakes are one line on stderr. Raises SystemExit where the
        exit code isn't 0."""
        self._from_command_line = True
        if isinstance(sys.stdout, TextIOWrapper):
            # What is stored may have characters that the terminal's encoding doesn't.
            sys.stdout.reconfigure(errors="backslashreplace")
        traceback = False
        try:
            options = self._parse(program, arguments)
            traceback = options.traceback
            handle_default_options(options)
            self.execute(**vars(options))
            self.stdout.flush()
        except CommandError as error:
            if isinstance(error, OutputFailed):
                _discard_output()
            if traceback:
                raise
            if isinstance(error, SystemCheckError):
                self.stderr.write(str(error), lambda text: text)
            else:
                report_error(str(error))
            sys.exit(error.returncode)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
        except BrokenPipeError:
            # The reader has gone, as `| head` does.
            _discard_output()
            sys.exit(128 + signal.SIGPIPE)
        finally:
            with suppress(ImproperlyConfigured):  # there are no settings
                connections.close_all()

    def parser_of(self, program: str) -> CommandParser:
        """Return the parser of everything, for a program of that name."""
        self._program = program
        return self.create_parser("", "aiotasks")

    def _parse(self, program: str, arguments: list[str]) -> Namespace:
        """Read the options. Raises UsageError."""
        parser = self.parser_of(program)
        try:
            options, unknown = parser.parse_known_args(arguments)
        except UsageError:
            raise
        except CommandError as error:  # of Django's own parser
            raise UsageError(sentence(str(error).removeprefix("Error: "), program)) from None
        if unknown:
            asked = self._parsers.choices.get(options.subcommand, parser)
            raise UsageError(sentence(f"unrecognized arguments: {' '.join(unknown)}", asked.prog))
        return options

    def execute(self, *args: Any, **options: Any) -> str | None:
        if options["subcommand"] != "worker":
            # A command that reports mistakes must not be stopped by one.
            options["skip_checks"] = True
        return super().execute(*args, **options)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["subcommand"] is None:
            self.stdout.write(self.parser_of(self._program).format_help(), ending="")
            return
        given = Namespace(**options, from_command_line=self._from_command_line)
        output = Output(given, self.stdout, self.stderr)
        if code := SUBCOMMANDS[options["subcommand"]].run(given, output):
            sys.exit(code)


def _discard_output() -> None:
    """Keep Python from reporting once more, when it flushes at its end, that stdout can't be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
