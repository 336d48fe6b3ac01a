"""``manage.py aiotasks schedules``: look at schedules, add, run, pause, resume and remove them."""

import json
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from django.core.management.base import CommandError
from django.db import utils
from django.tasks.exceptions import InvalidTask

from aiotasks.db.errors import describe
from aiotasks.exceptions import UnknownTask
from aiotasks.management.subcommand import Write, add_json, as_json, backend_or_error
from aiotasks.operations import schedules
from aiotasks.operations.actions import read_age
from aiotasks.operations.schedule_text import schedules_as_text
from aiotasks.schedules.wanted import MISSED, OVERLAP
from aiotasks.worker.process.cli import add_backend

__all__ = ["HELP", "add_arguments", "run"]

HELP = "show schedules, add, run, pause, resume or remove them"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the actions and their options."""
    add_backend(parser)
    add_json(parser)
    parser.set_defaults(action="list", names=[])
    actions = parser.add_subparsers(dest="action", metavar="|".join(ACTIONS))
    for action, (help, add, _) in ACTIONS.items():
        own = actions.add_parser(action, help=help, description=help)
        # What is given after the action counts as well as before it.
        own.add_argument("--backend", default=SUPPRESS, metavar="ALIAS", help="an alias of TASKS (default)")
        own.add_argument("--json", action="store_true", default=SUPPRESS, help="print JSON")
        add(own)


def run(options: Namespace, write: Write) -> int:
    """Do it and print the schedules as they are then; returns 0. Raises CommandError where that fails."""
    backend = backend_or_error(options.backend)
    _, _, act = ACTIONS[options.action or "list"]
    try:
        found = act(options)
    except utils.Error as error:
        raise CommandError(describe(error, backend.config.database)) from error
    except (InvalidTask, LookupError, TypeError, UnknownTask, ValueError) as error:
        raise CommandError(str(error)) from error
    write(as_json(found.json) if options.json else found.text)
    return 0


def _add_names(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")


def _add_name(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")


def _add_reason(parser: ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument("--reason", default="", help="for people who look at the status")


def _add_wanted(parser: ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument("task", metavar="TASK", help="its path, such as mysite.tasks.report")
    parser.add_argument("--cron", help="such as '*/5 * * * *' or @daily")
    parser.add_argument(
        "--every", type=_age, metavar="AGE", help="an interval in place of it, such as 90s or 5m"
    )
    parser.add_argument(
        "--timezone", metavar="ZONE", help="such as Europe/Berlin (TIME_ZONE of the settings)"
    )
    parser.add_argument(
        "--args",
        dest="call_args",
        type=_json,
        default=[],
        metavar="JSON",
        help="a list, such as '[1, \"a\"]'",
    )
    parser.add_argument(
        "--kwargs", dest="call_kwargs", type=_json, default={}, metavar="JSON", help="an object"
    )
    parser.add_argument("--missed", choices=MISSED, default="last", help="ticks that no worker was there for")
    parser.add_argument("--within", type=_age, metavar="AGE", help="how late a tick may be")
    parser.add_argument(
        "--overlap", choices=OVERLAP, help="a tick while the task of an earlier one is unfinished"
    )
    parser.add_argument("--jitter", type=_age, metavar="AGE", help="by how much a task is late at most")


def _age(text: str) -> float:
    if (age := read_age(text)) is None:
        raise ArgumentTypeError(f"{text!r} isn't a number with a unit of s, m, h, d or w, such as 5m")
    return age.total_seconds()


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} isn't JSON: {error}") from None


class Answer(NamedTuple):
    """What is printed: for people, and for programs."""

    text: str
    json: object


def _shown(found: Sequence[schedules.ScheduleState]) -> Answer:
    return Answer(schedules_as_text(found), [asdict(each) for each in found])


def _list(options: Namespace) -> Answer:
    found = schedules.list_schedules(options.backend, names=options.names or None)
    known = {each.name for each in found}
    for name in options.names:
        if name not in known:
            raise LookupError(f"Backend {options.backend!r} has no schedule {name!r:.200}.")
    return _shown(found)


def _add(options: Namespace) -> Answer:
    if (options.cron is None) == (options.every is None):
        raise ValueError("Give either --cron or --every.")
    if options.every is not None and options.timezone is not None:
        raise ValueError("--timezone is for --cron: an interval goes by elapsed time.")
    added = schedules.add_schedule(
        options.name,
        options.task,
        options.cron,
        every=options.every,
        timezone=options.timezone,
        args=options.call_args,  # Django takes an option called args away
        kwargs=options.call_kwargs,
        missed=options.missed,
        within=options.within,
        overlap=options.overlap,
        jitter=options.jitter,
        backend=options.backend,
    )
    return _shown([added])


def _remove(options: Namespace) -> Answer:
    schedules.remove_schedule(options.name, backend=options.backend)
    return Answer(f"Removed schedule {options.name!r}.", {"removed": options.name})


def _run_now(options: Namespace) -> Answer:
    result = schedules.run_schedule(options.name, backend=options.backend)
    is_duplicate = bool(getattr(result, "is_duplicate", False))
    text = "Not enqueued, because task {} has its key." if is_duplicate else "Enqueued task {}."
    return Answer(text.format(result.id), {"id": result.id, "is_duplicate": is_duplicate})


def _pause(options: Namespace) -> Answer:
    return _shown([schedules.pause_schedule(options.name, reason=options.reason, backend=options.backend)])


def _resume(options: Namespace) -> Answer:
    return _shown([schedules.resume_schedule(options.name, backend=options.backend)])


# What each says about itself, adds to its parser, and does.
ACTIONS: dict[
    str,
    tuple[
        str,
        Callable[[ArgumentParser], None],
        Callable[[Namespace], Answer],
    ],
] = {
    "list": ("show schedules", _add_names, _list),
    "add": ("add a schedule beside those of the code", _add_wanted, _add),
    "remove": ("remove a schedule that was added here, or that no code declares", _add_name, _remove),
    "run-now": ("enqueue the task of a schedule at once", _add_name, _run_now),
    "pause": ("have a schedule tick no more", _add_reason, _pause),
    "resume": ("have a paused schedule tick again, from now on", _add_name, _resume),
}
