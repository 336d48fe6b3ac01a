"""``manage.py aiotasks limits``: show limits by key and their keys, change, pause and resume them."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.core.management.base import CommandError

from aiotasks.management.actions import Action, Answer, add_actions, show
from aiotasks.management.output import Output
from aiotasks.management.subcommand import backend_or_error, errors_for_people, import_tasks
from aiotasks.management.usage import UsageError
from aiotasks.operations import limits
from aiotasks.operations.tables import Part
from aiotasks.operations.text import limit_parts
from aiotasks.policies.limits import known_limits, parse_rate

__all__ = ["HELP", "add_arguments", "run"]

HELP = "show limits by key, change, pause or resume them, or let a stopped key go on"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the actions and their options."""
    add_actions(parser, ACTIONS, limit=None)


def run(options: Namespace, output: Output) -> int:
    """Do it and print what applies then; returns 0. Raises UsageError for bad values, and CommandError where
    there is nothing to do, and where the database fails."""
    backend = backend_or_error(options.backend)
    import_tasks(output)
    try:
        with errors_for_people(backend):
            answer = ACTIONS[options.action].run(options)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None
    show(answer, options, output)
    return 0


def _set(options: Namespace) -> Answer:
    limits.limit(*_name(options), backend=options.backend, **_numbers(options.numbers))
    return _answer(options)


def _reset(options: Namespace) -> Answer:
    changed = limits.reset_limit(*_name(options), backend=options.backend)
    return _answer(options, "" if changed else "No operator had set a number.")


def _pause(options: Namespace) -> Answer:
    limits.pause_limit(*_name(options), reason=options.reason, backend=options.backend)
    return _answer(options)


def _resume(options: Namespace) -> Answer:
    changed = limits.resume_limit(*_name(options), backend=options.backend)
    return _answer(options, "" if changed else "It was neither paused nor closed.")


def _skip(options: Namespace) -> Answer:
    """Let the line go on, if it is this task that has stopped it."""
    name, key = _name(options)
    found = limits.limits(name, key, backend=options.backend)
    stopped_by = next(one.stopped_by for one in found if one.key == key)
    if stopped_by is None:
        raise CommandError(f"{options.limit} isn't stopped by a task.")
    if stopped_by != options.id:
        raise CommandError(f"{options.limit} is stopped by task {stopped_by}, not by {options.id}.")
    limits.skip_task(options.id, backend=options.backend)
    return _answer(options, "The key goes on without the task, which stays FAILED.")


def _answer(options: Namespace, remark: str = "") -> Answer:
    """What applies to the limit or key that is named, or to all."""
    name, key = (None, None) if options.limit is None else _name(options)
    found = limits.limits(name, key, backend=options.backend)
    remarks: list[Part] = [remark] if remark else []
    return Answer([*remarks, *_parts(found)], found)


def _parts(found: Sequence[limits.LimitStatus]) -> list[Part]:
    """Return the limits for people, with a remark on names that the code doesn't have: they may be typing
    errors."""
    unknown = sorted({one.name for one in found if not one.known})
    if not unknown:
        return limit_parts(found)
    known = ", ".join(sorted(known_limits())) or "none"
    names = ", ".join(unknown)
    return [*limit_parts(found), f"The code here declares no limit named {names}. It declares: {known}."]


def _name(options: Namespace) -> tuple[str, str | None]:
    """The name and the key of ``NAME[:KEY]``."""
    name, colon, key = options.limit.partition(":")
    return name, key if colon else None


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


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r:.200} isn't the id of a task") from None


def _add_any(parser: ArgumentParser) -> None:
    parser.add_argument(
        "limit", nargs="?", metavar="NAME[:KEY]", help="only this limit and its keys, or this key"
    )


def _add_one(parser: ArgumentParser) -> None:
    parser.add_argument("limit", metavar="NAME[:KEY]", help="a limit, for all of its keys, or one key")


def _add_numbers(parser: ArgumentParser) -> None:
    _add_one(parser)
    parser.add_argument(
        "numbers",
        nargs="+",
        metavar="NUMBER=VALUE",
        help="concurrency=20, rate=100/m (or none), burst=10, weight=2",
    )


def _add_reason(parser: ArgumentParser) -> None:
    _add_one(parser)
    parser.add_argument("--reason", default="", metavar="TEXT", help="for people who look at the status")


def _add_task(parser: ArgumentParser) -> None:
    parser.add_argument("limit", metavar="NAME:KEY", help="an ordered key")
    parser.add_argument("id", type=_id, metavar="ID", help="the FAILED task that has stopped it")


ACTIONS = {
    "list": Action(
        "show limits, and their keys that run, wait, or have an operator's number", _add_any, _answer
    ),
    "set": Action("change numbers of a limit or a key", _add_numbers, _set),
    "reset": Action("have all numbers of the code apply again", _add_one, _reset),
    "pause": Action("start no task of a limit or a key", _add_reason, _pause),
    "resume": Action("end a pause, or the time for which a RateLimited has closed a key", _add_one, _resume),
    "skip": Action("let an ordered key go on without a FAILED task", _add_task, _skip),
}
