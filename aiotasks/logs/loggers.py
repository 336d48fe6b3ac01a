"""The loggers: none raises into its caller, and this package's aren't silenced while a worker runs."""

import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from django.conf import settings
from django.utils.log import AdminEmailHandler, RequireDebugFalse, RequireDebugTrue

from .formats import TextFormatter
from .last_resort import failures
from .threads import LogThread

__all__ = [
    "GUARDED_IN_WORKERS",
    "OWN_LOGGERS",
    "GuardedLogger",
    "OwnLogger",
    "beside",
    "guard",
    "own_handler_shows",
    "package_logger",
    "passes_nothing",
    "shown_by",
    "stderr_handler",
]

# One for this package's records, one for Django's and asyncio's, because mails to ADMINS must not delay the
# worker's log. None while no worker runs; set by lifecycle.py.
threads: tuple[LogThread, LogThread] | None = None


class GuardedLogger(logging.Logger):
    """A logger that raises nothing and delays nothing. Mixed into the class that a logger has."""

    _is_own = False

    def makeRecord(
        self,
        name: str,
        level: int,
        fn: str,
        lno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        extra: Mapping[str, object] | None = None,
        sinfo: str | None = None,
    ) -> logging.LogRecord:
        try:
            return super().makeRecord(name, level, fn, lno, msg, args, exc_info, func, extra, sinfo)
        except Exception as error:  # the site's record factory may raise anything  # noqa: BLE001
            failures.report(error)
            return logging.LogRecord(name, level, fn, lno, msg, args, exc_info, func, sinfo)

    def handle(self, record: logging.LogRecord) -> None:
        if (running := threads) is not None:
            running[0 if self._is_own else 1].put(self._pass_on, record)
        else:
            self._pass_on(record)

    def _pass_on(self, record: logging.LogRecord) -> None:
        """Pass the record to its handlers."""
        try:
            super().handle(record)
        except Exception as error:  # the site's filters and handlers may raise anything  # noqa: BLE001
            failures.report(error)
            if self._is_own and threads is not None:
                stderr_handler.emit(record)


class OwnLogger(GuardedLogger):
    """A logger of this package: while a worker runs, neither ``disable_existing_loggers`` nor the root
    logger's level silences it.
    """

    _is_own = True

    @property
    def disabled(self) -> bool:
        return self.__dict__.get("disabled", False) and threads is None

    @disabled.setter
    def disabled(self, value: bool) -> None:
        self.__dict__["disabled"] = value

    def getEffectiveLevel(self) -> int:
        level = super().getEffectiveLevel()
        if threads is None or any(one.level or _is_configured(one) for one in _own_chain(self)):
            return level
        return min(level, stderr_handler.level)


class StderrHandler(logging.Handler):
    """Writes the records to stderr that no handler of the site shows."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(TextFormatter())
        self.setLevel(logging.INFO)

    def filter(self, record: logging.LogRecord) -> bool | logging.LogRecord:
        return own_handler_shows(record.name, record.levelno) and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if sys.stderr is not None:
                sys.stderr.write(self.format(record) + "\n")
                sys.stderr.flush()
        except Exception:  # stderr is closed or full, or the record can't be formatted  # noqa: BLE001
            self.handleError(record)


def own_handler_shows(name: str, level: int | None = None) -> bool:
    """Return whether records of a logger of this package go to stderr while a worker runs, because the site
    shows them nowhere. ``level``: theirs; None: the lowest of those that go there.
    """
    logger = logging.getLogger(name)
    if any(_is_configured(one) for one in _own_chain(logger)):
        return False
    return next(shown_by(logger, stderr_handler.level if level is None else level), None) is None


def shown_by(logger: logging.Logger, level: int) -> Iterator[logging.Handler]:
    """Yield the site's handlers that take a record of ``logger``, except those that mail it.

    ``NullHandler`` is one of them: a site that gives it to the root logger wants to see nothing.
    """
    return (each for each in _taken_by(logger, level) if not isinstance(each, AdminEmailHandler))


def _taken_by(logger: logging.Logger, level: int) -> Iterator[logging.Handler]:
    """Yield the site's handlers that take a record of ``logger``."""
    one: logging.Logger | None = logger
    while one is not None:
        for handler in one.handlers:
            if (
                level >= handler.level
                and not isinstance(handler, StderrHandler)
                and not any(map(passes_nothing, handler.filters))
            ):
                yield handler
        one = one.parent if one.propagate else None


def beside(ours: logging.Logger, theirs: logging.Logger, level: int) -> Literal["shown", "mailed"] | None:
    """Return what becomes of a record of ``theirs`` where those of ``ours``, a logger of this package, go: it
    is shown there, too, or it is only mailed to ADMINS by a handler of both, or neither.
    """
    if not theirs.isEnabledFor(level):
        return None
    mine = set(_taken_by(ours, level))
    on_stderr = own_handler_shows(ours.name, level)  # or by logging.lastResort, where no worker runs
    if on_stderr and not mine and not theirs.hasHandlers():
        return None if logging.lastResort is None else "shown"
    both = [each for each in _taken_by(theirs, level) if each in mine or (on_stderr and _is_on_stderr(each))]
    if not both:
        return None
    return "mailed" if all(isinstance(each, AdminEmailHandler) for each in both) else "shown"


def _is_on_stderr(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr


def passes_nothing(filter: object) -> bool:
    """Return whether ``filter`` is one of Django's that drop everything, like its console's in production."""
    kind = type(filter)
    return (kind is RequireDebugTrue and not settings.DEBUG) or (
        kind is RequireDebugFalse and bool(settings.DEBUG)
    )


def _own_chain(logger: logging.Logger) -> Iterator[logging.Logger]:
    """Yield ``logger`` and its parents as far as they are this package's."""
    one: logging.Logger | None = logger
    while isinstance(one, OwnLogger):
        yield one
        one = one.parent


def _is_configured(logger: logging.Logger) -> bool:
    """Return whether the site's LOGGING decides where the records of this logger go."""
    return not logger.propagate or any(handler is not stderr_handler for handler in logger.handlers)


def guard(name: str, kind: type[GuardedLogger]) -> logging.Logger:
    """Mix ``kind`` into the class of the logger ``name``; return the logger."""
    logger = logging.getLogger(name)
    if not isinstance(logger, kind):
        old = type(logger)
        new = kind if old is logging.Logger else type(kind.__name__, (kind, old), {})
        logger.__class__ = new
    return logger


# Other loggers that log on a worker's loop: of a failed callback, a failed receiver, a warning.
GUARDED_IN_WORKERS = ("asyncio", "concurrent.futures", "django.dispatch", "py.warnings")

# This package's, below `aiotasks`.
OWN_LOGGERS = tuple(
    f"aiotasks.{name}"
    for name in ("asgi", "health", "store", "supervisor", "tasks", "testing", "web", "worker")
)

package_logger = guard("aiotasks", OwnLogger)
stderr_handler = StderrHandler()
for _name in OWN_LOGGERS:
    guard(_name, OwnLogger)
guard("django.tasks", GuardedLogger)  # enqueue() must not fail by its record, when the task has been stored
