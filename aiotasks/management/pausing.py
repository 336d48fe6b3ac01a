"""``manage.py aiotasks pause`` and ``resume``: queues and tasks, for all workers."""

from argparse import ArgumentParser, Namespace

from aiotasks.backend import PostgresBackend
from aiotasks.exceptions import UnknownTask
from aiotasks.management.output import Output, add_json
from aiotasks.management.subcommand import Subcommand, backend_or_error, errors_for_people
from aiotasks.management.task_paths import about_task
from aiotasks.management.times import AHEAD, time_ahead
from aiotasks.management.usage import UsageError
from aiotasks.operations.pauses import pause, resume
from aiotasks.operations.tables import printable
from aiotasks.registry import resolve
from aiotasks.worker.process.cli import add_backend
from aiotasks.worker.process.parser import did_you_mean

__all__ = ["PAUSE", "RESUME"]


def _add_what(parser: ArgumentParser) -> None:
    add_backend(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--queue", metavar="NAME", help="a queue")
    what.add_argument("--task", metavar="PATH", help="a task, in all of its queues")


def _said(options: Namespace) -> str:
    kind, name = ("Queue", options.queue) if options.queue is not None else ("Task", options.task)
    return f"{kind} {printable(name)}"


class _Pause:
    HELP = "have no worker start tasks of a queue, or of a task"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options."""
        _add_what(parser)
        parser.add_argument("--reason", default="", metavar="TEXT", help="for people who look at the status")
        parser.add_argument(
            "--until", type=time_ahead, metavar="TIME", help=f"when it ends by itself, {AHEAD}"
        )
        add_json(parser)

    def run(self, options: Namespace, output: Output) -> int:
        """Pause it; returns 0. Raises UsageError for bad values, CommandError where the database fails."""
        backend = backend_or_error(options.backend)
        if remark := _remark(backend, options):
            output.note(remark)
        try:
            with errors_for_people(backend):
                paused = pause(
                    queue=options.queue,
                    task=options.task,
                    reason=options.reason,
                    until=options.until,
                    backend=options.backend,
                )
        except ValueError as error:
            raise UsageError(f"--{error}") from None
        if options.json:
            output.json(paused)
        else:
            end = "it is resumed"
            if paused.until is not None:
                end = paused.until.isoformat(sep=" ", timespec="seconds")
            output.show(f"{_said(options)} is paused until {end}. Tasks that run go on.")
        return 0


class _Resume:
    HELP = "end the pause of a queue, or of a task"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options."""
        _add_what(parser)
        add_json(parser)

    def run(self, options: Namespace, output: Output) -> int:
        """Resume it; returns 0. Raises UsageError for bad values, CommandError where the database fails."""
        backend = backend_or_error(options.backend)
        try:
            with errors_for_people(backend):
                was_paused = resume(queue=options.queue, task=options.task, backend=options.backend)
        except ValueError as error:
            raise UsageError(f"--{error}") from None
        if options.json:
            output.json({"was_paused": was_paused})
        else:
            output.show(f"{_said(options)} {'goes on' if was_paused else "wasn't paused"}.")
        return 0


PAUSE: Subcommand = _Pause()
RESUME: Subcommand = _Resume()


def _remark(backend: PostgresBackend, options: Namespace) -> str:
    """What is odd about the name: it may be a mistake, or be for what other code of the site enqueues."""
    if options.queue is not None:
        if not backend.queues or options.queue in backend.queues:
            return ""
        return (
            f"QUEUES of TASKS[{backend.alias!r}] doesn't have {options.queue!r}."
            f"{did_you_mean(options.queue, backend.queues)}"
        )
    try:
        resolve(options.task, backend.config.moved_tasks)
    except UnknownTask as error:
        return about_task(error)
    return ""
