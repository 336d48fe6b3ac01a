"""Sending Django's task signals without paying for a thread where only loggers listen."""

import logging

from django.dispatch import Signal
from django.tasks import signals as django_signals

from .job import AnyResult

__all__ = ["asend", "asend_robust", "nobody_hears", "only_logs"]

# What Django's receivers log each signal at; a failure's goes by task_finished at ERROR.
_LEVELS = {
    django_signals.task_enqueued: logging.DEBUG,
    django_signals.task_started: logging.INFO,
    django_signals.task_finished: logging.INFO,
}
_LOGGERS = frozenset(
    {
        django_signals.log_task_enqueued,
        django_signals.log_task_started,
        django_signals.log_task_finished,
    }
)


def only_logs(signal: Signal, sender: type) -> bool:
    """Whether nobody but Django's own logging receivers would hear ``signal``."""
    sync_receivers, async_receivers, *_ = signal._live_receivers(sender)
    return not async_receivers and all(receiver in _LOGGERS for receiver in sync_receivers)


def nobody_hears(signal: Signal, sender: type) -> bool:
    """Whether sending ``signal`` (of a task that didn't fail) would have no effect at all."""
    return only_logs(signal, sender) and not django_signals.logger.isEnabledFor(_LEVELS[signal])


async def asend(signal: Signal, sender: type, result: AnyResult) -> None:
    """Send ``signal`` from a loop. A receiver's exception is the caller's.

    Measured: ``asend`` costs 176 µs with one sync receiver (a thread hop), ``send`` 11 µs.
    """
    if nobody_hears(signal, sender):
        return
    if only_logs(signal, sender):
        signal.send(sender, task_result=result)
    else:
        await signal.asend(sender, task_result=result)


async def asend_robust(signal: Signal, sender: type, result: AnyResult) -> None:
    """The same, but Django logs what a receiver raises: the task has nothing to do with it."""
    if only_logs(signal, sender):
        signal.send_robust(sender, task_result=result)
    else:
        await signal.asend_robust(sender, task_result=result)
