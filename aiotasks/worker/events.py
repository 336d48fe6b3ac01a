"""Events: the things that happen in a worker, for its log, metrics, traces and tests. The only bus there is.

Control flow doesn't pass through here: the parts call each other, in an order that matters.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal
from uuid import UUID

from ..rows import Job, Lane
from .execution import Execution
from .outcomes import Outcome, Retried

__all__ = ["NULL", "EventLog", "Events", "LeaseLoss", "Observer", "ReleaseReason"]

logger = logging.getLogger("aiotasks.worker")

# Why tasks went back: their execution was given back or put off; or the reply to their claim was lost.
type ReleaseReason = Literal["given back", "claim without a reply"]

# Why a lease was lost: it ran out before it could be renewed; or another worker has removed its row.
type LeaseLoss = Literal["expired", "removed"]

# The events of which every task has some: their callers ask ``watches_tasks`` first.
_PER_TASK = ("started", "finished")

# Those of each statement that claims tasks or writes outcomes: the same with ``watches_batches``.
_PER_BATCH = ("claimed", "wrote")


class Observer:
    """Subclass this and override the events of interest; as it is, it ignores them all.

    The worker calls the methods on its event loop, unless a docstring names another thread. They must return
    at once.
    """

    # Whether `started` or `finished` do anything. The worker doesn't call them otherwise.
    watches_tasks: bool = False

    # The same of `claimed` and `wrote`.
    watches_batches: bool = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.watches_tasks = any(getattr(cls, name) is not getattr(Observer, name) for name in _PER_TASK)
        cls.watches_batches = any(getattr(cls, name) is not getattr(Observer, name) for name in _PER_BATCH)

    def claimed(self, number: int, seconds: float) -> None:
        """A claim has returned ``number`` tasks, perhaps none, after so many seconds."""

    def started(self, job: Job) -> None:
        """The worker begins to run the task."""

    def finished(self, job: Job, outcome: Outcome, seconds: float | None, wait: float | None) -> None:
        """The outcome is stored.

        The attempt has taken ``seconds`` (None if it never began). Before its claim the task has been READY
        for ``wait`` seconds by the database's clock (None if that isn't known). For observers of many tasks
        there is ``wrote``, which costs each task less.
        """

    def wrote(self, executions: Sequence[Execution], seconds: float) -> None:
        """The outcomes of these are stored, each Succeeded or Failed, which has taken ``seconds``: once for
        all that were written together. ``waits.wait_of()`` tells how long one has waited.
        """

    def lost(self, job: Job, error: str) -> None:
        """A task has FAILED without an execution here, because its worker was lost or it has expired.
        ``error``: as it is stored.
        """

    def retried(self, job: Job, outcome: Retried, seconds: float | None) -> None:
        """The attempt has failed after ``seconds``, and the task will be tried again: that is stored."""

    def fenced(self, job: Job, outcome: Outcome) -> None:
        """The outcome was rejected, because this worker no longer owns the task."""

    def released(self, number: int, reason: ReleaseReason) -> None:
        """So many tasks are READY again, or FAILED if they were to be cancelled, without a result."""

    def rescued(self, job: Job) -> None:
        """A task of a dead worker was rescued: ``job.status`` is READY or FAILED."""

    def ticked(self, schedule: str, tick: datetime, late: float) -> None:
        """The task of a schedule's tick is stored, so many seconds after its time."""

    def tick_skipped(self, schedule: str, tick: datetime, holder: UUID) -> None:
        """A tick was left out, because the task ``holder`` has the key of its task."""

    def ticks_missed(self, schedule: str, since: datetime) -> None:
        """Ticks of a schedule, ``since`` the first of them, came too long ago to be made up for."""

    def schedule_failed(self, schedule: str, error: str, failures: int) -> None:
        """A tick can't be enqueued, so many times in a row; it is tried again later."""

    def schedule_recovered(self, schedule: str) -> None:
        """The ticks of a schedule that had failed are enqueued again."""

    def registered(self, worker_id: UUID) -> None:
        """The worker has a lease, under a new id. From the heartbeat's thread."""

    def renewed(self, seconds: float) -> None:
        """The lease was renewed, which has taken ``seconds``. From the heartbeat's thread."""

    def lease_lost(self, worker_id: UUID, running: int, reason: LeaseLoss) -> None:
        """The lease is over; the worker cancels its ``running`` tasks and registers under another id."""

    def outlasted(self, job: Job, lane: Lane, stack: str) -> None:
        """The time of the attempt is over, and its outcome made; its body goes on, on the loop after it has
        ignored its cancellation, or in its thread. ``stack``: where it is.
        """

    def returned(self, job: Job) -> None:
        """The body of an attempt that had outlasted its time has ended; what it has returned is ignored."""

    def worn(self, stuck: int) -> None:
        """So many threads don't come back from tasks that have outlasted their time, and nothing but a new
        process helps: the worker is idle otherwise, or has no thread left.
        """

    def outage_began(self, part: str, error: Exception) -> None:
        """The database refuses what ``part`` of the worker asks for, or can't be reached. From any thread."""

    def outage_ended(self, part: str, seconds: float) -> None:
        """The database works again for ``part``, after so many seconds. From any thread."""

    def reconnected(self, part: str) -> None:
        """``part`` of the worker has a new connection to the database, in place of one that was lost."""

    def limit_unknown(self, name: str, task_path: str, reason: str) -> None:
        """Tasks have a limit of a name that no code here declares, that of ``task_path`` for one: they are
        left to other workers, unless an operator has set a concurrency or a rate of the limit.
        """

    def loop_blocked(self, seconds: float, task_name: str | None, stack: str) -> None:
        """The event loop has been blocked for so many seconds, by the asyncio task of that name if by one.

        Called once for each time, from the watchdog's thread.
        """

    def hung(self, seconds: float, job: Job | None, stack: str, *, process_ends: bool) -> None:
        """The event loop has been blocked for LOOP_TIMEOUT, by the task ``job`` if it is known.

        The process ends, or other workers take over the tasks. From the watchdog's thread.
        """

    def stalled(self, seconds: float, queue_name: str) -> None:
        """For so many seconds the worker has claimed nothing, though it has free slots and tasks wait for
        them, in this queue for one.
        """

    def unstalled(self) -> None:
        """The worker claims again what waits for it."""


# Observes nothing: for parts that stand alone.
NULL = Observer()


class Events(Observer):
    """Passes every event on to its subscribers, in their order. One that raises is logged, and the others
    are called all the same.

    ``watches_tasks`` is whether a subscriber does: without one, an event of a task costs a look at it. The
    same with ``watches_batches``.
    """

    def __init__(self, *subscribers: Observer) -> None:
        self._subscribers: tuple[Observer, ...] = ()
        self.watches_tasks = self.watches_batches = False
        for subscriber in subscribers:
            self.subscribe(subscriber)

    def subscribe(self, observer: Observer) -> None:
        """Pass events on to ``observer``, too."""
        self._set((*self._subscribers, observer))

    def unsubscribe(self, observer: Observer) -> None:
        """Pass no more events on to ``observer``."""
        self._set(tuple(one for one in self._subscribers if one is not observer))

    def _set(self, subscribers: tuple[Observer, ...]) -> None:
        self._subscribers = subscribers
        self.watches_tasks = any(one.watches_tasks for one in subscribers)
        self._of_batches = tuple(one for one in subscribers if one.watches_batches)
        self.watches_batches = bool(self._of_batches)

    def _each(self, event: Callable[[Observer], None]) -> None:
        for subscriber in self._subscribers:
            try:
                event(subscriber)
            except Exception:
                logger.exception("An observer failed observer=%r", type(subscriber).__qualname__)

    def claimed(self, number: int, seconds: float) -> None:
        self._each(lambda one: one.claimed(number, seconds))

    def wrote(self, executions: Sequence[Execution], seconds: float) -> None:
        for subscriber in self._of_batches:  # without a call of its own: under a light load a batch is a task
            try:
                subscriber.wrote(executions, seconds)
            except Exception:
                logger.exception("An observer failed observer=%r", type(subscriber).__qualname__)

    def lost(self, job: Job, error: str) -> None:
        self._each(lambda one: one.lost(job, error))

    def started(self, job: Job) -> None:
        self._each(lambda one: one.started(job))

    def finished(self, job: Job, outcome: Outcome, seconds: float | None, wait: float | None) -> None:
        self._each(lambda one: one.finished(job, outcome, seconds, wait))

    def retried(self, job: Job, outcome: Retried, seconds: float | None) -> None:
        self._each(lambda one: one.retried(job, outcome, seconds))

    def fenced(self, job: Job, outcome: Outcome) -> None:
        self._each(lambda one: one.fenced(job, outcome))

    def released(self, number: int, reason: ReleaseReason) -> None:
        self._each(lambda one: one.released(number, reason))

    def rescued(self, job: Job) -> None:
        self._each(lambda one: one.rescued(job))

    def ticked(self, schedule: str, tick: datetime, late: float) -> None:
        self._each(lambda one: one.ticked(schedule, tick, late))

    def tick_skipped(self, schedule: str, tick: datetime, holder: UUID) -> None:
        self._each(lambda one: one.tick_skipped(schedule, tick, holder))

    def ticks_missed(self, schedule: str, since: datetime) -> None:
        self._each(lambda one: one.ticks_missed(schedule, since))

    def schedule_failed(self, schedule: str, error: str, failures: int) -> None:
        self._each(lambda one: one.schedule_failed(schedule, error, failures))

    def schedule_recovered(self, schedule: str) -> None:
        self._each(lambda one: one.schedule_recovered(schedule))

    def registered(self, worker_id: UUID) -> None:
        self._each(lambda one: one.registered(worker_id))

    def renewed(self, seconds: float) -> None:
        self._each(lambda one: one.renewed(seconds))

    def lease_lost(self, worker_id: UUID, running: int, reason: LeaseLoss) -> None:
        self._each(lambda one: one.lease_lost(worker_id, running, reason))

    def outlasted(self, job: Job, lane: Lane, stack: str) -> None:
        self._each(lambda one: one.outlasted(job, lane, stack))

    def returned(self, job: Job) -> None:
        self._each(lambda one: one.returned(job))

    def worn(self, stuck: int) -> None:
        self._each(lambda one: one.worn(stuck))

    def outage_began(self, part: str, error: Exception) -> None:
        self._each(lambda one: one.outage_began(part, error))

    def outage_ended(self, part: str, seconds: float) -> None:
        self._each(lambda one: one.outage_ended(part, seconds))

    def reconnected(self, part: str) -> None:
        self._each(lambda one: one.reconnected(part))

    def limit_unknown(self, name: str, task_path: str, reason: str) -> None:
        self._each(lambda one: one.limit_unknown(name, task_path, reason))

    def loop_blocked(self, seconds: float, task_name: str | None, stack: str) -> None:
        self._each(lambda one: one.loop_blocked(seconds, task_name, stack))

    def hung(self, seconds: float, job: Job | None, stack: str, *, process_ends: bool) -> None:
        self._each(lambda one: one.hung(seconds, job, stack, process_ends=process_ends))

    def stalled(self, seconds: float, queue_name: str) -> None:
        self._each(lambda one: one.stalled(seconds, queue_name))

    def unstalled(self) -> None:
        self._each(lambda one: one.unstalled())


class EventLog(Observer):
    """Writes events into the worker's log."""

    def fenced(self, job: Job, outcome: Outcome) -> None:
        logger.warning(
            "Result rejected (fenced): this worker no longer owns the task id=%s path=%r outcome=%s",
            job.id,
            job.task_path,
            type(outcome).__name__,
        )

    def released(self, number: int, reason: ReleaseReason) -> None:
        if reason == "claim without a reply":
            logger.warning("Released tasks whose claim had no reply count=%d", number)

    def rescued(self, job: Job) -> None:
        logger.warning(
            "Rescued a task of a lost worker id=%s path=%r status=%s", job.id, job.task_path, job.status
        )

    def tick_skipped(self, schedule: str, tick: datetime, holder: UUID) -> None:
        logger.info(
            "Left out a tick, because another task has its key schedule=%r tick=%s id=%s",
            schedule,
            tick.isoformat(),
            holder,
        )

    def ticks_missed(self, schedule: str, since: datetime) -> None:
        logger.info("Left out ticks that came too long ago schedule=%r since=%s", schedule, since.isoformat())

    def schedule_failed(self, schedule: str, error: str, failures: int) -> None:
        if failures == 1:
            logger.error(
                "A schedule cannot be enqueued; it is tried again later schedule=%r error=%r", schedule, error
            )

    def schedule_recovered(self, schedule: str) -> None:
        logger.info("A schedule is enqueued again schedule=%r", schedule)

    def lease_lost(self, worker_id: UUID, running: int, reason: LeaseLoss) -> None:
        logger.error(
            "The worker lost its lease: it cancels its tasks and registers again "
            "worker_id=%s reason=%s running=%d",
            worker_id,
            reason,
            running,
        )

    def outlasted(self, job: Job, lane: Lane, stack: str) -> None:
        logger.warning(
            "A task goes on after its timeout; its attempt is over lane=%s id=%s path=%r\n%s",
            lane,
            job.id,
            job.task_path,
            stack,
        )

    def returned(self, job: Job) -> None:
        logger.info("A task that went on after its timeout has ended id=%s path=%r", job.id, job.task_path)

    def worn(self, stuck: int) -> None:
        logger.warning(
            "Threads are stuck in tasks that have outlasted their timeouts; only a new process frees them "
            "stuck=%d",
            stuck,
        )

    def limit_unknown(self, name: str, task_path: str, reason: str) -> None:
        logger.warning(
            "No code here declares a limit; its tasks wait for workers whose code does "
            "name=%r path=%r reason=%r",
            name,
            task_path,
            reason,
        )

    def loop_blocked(self, seconds: float, task_name: str | None, stack: str) -> None:
        logger.warning("The event loop is blocked seconds=%.1f task=%r\n%s", seconds, task_name, stack)

    def hung(self, seconds: float, job: Job | None, stack: str, *, process_ends: bool) -> None:
        logger.critical(
            "The event loop hangs; %s seconds=%.0f id=%s path=%r\n%s",
            "the process ends" if process_ends else "other workers take over its tasks",
            seconds,
            None if job is None else job.id,
            None if job is None else job.task_path,
            stack,
        )

    def stalled(self, seconds: float, queue_name: str) -> None:
        logger.warning(
            "Tasks wait, and the worker claims none, though it has free slots seconds=%.0f queue=%r",
            seconds,
            queue_name,
        )

    def unstalled(self) -> None:
        logger.info("The worker claims tasks again, or none waits")
