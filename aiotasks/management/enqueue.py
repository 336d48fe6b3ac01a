"""``manage.py aiotasks enqueue``: enqueue a task by its path, and wait for its end if asked to."""

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import Any

from django.core.management.base import CommandError
from django.tasks import TaskResultStatus
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist

from aiotasks.exceptions import DuplicateTask, UnknownTask
from aiotasks.management.output import Output, add_json
from aiotasks.management.subcommand import backend_or_error, errors_for_people
from aiotasks.management.task_paths import about_task
from aiotasks.management.times import AHEAD, time_ahead
from aiotasks.management.usage import UsageError
from aiotasks.operations.enqueue import enqueue_path
from aiotasks.results import PostgresTaskResult
from aiotasks.worker.process.cli import add_backend

__all__ = ["HELP", "add_arguments", "run"]

HELP = "enqueue a task by its path, and wait for its end if asked to"

# The exit codes of --wait: the task is FAILED, as of a worker with --until-empty; it hasn't ended in time.
FAILED, NOT_ENDED = 3, 4


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options."""
    add_backend(parser)
    parser.add_argument("path", metavar="PATH", help="of the task, such as shop.tasks.charge")
    parser.add_argument(
        "arguments",
        nargs="*",
        type=_json,
        metavar="JSON",
        help="""its arguments, such as 42 or '"text"'""",
    )
    parser.add_argument(
        "--kwargs",
        dest="call_kwargs",  # Django takes an option called kwargs away
        type=_json_object,
        default={},
        metavar="JSON",
        help="its keyword arguments, an object",
    )
    parser.add_argument("--queue", metavar="NAME", help="in place of the task's own")
    parser.add_argument("--priority", type=int, metavar="N", help="in place of the task's own, -100 to 100")
    parser.add_argument(
        "--at",
        type=time_ahead,
        metavar="TIME",
        help=f"when it is to run, {AHEAD}",
    )
    parser.add_argument(
        "--wait",
        action="store_true",
        help=f"wait for its end; exit code {FAILED} if it is FAILED, {NOT_ENDED} after --timeout",
    )
    parser.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="for which it waits at most")
    add_json(parser)


def run(options: Namespace, output: Output) -> int:
    """Enqueue it; returns the exit code. Raises UsageError for arguments that the task doesn't take,
    CommandError where another task has its key, and where the database fails."""
    if options.timeout is not None and not options.wait:
        raise UsageError("--timeout is for --wait.")
    backend = backend_or_error(options.backend)
    with errors_for_people(backend):
        result = _enqueue(options)
        enqueued = f"Enqueued task {result.id}."
        if result.is_duplicate:
            enqueued = f"Not enqueued, because task {result.id} has its key."
        code = 0
        if options.wait:
            output.note(enqueued)
            code = _wait(result, options.timeout)
    if options.json:
        output.json(_as_json(result))
    else:
        output.show(_end(result) if options.wait else enqueued)
    return code


def _enqueue(options: Namespace) -> PostgresTaskResult:
    try:
        result: PostgresTaskResult = enqueue_path(  # type: ignore[assignment]  # as its backend makes them
            options.path,
            options.arguments,
            options.call_kwargs,
            queue=options.queue,
            priority=options.priority,
            run_after=options.at,
            backend=options.backend,
        )
    except UnknownTask as error:
        raise UsageError(about_task(error)) from error
    except DuplicateTask as error:
        raise CommandError(str(error)) from error
    except (InvalidTask, TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    return result


def _wait(result: PostgresTaskResult, timeout: float | None) -> int:
    try:
        result.join(timeout)
    except TimeoutError:
        result.refresh()
        return NOT_ENDED
    except TaskResultDoesNotExist:
        raise CommandError(f"Task {result.id} was deleted before its end could be seen.") from None
    return FAILED if result.status == TaskResultStatus.FAILED else 0


def _end(result: PostgresTaskResult) -> str:
    """What has become of it, in a line."""
    if not result.is_finished:
        return f"It hasn't ended: it is {result.status}."
    if result.status == TaskResultStatus.FAILED:
        lines = result.errors[-1].traceback.strip().splitlines() if result.errors else []
        return f"FAILED: {lines[-1] if lines else 'without an error'}"
    return f"SUCCESSFUL: {json.dumps(result.return_value, ensure_ascii=False)}"


def _as_json(result: PostgresTaskResult) -> dict[str, Any]:
    error = result.errors[-1] if result.status == TaskResultStatus.FAILED and result.errors else None
    return {
        "id": result.id,
        "is_duplicate": result.is_duplicate,
        "status": result.status,
        "return_value": result.return_value if result.status == TaskResultStatus.SUCCESSFUL else None,
        "error": error and {"class": error.exception_class_path, "traceback": error.traceback},
    }


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        quoted = json.dumps(text, ensure_ascii=False)
        raise ArgumentTypeError(
            f"{text!r:.200} isn't JSON; as a text it is written '{quoted:.200}'"
        ) from None


def _json_object(text: str) -> dict[str, Any]:
    if not isinstance(value := _json(text), dict):
        raise ArgumentTypeError(f"{text!r:.200} isn't a JSON object")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e9:
        raise ArgumentTypeError(f"{text!r:.100} isn't a number of seconds")
    return value
