"""``manage.py aiotasks retry``, ``cancel``, ``delete`` and ``run-now``: act on tasks by ids or a filter."""

import signal
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.core.management.base import CommandError

from aiotasks.backend import PostgresBackend
from aiotasks.bulk import BulkCounts, Which
from aiotasks.bulk_actions import STATUSES, ActionName
from aiotasks.filters import TaskFilter
from aiotasks.management.choosing import add_filters, filter_of
from aiotasks.management.output import Output, add_json, add_yes
from aiotasks.management.subcommand import backend_or_error, run_over
from aiotasks.management.usage import UsageError
from aiotasks.operations.actions import acount_meant, akey_holders, aperform
from aiotasks.operations.filters import describe
from aiotasks.operations.tables import Column, Table
from aiotasks.results import parse_id
from aiotasks.worker.process.cli import add_backend

__all__ = ["CANCEL", "DELETE", "RETRY", "RUN_NOW"]

# Tasks that are named one by one because nothing was done with them: for people, and in JSON.
SHOWN, SHOWN_IN_JSON = 20, 1000


@dataclass(slots=True)
class Acting:
    """A subcommand that does one action. ``question``: what is asked about ``{}``, tasks in words. ``done``:
    what becomes of a task. ``times``: what --since and --until are about."""

    HELP: str
    action: ActionName
    question: str
    done: str
    times: str

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options."""
        add_backend(parser)
        parser.add_argument("ids", nargs="*", metavar="ID", help="these tasks, without a question")
        add_filters(parser, times=self.times)
        parser.add_argument("--all", action="store_true", help="all tasks, in place of a filter")
        parser.add_argument("--dry-run", action="store_true", help="change nothing, and count the tasks")
        add_yes(parser)
        add_json(parser)

    def run(self, options: Namespace, output: Output) -> int:
        """Do it, and print what became of how many tasks; returns the exit code.

        1: not all of the tasks that were given could be changed, or some of a filter are locked; 130:
        interrupted. Raises UsageError, and CommandError where the database fails.
        """
        which = self._which(options)
        backend = backend_or_error(options.backend)
        total = None
        if not isinstance(which, TaskFilter):
            total = len(which)
        elif not options.dry_run and not options.yes:
            count = run_over(backend, acount_meant(self.action, which, backend=backend.alias))
            total = None if count.capped else count.number
            if total == 0 or not output.confirm(self._question(str(count), which)):
                output.note("No task is meant." if total == 0 else "Nothing was done.")
                return 0 if total == 0 else 1
        return _Doing(self, backend, which, options).run(output, total)

    def _which(self, options: Namespace) -> list[UUID] | TaskFilter:
        chosen = filter_of(options, ends=self.action == "retry")
        if sum((bool(options.ids), not chosen.is_empty, options.all)) != 1:
            raise UsageError("Give ids, filters, or --all for all tasks of the backend: one of these.")
        if options.ids:
            return [_id_of(text) for text in options.ids]
        possible = STATUSES[self.action]
        if chosen.statuses is not None and not set(chosen.statuses) & set(possible):
            raise UsageError(
                f"{' and '.join(chosen.statuses)} tasks are not {self.done}, only those that are "
                f"{' or '.join(possible)}."
            )
        return chosen

    def _question(self, number: str, chosen: TaskFilter) -> str:
        return self.question.format(f"{number} {'task' if number == '1' else 'tasks'} ({describe(chosen)})")


RETRY = Acting(
    "have FAILED tasks run again, with all their attempts and their history",
    "retry",
    "Retry {}?",
    "retried",
    "--since and --until are about the end of tasks.",
)
CANCEL = Acting(
    "cancel tasks that wait or run",
    "cancel",
    "Cancel {}?",
    "cancelled",
    "--since and --until are about the enqueue of tasks.",
)
DELETE = Acting(
    "delete tasks that don't run",
    "delete",
    "Delete {}?",
    "deleted",
    "--since and --until are about the end of tasks where only finished ones are asked for, by --status or "
    "--error, and about their enqueue otherwise.",
)
RUN_NOW = Acting(
    "run SCHEDULED tasks before their time, also those that wait for their next attempt",
    "run_now",
    "Run {} now?",
    "run now",
    "--since and --until are about the enqueue of tasks.",
)


def _id_of(text: str) -> UUID:
    if (id := parse_id(text)) is None:
        raise UsageError(f"{text!r:.100} is not the id of a task.")
    return id


class _Doing:
    """One run of an action."""

    def __init__(self, command: Acting, backend: PostgresBackend, which: Which, options: Namespace) -> None:
        self._command = command
        self._backend = backend
        self._which = which
        self._options = options
        self._counts = BulkCounts()
        self._left: dict[UUID, str] = {}
        # Of a filter the others have changed meanwhile, or are gone, as the person may want them to.
        self._is_left = {"locked", "key_taken"}
        if not isinstance(which, TaskFilter):
            self._is_left |= {"refused", "missing"}

    def run(self, output: Output, total: int | None) -> int:
        try:
            with output.progress(total) as show:
                self._act(show)
        except KeyboardInterrupt:
            output.note(f"Interrupted. So far: {self._counts}. Give the command again to go on.")
            return 128 + signal.SIGINT
        except CommandError as error:
            raise CommandError(f"{error} So far: {self._counts}. Give the command again to go on.") from error
        holders = self._key_holders()
        if self._options.json:
            output.json(self._as_json(holders))
        else:
            output.show(self._sentence())
            if self._left:
                output.show(self._table(holders))
        has_ids = not isinstance(self._which, TaskFilter)
        return int(bool(self._left) if has_ids else self._counts.locked > 0)

    def _act(self, show: Any) -> None:
        def progress(counts: BulkCounts) -> None:
            self._counts = counts
            show(sum(counts), str(counts))

        self._counts = run_over(
            self._backend,
            aperform(
                self._command.action,
                self._which,
                backend=self._backend.alias,
                everything=self._options.all,
                progress=progress,
                report=self._report,
                dry_run=self._options.dry_run,
            ),
        )

    def _report(self, outcomes: Mapping[UUID, str]) -> None:
        for id, outcome in outcomes.items():
            self._left.pop(id, None)
            if outcome in self._is_left:
                self._left[id] = outcome

    def _key_holders(self) -> dict[UUID, UUID]:
        lost = [id for id, outcome in self._left.items() if outcome == "key_taken"][:SHOWN_IN_JSON]
        if not lost:
            return {}
        return run_over(self._backend, akey_holders(lost, backend=self._backend.alias))

    def _sentence(self) -> str:
        if not self._options.dry_run:
            return f"{str(self._counts).capitalize()}."
        number = self._counts.would_change
        others = self._counts._replace(would_change=0)
        more = f"; {others}" if any(others) else ""
        return f"Dry run: {number:,} would be {self._command.done}{more}."

    def _table(self, holders: Mapping[UUID, UUID]) -> Table:
        rows = [
            [str(id), self._why(outcome, holders.get(id))] for id, outcome in list(self._left.items())[:SHOWN]
        ]
        more = len(self._left) - len(rows)
        return Table(
            [Column("task"), Column(f"is not {self._command.done}")],
            rows,
            [f"And {more:,} more."] if more else [],
        )

    def _why(self, outcome: str, holder: UUID | None) -> str:
        match outcome:
            case "locked":
                return "another transaction has it locked; give the command again"
            case "key_taken":
                return "its unique key is taken" if holder is None else f"task {holder} has its unique key"
            case "missing":
                return "there is no such task"
        return f"it isn't {' or '.join(STATUSES[self._command.action])}"

    def _as_json(self, holders: Mapping[UUID, UUID]) -> dict[str, Any]:
        return {
            "action": self._command.action,
            "dry_run": self._options.dry_run,
            "counts": self._counts._asdict(),
            "left": [
                {"id": id, "why": outcome, "key_holder": holders.get(id)}
                for id, outcome in list(self._left.items())[:SHOWN_IN_JSON]
            ],
        }
