"""``manage.py aiotasks schedules``: look at schedules, add, run, pause, resume and remove them."""

import json
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from typing import Any

from django.core.management.base import CommandError
from django.db import utils
from django.tasks.exceptions import InvalidTask

from aiotasks.db.errors import describe
from aiotasks.exceptions import UnknownTask
from aiotasks.management.actions import Action, Answer, add_actions, show
from aiotasks.management.output import Output
from aiotasks.management.subcommand import backend_or_error
from aiotasks.management.task_paths import about_task
from aiotasks.management.usage import UsageError
from aiotasks.operations import schedules
from aiotasks.operations.filters import read_age
from aiotasks.operations.schedule_text import schedules_as_text
from aiotasks.schedules.cron import LONGEST_INTERVAL, SHORTEST_INTERVAL
from aiotasks.schedules.wanted import LONGEST_JITTER, LONGEST_WITHIN, MISSED, OVERLAP, SHORTEST_WITHIN
from aiotasks.worker.process.parser import did_you_mean

__all__ = ["HELP", "add_arguments", "run"]

HELP = "show schedules, add, run, pause, resume or remove them"

# The keywords of periodic() that are options here, where a message begins with one.
_KEYWORD = re.compile(r"\A(every|timezone|args|kwargs|missed|within|overlap|jitter)\b")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the actions and their options."""
    add_actions(parser, ACTIONS, names=[])


def run(options: Namespace, output: Output) -> int:
    """Do it and print the schedules as they are then; returns 0. Raises CommandError where that fails."""
    backend = backend_or_error(options.backend)
    try:
        answer = ACTIONS[options.action].run(options)
    except utils.Error as error:
        raise CommandError(describe(error, backend.config.database)) from error
    except UnknownTask as error:
        raise CommandError(about_task(error)) from error
    except LookupError as error:
        raise CommandError(f"{error}{_close_names(options)}") from error
    except (InvalidTask, TypeError, ValueError) as error:
        raise UsageError(_KEYWORD.sub(r"--\1", str(error))) from error
    show(answer, options, output)
    return 0


def _close_names(options: Namespace) -> str:
    """A question after the schedule that is meant by a name, where there is none."""
    known = {each.name for each in schedules.list_schedules(options.backend)}
    unknown = [name for name in [*options.names, getattr(options, "name", "")] if name and name not in known]
    return did_you_mean(unknown[0], known) if unknown else ""


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
        "--every",
        type=_age(SHORTEST_INTERVAL, LONGEST_INTERVAL),
        metavar="AGE",
        help="an interval in place of it, such as 90s or 5m",
    )
    parser.add_argument(
        "--timezone", metavar="ZONE", help="such as Europe/Berlin (TIME_ZONE of the settings)"
    )
    parser.add_argument(
        "--args",
        dest="call_args",
        type=_json(list, "a JSON list"),
        default=[],
        metavar="JSON",
        help="a list, such as '[1, \"a\"]'",
    )
    parser.add_argument(
        "--kwargs",
        dest="call_kwargs",
        type=_json(dict, "a JSON object"),
        default={},
        metavar="JSON",
        help="an object",
    )
    parser.add_argument("--missed", choices=MISSED, default="last", help="ticks that no worker was there for")
    parser.add_argument(
        "--within",
        type=_age(SHORTEST_WITHIN, LONGEST_WITHIN),
        metavar="AGE",
        help="how late a tick may be",
    )
    parser.add_argument(
        "--overlap", choices=OVERLAP, help="a tick while the task of an earlier one is unfinished"
    )
    parser.add_argument(
        "--jitter", type=_age(0.0, LONGEST_JITTER), metavar="AGE", help="by how much a task is late at most"
    )


def _age(low: float, high: float) -> Callable[[str], float]:
    """Reads an age, of so many seconds at least and at most."""

    def read(text: str) -> float:
        if (age := read_age(text)) is None:
            raise ArgumentTypeError(f"{text!r:.100} isn't a number with a unit (s, m, h, d, w), such as 5m")
        if not low <= (seconds := age.total_seconds()) <= high:
            raise ArgumentTypeError(f"{text!r} isn't from {low:g}s to {high / 86_400.0:g}d")
        return seconds

    return read


def _json(kind: type, words: str) -> Callable[[str], Any]:
    """Reads JSON of a kind."""

    def read(text: str) -> Any:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArgumentTypeError(f"{text!r:.200} isn't JSON: {error}") from None
        if not isinstance(value, kind):
            raise ArgumentTypeError(f"{text!r:.200} isn't {words}")
        return value

    return read


def _shown(found: Sequence[schedules.ScheduleState]) -> Answer:
    return Answer([schedules_as_text(found)], found)


def _list(options: Namespace) -> Answer:
    found = schedules.list_schedules(options.backend, names=options.names or None)
    known = {each.name for each in found}
    for name in options.names:
        if name not in known:
            raise LookupError(f"Backend {options.backend!r} has no schedule {name!r:.200}.")
    troubles = [] if options.names or options.json else schedules.list_troubles(options.backend)
    return Answer([schedules_as_text(found), *troubles], found)


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
    return Answer([f"Removed schedule {options.name!r}."], {"removed": options.name})


def _run_now(options: Namespace) -> Answer:
    result = schedules.run_schedule(options.name, backend=options.backend)
    is_duplicate = bool(getattr(result, "is_duplicate", False))
    text = "Not enqueued, because task {} has its key." if is_duplicate else "Enqueued task {}."
    return Answer([text.format(result.id)], {"id": result.id, "is_duplicate": is_duplicate})


def _pause(options: Namespace) -> Answer:
    was_paused = _is_paused(options)
    found = schedules.pause_schedule(options.name, reason=options.reason, backend=options.backend)
    said = "It was paused already, and has this reason now.\n" if was_paused else ""
    return Answer([said + schedules_as_text([found])], [found])


def _resume(options: Namespace) -> Answer:
    was_paused = _is_paused(options)
    found = schedules.resume_schedule(options.name, backend=options.backend)
    said = "" if was_paused else "It wasn't paused.\n"
    return Answer([said + schedules_as_text([found])], [found])


def _is_paused(options: Namespace) -> bool:
    found = schedules.list_schedules(options.backend, names=[options.name])
    return any(each.paused_at is not None for each in found)


ACTIONS = {
    "list": Action("show schedules", _add_names, _list),
    "add": Action("add a schedule beside those of the code", _add_wanted, _add),
    "remove": Action("remove a schedule that was added here, or that no code declares", _add_name, _remove),
    "run-now": Action("enqueue the task of a schedule at once", _add_name, _run_now),
    "pause": Action("have a schedule tick no more", _add_reason, _pause),
    "resume": Action("have a paused schedule tick again, from now on", _add_name, _resume),
}
