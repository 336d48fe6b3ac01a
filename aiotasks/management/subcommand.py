"""What a subcommand of ``manage.py aiotasks`` is, and what those that operators use have in common."""

import asyncio
from argparse import ArgumentParser, Namespace
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from django.core.management.base import CommandError
from django.db import utils

from aiotasks.backend import PostgresBackend
from aiotasks.db.errors import describe
from aiotasks.management.output import Output
from aiotasks.operations.check import check_settings
from aiotasks.schedules.discovery import import_modules, modules_of_apps
from aiotasks.worker.startup import backend_of

__all__ = [
    "Subcommand",
    "backend_or_error",
    "errors_for_people",
    "import_tasks",
    "run_over",
]


class Subcommand(Protocol):
    """A module of this package: one subcommand. ``HELP`` is its line in ``manage.py aiotasks --help``."""

    HELP: str

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the subcommand's own options to its parser."""

    def run(self, options: Namespace, output: Output) -> int:
        """Do it, print with ``output``, and return the exit code.

        ``options`` are the parsed ones, with ``from_command_line``: False where ``call_command`` was used.
        Raises UsageError for a mistake at the command line, and CommandError where it can't be done, both
        with a sentence for people.
        """


def backend_or_error(alias: str) -> PostgresBackend:
    """Return the backend of ``TASKS[alias]``. Raises CommandError where the settings have mistakes."""
    if errors := [finding for finding in check_settings(alias) if finding.verdict == "error"]:
        raise CommandError(" ".join(error.message for error in errors))
    return backend_of(alias)


def import_tasks(output: Output) -> bool:
    """Import the modules ``tasks`` of the installed apps, which declare limits; returns whether all could be
    imported. Those that can't are named on stderr, so that JSON stays whole.
    """
    failed = import_modules(modules_of_apps(("tasks",)))
    for module, error in failed.items():
        output.note(
            f"{module} can't be imported ({type(error).__name__}: {error}), so its limits aren't known here. "
            f"Fix it: `manage.py shell -c 'import {module}'` shows where."
        )
    return not failed


def run_over[Result](backend: PostgresBackend, work: Coroutine[Any, Any, Result]) -> Result:
    """Run ``work`` to its end and return its result. Raises CommandError where the database fails."""
    with errors_for_people(backend):
        return asyncio.run(work)


@contextmanager
def errors_for_people(backend: PostgresBackend) -> Iterator[None]:
    """Raise CommandError in place of errors of the backend's database."""
    try:
        yield
    except utils.Error as error:
        raise CommandError(describe(error, backend.config.database)) from error
