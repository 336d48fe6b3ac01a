"""``manage.py aiotasks limit``: change a limit or one of its keys, pause and resume it."""

from argparse import ArgumentParser, Namespace
from typing import Any
from uuid import UUID

from django.core.management.base import CommandError

from aiotasks.management.limits import parts, read_name
from aiotasks.management.output import Output, add_plain
from aiotasks.management.subcommand import backend_or_error, errors_for_people, import_tasks
from aiotasks.management.usage import UsageError
from aiotasks.operations import limits
from aiotasks.operations.tables import Part
from aiotasks.policies.limits import parse_rate
from aiotasks.worker.process.cli import add_backend

__all__ = ["HELP", "add_arguments", "run"]

HELP = "change, pause or resume a limit or one of its keys; let a stopped key go on"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``limit``."""
    add_backend(parser)
    add_plain(parser)
    parser.add_argument("limit", metavar="NAME[:KEY]", help="a limit, for all of its keys, or one key")
    parser.add_argument(
        "numbers",
        nargs="*",
        metavar="NUMBER=VALUE",
        help="concurrency=20, rate=100/m (or none), burst=10, weight=2",
    )
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--reset", action="store_true", help="have all numbers of the code apply again")
    ways.add_argument("--pause", action="store_true", help="start none of its tasks")
    ways.add_argument("--resume", action="store_true", help="end a pause, or the wait of a RateLimited")
    ways.add_argument("--skip", metavar="ID", help="let an ordered key go on without this FAILED task")
    parser.add_argument("--reason", default="", metavar="TEXT", help="why it is paused, for people")


def run(options: Namespace, output: Output) -> int:
    """Change it and print what applies now; returns 0. Raises CommandError for bad values, where there is
    nothing to do, and where the database fails."""
    backend = backend_or_error(options.backend)
    import_tasks(output)
    try:
        with errors_for_people(backend):
            output.show(*_change(options))
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None
    return 0


def _change(options: Namespace) -> list[Part]:
    of = {"backend": options.backend}
    name, key = read_name(options.limit)
    ways = [bool(options.numbers), options.reset, options.pause, options.resume, options.skip is not None]
    if sum(ways) != 1:
        raise CommandError(
            "Give numbers to set, or one of --reset, --pause, --resume and --skip. "
            f"`aiotasks limits {options.limit}` shows what applies."
        )
    if options.reason and not options.pause:
        raise CommandError("Give --reason with --pause.")
    said: list[Part] = []
    if options.numbers:
        limits.limit(name, key, **of, **_numbers(options.numbers))
    elif options.reset:
        if not limits.reset_limit(name, key, **of):
            said = ["No operator had set a number."]
    elif options.pause:
        limits.pause_limit(name, key, reason=options.reason, **of)
    elif options.resume:
        if not limits.resume_limit(name, key, **of):
            said = ["It was neither paused nor closed."]
    else:
        _skip(options, name, key)
        said = ["The key goes on without the task, which stays FAILED."]
    return said + parts(limits.limits(name, key, **of))


def _skip(options: Namespace, name: str, key: str | None) -> None:
    """Let the line go on, if it is this task that has stopped it."""
    try:
        id = UUID(options.skip)
    except ValueError:
        raise CommandError(f"--skip must be the id of a task, not {options.skip!r:.200}.") from None
    found = limits.limits(name, key, backend=options.backend)
    stopped_by = next(one.stopped_by for one in found if one.key == key)
    if stopped_by is None:
        raise CommandError(f"{options.limit} isn't stopped by a task.")
    if stopped_by != id:
        raise CommandError(f"{options.limit} is stopped by task {stopped_by}, not by {id}.")
    limits.skip_task(id, backend=options.backend)


def _numbers(texts: list[str]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r} has no value. Write it as in concurrency=20.")
        if name in numbers:
            raise ValueError(f"{name} is given twice.")
        numbers[name] = _value(name, value)
    return numbers


def _value(name: str, text: str) -> Any:
    if name != "rate":
        return int(text) if _is_small(text) else text
    if text != limits.NO_RATE:
        try:
            parse_rate(text)
        except ValueError:
            raise ValueError(
                "rate must be a number of starts and a time, as in 100/m, 1/10s or 300/h (s, m, h, d), or "
                f"{limits.NO_RATE}, not {text!r:.200}."
            ) from None
    return text


def _is_small(value: str) -> bool:
    """Return whether the text is a number that ``int()`` takes; a longer one is refused as what it is."""
    return value.isascii() and value.isdigit() and len(value) < 20
