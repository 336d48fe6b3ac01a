"""Sends Django's task signals, without a thread if only Django's logging receiver listens."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextvars import copy_context
from enum import Enum
from functools import lru_cache, partial
from types import FunctionType
from typing import Any

from asgiref.sync import sync_to_async
from django.dispatch import Signal
from django.tasks import signals as django_signals

from . import logs
from .compat import has_only, has_receiver, live_receivers, log_robust_failure, restore_context
from .exceptions import TaskCancelled
from .rows import AnyResult

__all__ = [
    "Audience",
    "asend",
    "asend_finished",
    "asend_started",
    "audience",
    "has_receivers",
    "is_logged",
    "send_finished",
]

# The levels at which Django's receivers log each signal; a failed task's task_finished is logged at ERROR.
_LEVELS = {
    django_signals.task_enqueued: logging.DEBUG,
    django_signals.task_started: logging.INFO,
    django_signals.task_finished: logging.INFO,
}
_LOGGERS = {
    django_signals.task_enqueued: django_signals.log_task_enqueued,
    django_signals.task_started: django_signals.log_task_started,
    django_signals.task_finished: django_signals.log_task_finished,
}
_LOGGER_IDS = {signal: id(receiver) for signal, receiver in _LOGGERS.items()}


class _CancelsAtInfo(logging.Filter):
    """Has Django's record of a cancelled task's end at INFO, with one line in place of the traceback.

    Django logs every FAILED task at ERROR, which error trackers report, and which is mailed to ADMINS under
    its default LOGGING. A cancel is what somebody has asked for. It is decided on the record, because Django
    has no say in the level, and the receiver that logs may be wrapped by monitoring tools.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if record.levelno != logging.ERROR or not isinstance(error, TaskCancelled):
            return True
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        record.exc_info = None
        record.msg = f"{record.msg} error=%r"
        record.args = (*record.args, str(error)) if isinstance(record.args, tuple) else (str(error),)
        return django_signals.logger.isEnabledFor(logging.INFO)


_own_filters = [_CancelsAtInfo()]
django_signals.logger.addFilter(_own_filters[0])

# The file of `logging` itself: a callHandlers from elsewhere is a patch.
_HOME = logging.getLogger.__code__.co_filename


# Seconds for which an answer of _is_kept() is used again. To find it takes 2.8 µs, and a worker asks twice a
# task: 12 % of its CPU time. Chosen: dozens of tasks end within them, and nobody who changes LOGGING while
# tasks run can tell the difference.
KEPT_FOR = 0.002
_kept: dict[int, tuple[bool, float]] = {}


class Audience(Enum):
    """Who receives a signal."""

    NOBODY = 0  # only Django's own logging receiver, whose record no handler would keep
    LOGS = 1  # only that receiver: costs no thread, and may be called on the loop
    RECEIVERS = 2


def audience(signal: Signal, sender: type) -> Audience:
    """Return who receives ``signal`` (of a task that didn't fail, or was cancelled; other failures are
    logged at ERROR).

    ``asend`` costs 176 µs with one sync receiver (a thread hop), ``send`` 11 µs, most of it for a log record,
    which Django's default LOGGING throws away.
    """
    if has_only(signal, _LOGGER_IDS[signal]):
        return Audience.LOGS if _is_kept(_LEVELS[signal]) else Audience.NOBODY
    sync_receivers, async_receivers = live_receivers(signal, sender)
    if async_receivers or any(receiver is not _LOGGERS[signal] for receiver in sync_receivers):
        return Audience.RECEIVERS
    return Audience.LOGS if sync_receivers and _is_kept(_LEVELS[signal]) else Audience.NOBODY


def has_receivers(signal: Signal, sender: type) -> bool:
    """Return whether there is a receiver beside Django's own, which logs."""
    return not has_only(signal, _LOGGER_IDS[signal]) and audience(signal, sender) is Audience.RECEIVERS


def is_logged(signal: Signal) -> bool:
    """Return whether Django's own receiver, which logs, is connected: a site may have disconnected it."""
    return has_receiver(signal, _LOGGER_IDS[signal])


def _is_kept(level: int) -> bool:
    """Whether a record of Django's task log at this level comes to any handler that keeps it."""
    now = time.monotonic()
    known = _kept.get(level)
    if known is None or now >= known[1]:
        known = _kept[level] = _finds_handler(level), now + KEPT_FOR
    return known[0]


def _finds_handler(level: int) -> bool:
    """The same, looked up: as ``Logger.callHandlers`` goes about it, but before there is a record."""
    logger: logging.Logger | None = django_signals.logger
    if not django_signals.logger.isEnabledFor(level):
        return False
    call = type(django_signals.logger).callHandlers
    filters = django_signals.logger.filters
    if (filters and filters != _own_filters) or type(call) is not FunctionType or not _is_of_logging(call):
        return True  # monitoring tools look at records there (Sentry's breadcrumbs)
    found = False
    while logger is not None:
        for handler in logger.handlers:
            found = True
            if level >= handler.level and not any(map(logs.passes_nothing, handler.filters)):
                return True
        logger = logger.parent if logger.propagate else None
    return not found and logging.lastResort is not None and level >= logging.lastResort.level


@lru_cache(maxsize=16)  # reading __code__ raises an audit event, for which a worker has a hook in Python
def _is_of_logging(function: FunctionType) -> bool:
    """Return whether the function is one of ``logging`` itself."""
    return function.__code__.co_filename == _HOME


async def asend(signal: Signal, sender: type, result: AnyResult) -> None:
    """Send ``signal`` from a loop. A receiver's exception is the caller's."""
    match audience(signal, sender):
        case Audience.LOGS:
            signal.send(sender, task_result=result)
        case Audience.RECEIVERS:
            await signal.asend(sender, task_result=result)


async def asend_started(sender: type, result: AnyResult) -> None:
    """Send ``task_started``. Django logs what a receiver raises: the task has nothing to do with it."""
    signal = django_signals.task_started
    match audience(signal, sender):
        case Audience.LOGS:
            signal.send_robust(sender, task_result=result)
        case Audience.RECEIVERS:
            await _asend_robust(signal, sender, result)


async def asend_finished(sender: type, result: AnyResult, exception: BaseException | None) -> None:
    """Send ``task_finished``, on failure with ``exception`` as ``sys.exc_info()``, as Django promises."""
    receivers = audience(django_signals.task_finished, sender)
    if receivers is Audience.RECEIVERS:
        await _asend_finished(sender, result, exception)
    elif isinstance(exception, TaskCancelled) and receivers is Audience.NOBODY:
        return
    elif logs.are_threaded():
        send_finished(sender, result, exception)
    else:
        # Django's default LOGGING mails an ERROR to ADMINS: never on the loop.
        await asyncio.to_thread(send_finished, sender, result, exception)


def send_finished(sender: type, result: AnyResult, exception: BaseException | None) -> None:
    """The same from sync code, which may wait."""
    send = partial(django_signals.task_finished.send_robust, sender, task_result=result)
    if exception is None:
        send()
        return
    try:
        raise exception
    except BaseException:  # of user code, which send() has as sys.exc_info()  # noqa: BLE001
        send()


async def _asend_finished(sender: type, result: AnyResult, exception: BaseException | None) -> None:
    await _asend_robust(django_signals.task_finished, sender, result, exception)


async def _asend_robust(
    signal: Signal, sender: type, result: AnyResult, exception: BaseException | None = None
) -> None:
    """As ``Signal.asend_robust``, but what receivers set in context variables stays set afterwards.

    Django runs async receivers, and on 6.0 sync ones too, in asyncio tasks with contexts of their own.
    """
    sync_receivers, async_receivers = live_receivers(signal, sender)
    call = partial(_call_robust, signal, sender, result)
    if sync_receivers:
        await sync_to_async(_call_all, thread_sensitive=True)(call, sync_receivers, exception)
    if len(async_receivers) == 1:
        await _await_robust(signal, sender, result, async_receivers[0], exception)
        return
    contexts = [copy_context() for _ in async_receivers]
    loop = asyncio.get_running_loop()
    await asyncio.gather(
        *(
            loop.create_task(_await_robust(signal, sender, result, receiver, exception), context=context)
            for receiver, context in zip(async_receivers, contexts, strict=True)
        )
    )
    for context in contexts:
        restore_context(context)


def _call_all(call: Callable[[Any], None], receivers: list[Any], exception: BaseException | None) -> None:
    if exception is None:
        for receiver in receivers:
            call(receiver)
        return
    try:
        raise exception
    except BaseException:  # for sys.exc_info()  # noqa: BLE001
        for receiver in receivers:
            call(receiver)


def _call_robust(signal: Signal, sender: type, result: AnyResult, receiver: Any) -> None:
    try:
        receiver(signal=signal, sender=sender, task_result=result)
    except Exception as error:  # as Django's: logged, and no matter of the task's  # noqa: BLE001
        log_robust_failure(signal, receiver, error)


async def _await_robust(
    signal: Signal, sender: type, result: AnyResult, receiver: Any, exception: BaseException | None
) -> None:
    try:
        if exception is None:
            await receiver(signal=signal, sender=sender, task_result=result)
            return
        try:
            raise exception
        except BaseException:  # for sys.exc_info()  # noqa: BLE001
            await receiver(signal=signal, sender=sender, task_result=result)
    except Exception as error:  # as above  # noqa: BLE001
        log_robust_failure(signal, receiver, error)
