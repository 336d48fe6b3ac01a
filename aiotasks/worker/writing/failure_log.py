"""The log record of a failed attempt: one line, and the traceback."""

import logging
import re
from textwrap import indent

from django.tasks import signals as django_signals

from ... import logs
from ...codec import CANCELLED, decode
from ...rows import Job
from ..outcomes import Retried

__all__ = ["log_failure", "log_retry"]

logger = logging.getLogger("aiotasks.worker")

# Characters of the error's message in that line.
MESSAGE_LIMIT = 1000

# Characters that could forge lines in a terminal or a log: all controls but line ends and tabs.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def log_failure(job: Job, text: str, seconds: float | None = None) -> None:
    """Log that an attempt has failed, with the stored ``text`` of its error, which REDACT has processed.

    ``seconds``: the duration of the attempt; None if it never began or its worker was killed.

    At WARNING and without ``exc_info``: Django's own record of it, at ERROR, is what error trackers
    report and Django mails to ADMINS, and once is enough. The traceback is left out if the same handler
    shows it with Django's record.

    A cancel is logged at INFO, because somebody has asked for it.
    """
    took = "" if seconds is None else f" seconds={seconds:.3f}"
    if decode(text)["class"] == CANCELLED:
        logger.info(
            "Task cancelled path=%r id=%s attempt=%d%s", job.task_path, job.id, len(job.worker_ids), took
        )
        return
    error, shown = _shown(text, traceback=not _is_shown_by_django())
    logger.warning(
        "Task failed path=%r id=%s attempt=%d%s error=%r%s",
        job.task_path,
        job.id,
        len(job.worker_ids),
        took,
        error,
        shown,
    )


def log_retry(job: Job, outcome: Retried, seconds: float | None) -> None:
    """Log that an attempt has failed and the task will be tried again. ``seconds``: as in ``log_failure``.

    The only record of it: Django's is for a task's end.
    """
    error, shown = _shown(outcome.failure.text, traceback=True)
    logger.warning(
        "Task failed; it is tried again path=%r id=%s failures=%d max_attempts=%d next_in=%.3f%s error=%r%s",
        job.task_path,
        job.id,
        outcome.failures,
        outcome.most,
        outcome.delay,
        "" if seconds is None else f" seconds={seconds:.3f}",
        error,
        shown,
    )


def _shown(text: str, *, traceback: bool) -> tuple[str, str]:
    """The last words of a stored error; and on new lines its traceback, if ``traceback`` and there is one."""
    stored = decode(text)
    lines: str = stored["traceback"].rstrip("\n")
    error = _last_words(stored["class"], lines)[:MESSAGE_LIMIT]
    if not traceback or "\n" not in lines:
        return error, ""
    # Indented, so that no message can look like a log record.
    return error, "\n" + indent(_CONTROLS.sub(_escaped, lines), "  ")


def _is_shown_by_django() -> bool:
    theirs = django_signals.logger
    if not theirs.isEnabledFor(logging.ERROR):
        return False
    handlers = set(logs.shown_by(logger, logging.WARNING))
    if not handlers and not theirs.hasHandlers():
        return logging.lastResort is not None  # stderr for both
    return any(handler in handlers for handler in logs.shown_by(theirs, logging.ERROR))


def _last_words(kind: str, traceback: str) -> str:
    """The end of a traceback, from the class of its error on."""
    name = kind.removeprefix("builtins.").removeprefix("__main__.")
    # The second form is an exception group's, whose other errors follow.
    for before, end in (("\n", None), ("\n  | ", "\n")):
        if (start := traceback.rfind(before + name)) >= 0:
            start += len(before)
            return traceback[start : None if end is None else traceback.find(end, start)]
    if traceback.startswith(name):  # it was never raised, as the error of a thread that goes on; notes follow
        return traceback
    return traceback[traceback.rfind("\n") + 1 :]


def _escaped(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1]
