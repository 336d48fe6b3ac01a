"""``manage.py aiotasks limits``: the limits by key, and the keys that have something to say."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict

from django.core.management.base import CommandError

from aiotasks.management.subcommand import (
    Write,
    add_json,
    as_json,
    backend_or_error,
    errors_for_people,
    import_tasks,
)
from aiotasks.operations.limits import LimitStatus, limits
from aiotasks.operations.text import limits_as_text
from aiotasks.policies.limits import known_limits
from aiotasks.worker.process.cli import add_backend

__all__ = ["HELP", "add_arguments", "as_text", "read_name", "run"]

HELP = "show limits by key, and which keys are blocked"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``limits``."""
    add_backend(parser)
    add_json(parser)
    parser.add_argument(
        "limit", nargs="?", metavar="NAME[:KEY]", help="a limit with its keys, or one key (all limits)"
    )


def run(options: Namespace, write: Write) -> int:
    """Print the limits; returns 0. Raises CommandError for a bad name, and where the database fails."""
    backend = backend_or_error(options.backend)
    import_tasks()
    name, key = (None, None) if options.limit is None else read_name(options.limit)
    try:
        with errors_for_people(backend):
            found = limits(name, key, backend=options.backend)
    except ValueError as error:
        raise CommandError(str(error)) from None
    write(as_json([asdict(one) for one in found]) if options.json else as_text(found))
    return 0


def as_text(found: Sequence[LimitStatus]) -> str:
    """Return the limits for people, with a remark on names that the code doesn't have: they may be typing
    errors."""
    unknown = sorted({one.name for one in found if not one.known})
    if not unknown:
        return limits_as_text(found)
    known = ", ".join(sorted(known_limits())) or "none"
    names = ", ".join(unknown)
    return f"{limits_as_text(found)}\nThe code here declares no limit named {names}. It declares: {known}."


def read_name(text: str) -> tuple[str, str | None]:
    """Return the name and the key of ``NAME[:KEY]``."""
    name, colon, key = text.partition(":")
    return name, key if colon else None
