"""TaskLog: a line of the log for each finished task; in a crowd of them, a line a second."""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from types import MappingProxyType
from typing import Any, Literal
from uuid import UUID

from django.tasks import signals as django_signals

from .. import logs, signals
from ..codec import CANCELLED_START, decode
from ..logs.failures import indented, last_words, own_frame
from ..logs.formats import printable
from ..registry import known
from ..rows import Job
from .events import Observer
from .execution import Execution
from .outcomes import Failed, Retried
from .waits import wait_of

__all__ = ["TaskLog"]

logger = logging.getLogger("aiotasks.tasks")

# Tasks in a second of which each has a line. Nobody reads more of them, and a line costs more than a short
# task.
MOST_LINES = 50

# Characters of an error in a line.
MOST_WORDS = 300


class _Second:
    """What has finished in one second. ``crowded``: as in the one before, so many that they are counted."""

    def __init__(self, began: float, *, crowded: bool) -> None:
        self.began = began
        self.crowded = crowded
        self.finished = 0
        self.failed = 0
        self.retried = 0
        self.left_out = 0  # tasks without a line
        self.unlogged = 0  # failed attempts without a line
        self.lines = 0  # of failed and slow attempts
        self.took = 0.0
        self.longest = 0.0
        self.longest_path = ""
        self.waits = 0.0
        self.waited = 0

    def add(self, executions: Sequence[Execution]) -> None:
        self.finished += len(executions)
        times = [execution.seconds or 0.0 for execution in executions]
        self.took += sum(times)
        if (longest := max(times)) >= self.longest:
            self.longest = longest
            self.longest_path = executions[times.index(longest)].job.task_path
        # That of one task in a batch: reading it takes three times as long as all the rest of a task.
        if (wait := wait_of(executions[0].job)) is not None:
            self.waits += wait
            self.waited += 1

    def report(self, now: float) -> None:
        """Log what has had no line, and forget that."""
        wait, took = self.waits / self.waited if self.waited else None, self.took / max(1, self.finished)
        if self.left_out:
            logger.info(
                "%d tasks finished in %.1f s failed=%d retried=%d wait=%s took=%.3f longest=%.3f (%s)",
                self.finished,
                now - self.began,
                self.failed,
                self.retried,
                _rounded(wait),
                took,
                self.longest,
                printable(self.longest_path),
                extra={
                    "finished": self.finished,
                    "failed": self.failed,
                    "retried": self.retried,
                    "wait": None if wait is None else round(wait, 6),
                    "took": round(took, 6),
                    "longest": round(self.longest, 6),
                    "longest_path": self.longest_path,
                },
            )
        if self.unlogged:
            logger.warning(
                "%d more attempts failed in %.1f s, without lines of their own",
                self.unlogged,
                now - self.began,
                extra={"unlogged": self.unlogged},
            )
        self.left_out = self.unlogged = 0


class TaskLog(Observer):
    """Writes a line for each finished task, by the logger ``aiotasks.tasks``.

    Where more than MOST_LINES tasks finish in a second, the others of that second are counted, and all of the
    seconds that follow, as long as it lasts: one line a second. Failed attempts and slow ones keep their
    lines, up to MOST_LINES in a second.

    slow: the seconds beyond which an attempt is logged as a warning; None: never.
    moved_tasks: the backend's MOVED_TASKS.
    """

    def __init__(
        self,
        *,
        slow: float | None = None,
        moved_tasks: Mapping[str, str] = MappingProxyType({}),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slow = inf if slow is None else slow
        self._moved_tasks = moved_tasks
        self._clock = clock
        self._second = _Second(-inf, crowded=False)
        self._timer: asyncio.TimerHandle | None = None
        # Sentry makes an event of each record at ERROR, and has one of Django's record of the same failure.
        if (sentry := sys.modules.get("sentry_sdk.integrations.logging")) is not None:
            sentry.ignore_logger(logger.name)

    def wrote(self, executions: Sequence[Execution], seconds: float) -> None:
        if not logger.isEnabledFor(logging.INFO):
            executions = [one for one in executions if self._is_notable(one)]
        if not executions:
            return
        second = self._now()
        room = 0 if second.crowded else max(0, MOST_LINES - second.finished)
        second.add(executions)
        for execution in executions[:room]:
            self._finished(execution, second)
        if crowd := executions[room:]:
            second.left_out += len(crowd)
            self._report_later(second)
            for execution in crowd:
                if isinstance(execution.outcome, Failed) and not _is_cancel(execution.outcome.text):
                    self._finished(execution, second)
            if second.longest > self._slow:
                for execution in crowd:
                    if execution.outcome.__class__ is not Failed and self._is_notable(execution):
                        self._finished(execution, second)

    def retried(self, job: Job, outcome: Retried, seconds: float | None) -> None:
        second = self._now()
        second.retried += 1
        if not self._has_line(second):
            self._left_out(second)
            return
        error = _Error(job, outcome.failure.text)
        logger.warning(
            "%s failed and is tried again in %.3f s id=%s queue=%s attempt=%d wait=%s took=%s%s failures=%d "
            "max_attempts=%d error=%r at=%s",
            printable(job.task_path),
            outcome.delay,
            *_facts(job, seconds),
            self._remark(seconds),
            outcome.failures,
            outcome.most,
            error.words,
            error.place,
            extra={
                **_fields(job, "retried", seconds),
                **error.fields(),
                "next_in": outcome.delay,
                "failures": outcome.failures,
                "max_attempts": outcome.most,
            },
        )

    def lost(self, job: Job, error_text: str) -> None:
        self._failed(job, error_text, None, self._now())

    def flush(self) -> None:
        """Log what was counted and not logged yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._second.report(self._clock())

    def _now(self) -> _Second:
        """Return the second that it is, a new one if the last one is over."""
        now, last = self._clock(), self._second
        if now - last.began < 1.0:
            return last
        self.flush()
        lasts = last.finished > MOST_LINES and now - last.began < 2.0
        self._second = _Second(now, crowded=lasts)
        return self._second

    def _report_later(self, second: _Second) -> None:
        if self._timer is None:
            left = second.began + 1.0 - self._clock()
            self._timer = asyncio.get_running_loop().call_later(left, self.flush)

    def _has_line(self, second: _Second) -> bool:
        """Return whether a failed or slow attempt may have a line, and count it."""
        second.lines += 1
        return second.lines <= MOST_LINES

    def _left_out(self, second: _Second) -> None:
        second.unlogged += 1
        self._report_later(second)

    def _is_notable(self, execution: Execution) -> bool:
        return execution.outcome.__class__ is Failed or (execution.seconds or 0.0) > self._slow

    def _remark(self, seconds: float | None) -> str:
        return "" if seconds is None or seconds <= self._slow else f" slow_task={self._slow:g}"

    def _finished(self, execution: Execution, second: _Second) -> None:
        job, outcome, seconds = execution.job, execution.outcome, execution.seconds
        if isinstance(outcome, Failed):
            self._failed(job, outcome.text, seconds, second)
            return
        if (remark := self._remark(seconds)) and not self._has_line(second):
            return
        logger.log(
            logging.WARNING if remark else logging.INFO,
            "%s succeeded id=%s queue=%s attempt=%d wait=%s took=%s%s",
            printable(job.task_path),
            *_facts(job, seconds),
            remark,
            extra=_fields(job, "succeeded", seconds),
        )

    def _beside(self, job: Job) -> Literal["shown", "mailed"] | None:
        """Return what becomes of Django's record of the failure where ours goes; None: there is none."""
        if known(job.task_path, self._moved_tasks) is None:  # then nothing is announced
            return None
        if not signals.is_logged(django_signals.task_finished):
            return None
        return logs.beside(logger, django_signals.logger, logging.ERROR)

    def _failed(self, job: Job, text: str, seconds: float | None, second: _Second) -> None:
        if _is_cancel(text):
            if not second.crowded:
                logger.info(
                    "%s was cancelled id=%s queue=%s attempt=%d wait=%s took=%s",
                    printable(job.task_path),
                    *_facts(job, seconds),
                    extra=_fields(job, "cancelled", seconds),
                )
            return
        second.failed += 1
        if not self._has_line(second):
            self._left_out(second)
            return
        error = _Error(job, text)
        beside = self._beside(job)
        logger.log(
            # Once is enough for error trackers and mails to ADMINS, and Django's record has the exception.
            logging.WARNING if beside else logging.ERROR,
            "%s failed id=%s queue=%s attempt=%d wait=%s took=%s%s error=%r at=%s%s",
            printable(job.task_path),
            *_facts(job, seconds),
            self._remark(seconds),
            error.words,
            error.place,
            error.lines if beside != "shown" else "",
            extra={
                **_fields(job, "failed", seconds),
                **error.fields(),
                **({"traceback": error.traceback} if beside != "shown" else {}),
            },
        )


class _Error:
    """The stored error of a failed attempt, as its line has it."""

    def __init__(self, job: Job, text: str) -> None:
        stored = decode(text)
        self._class: str = stored["class"]
        self.traceback: str = stored["traceback"]
        # The second line is often a database's detail; what follows is in the traceback.
        self.words = "\n".join(last_words(self._class, self.traceback).split("\n", 2)[:2])[:MOST_WORDS]
        try:
            self._frame = own_frame(self.traceback, job.task_path)
        except Exception:  # rather a line without its place than none  # noqa: BLE001
            self._frame = None
        self.place = self._frame or "-"

    @property
    def lines(self) -> str:
        """The traceback, after the line; nothing for an error that was never raised, whose words are it."""
        return "\n" + indented(self.traceback) if "\n" in self.traceback.rstrip("\n") else ""

    def fields(self) -> dict[str, Any]:
        return {"exception": self._class, "error": self.words, "frame": self._frame}


def _is_cancel(text: str) -> bool:
    return text.startswith(CANCELLED_START)


def _facts(job: Job, seconds: float | None) -> tuple[UUID, str, int, str, str]:
    return (
        job.id,
        printable(job.queue_name),
        len(job.worker_ids),
        _rounded(wait_of(job)),
        _rounded(seconds),
    )


def _fields(job: Job, outcome: str, seconds: float | None) -> dict[str, Any]:
    """What a record has for formatters and filters of the site."""
    return {
        "task_path": job.task_path,
        "task_id": str(job.id),
        "queue": job.queue_name,
        "attempt": len(job.worker_ids),
        "wait": wait_of(job),
        "took": None if seconds is None else round(seconds, 6),
        "outcome": outcome,
    }


def _rounded(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3f}"
