"""``manage.py aiotasks limits``: the limits by key, and the keys that have something to say."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from aiotasks.management.output import Output, add_json
from aiotasks.management.subcommand import backend_or_error, errors_for_people, import_tasks
from aiotasks.management.usage import UsageError
from aiotasks.operations.limits import LimitStatus, limits
from aiotasks.operations.tables import Part
from aiotasks.operations.text import limit_parts
from aiotasks.policies.limits import known_limits
from aiotasks.worker.process.cli import add_backend

__all__ = ["HELP", "add_arguments", "parts", "read_name", "run"]

HELP = "show limits by key, and which keys are blocked"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``limits``."""
    add_backend(parser)
    add_json(parser)
    parser.add_argument(
        "limit", nargs="?", metavar="NAME[:KEY]", help="a limit with its keys, or one key (all limits)"
    )


def run(options: Namespace, output: Output) -> int:
    """Print the limits; returns 0. Raises UsageError for a bad name, CommandError if the database fails."""
    backend = backend_or_error(options.backend)
    import_tasks(output)
    name, key = (None, None) if options.limit is None else read_name(options.limit)
    try:
        with errors_for_people(backend):
            found = limits(name, key, backend=options.backend)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if options.json:
        output.json(found)
    else:
        output.show(*parts(found))
    return 0


def parts(found: Sequence[LimitStatus]) -> list[Part]:
    """Return the limits for people, with a remark on names that the code doesn't have: they may be typing
    errors."""
    unknown = sorted({one.name for one in found if not one.known})
    if not unknown:
        return limit_parts(found)
    known = ", ".join(sorted(known_limits())) or "none"
    names = ", ".join(unknown)
    return [*limit_parts(found), f"The code here declares no limit named {names}. It declares: {known}."]


def read_name(text: str) -> tuple[str, str | None]:
    """Return the name and the key of ``NAME[:KEY]``."""
    name, colon, key = text.partition(":")
    return name, key if colon else None
