"""Protocols: the methods that one part of the worker needs of another part, which it may not import."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from ..rows import Job, Lane
from ..store.store import Store
from ..store.wakeups import Wakeup
from ..store.workers import Renewal
from .execution import Execution, Reason

if TYPE_CHECKING:
    import asyncio

__all__ = [
    "Announces",
    "AnnouncesLost",
    "Beats",
    "Claims",
    "Finishes",
    "GivesBack",
    "HandlesHang",
    "HasCapacity",
    "HasFreeThreads",
    "HasSlots",
    "HasStuckThreads",
    "HoldsClaims",
    "KeepsLease",
    "KnowsStuckThreads",
    "KnowsWork",
    "Leases",
    "LooksForCancelled",
    "LooksForDue",
    "MeetsQueues",
    "PassesOn",
    "Runs",
    "Starts",
    "TakesIn",
    "TakesTurns",
    "Tells",
    "TriesKeys",
    "Wakes",
    "WakesAfterRescue",
]


class Leases(Protocol):
    """The worker's lease (``Lease``)."""

    @property
    def worker_id(self) -> UUID | None:
        """The id of the worker's row; None while the worker has no lease."""

    def current_id(self) -> UUID | None:
        """Return the id under which tasks may be claimed and started now, if there is one."""

    def holds(self, worker_id: UUID | None) -> bool:
        """Return whether the lease under this id lasts still."""

    def owns(self, job: Job) -> bool:
        """Return whether ``job`` was claimed under the lease that lasts now."""

    def should_remain(self) -> float:
        """Return the seconds that the lease has left by the database's clock, if that hasn't stepped."""

    def may_rescue(self) -> bool:
        """Return whether other workers that are silent can be taken for dead."""


class KeepsLease(Protocol):
    """The part that the heartbeat reports to. The methods are called on the worker's loop, unless a
    docstring names another thread."""

    def is_woken(self) -> bool | None:
        """Return whether NOTIFY wakes the worker at the moment; None if it claims no more, because it stops.
        Called in the heartbeat's thread.
        """

    def stuck_threads(self) -> int:
        """Return how many threads are stuck in tasks that have outlasted their time. Called in the
        heartbeat's thread.
        """

    def report(self) -> str | None:
        """Return what the worker reports of itself, as JSON; None: nothing new. Called in the heartbeat's
        thread.
        """

    def registered(self) -> None:
        """The worker has a lease under a new id, or renewals succeed again after some that failed."""

    def renewed(self, renewal: Renewal, ahead: float) -> None:
        """The lease was renewed. ``ahead``: seconds by which the database's clock is ahead of
        ``time.monotonic()``.
        """

    def lost(self, worker_id: UUID) -> None:
        """The lease under this id has ended, because the worker's row has gone."""

    def failed(self) -> None:
        """A try to renew the lease, or to register, has failed."""

    def crowded(self) -> None:
        """The server has no connection left for the heartbeat."""


class Beats(Protocol):
    """The heartbeat."""

    def beat_now(self) -> None:
        """Renew the lease now, because what is stored with it has changed. May be called in any thread."""

    def renounce(self) -> UUID | None:
        """End the lease; the heartbeat registers under a new id as soon as it can.

        Returns the id of the lease that was ended; None if there was none.
        """

    def suspend(self) -> None:
        """Let the lease run out: renew it no more until ``resume()``. May be called in any thread."""

    def resume(self) -> None:
        """Renew the lease again. May be called in any thread."""

    def stop(self, last_words: Callable[[Store], Awaitable[None]] | None = None) -> "asyncio.Future[None]":
        """Stop renewing, once ``last_words`` has ended on the heartbeat's loop; the future is done then."""

    def join(self, timeout: float) -> None:
        """Wait in another thread for the heartbeat's to end, for at most so many seconds."""


class HasCapacity(Protocol):
    """The threads of sync tasks."""

    def capacity(self) -> int:
        """Return how many tasks can run at a time: fewer than wanted while the machine refuses threads."""


class HasStuckThreads(Protocol):
    """The threads of sync tasks, of which some don't come back at their tasks' time limits."""

    @property
    def stuck(self) -> int:
        """How many haven't come back. May be asked in any thread."""

    @property
    def usable(self) -> int:
        """How many sync tasks can run at a time beside them."""

    @property
    def stuck_changed(self) -> "asyncio.Event":
        """Is set when ``stuck`` has changed."""


class KnowsStuckThreads(Protocol):
    """The part that ends attempts at their time limits (``Deadlines``)."""

    def stuck_for(self) -> list[float]:
        """Return for how many seconds each thread is stuck in a task whose time is over."""


class KnowsWork(Protocol):
    """The part that knows what the worker has to do (``Ownership``)."""

    def is_idle(self) -> bool:
        """Return whether nothing runs, or waits to be written."""


class HasSlots(Protocol):
    """The worker's slots (``Slots``)."""

    def has(self, lane: Lane) -> bool:
        """Return whether the worker has slots in the lane, free or taken."""

    def free(self, lane: Lane) -> int:
        """Return how many more tasks may run in the lane; negative where more run than it has slots."""

    def has_all_threads(self) -> bool:
        """Return whether the machine gives the worker as many threads as it has slots for."""

    def take(self, lane: Lane) -> None:
        """Count one more task in the lane."""

    def release(self, lane: Lane) -> None:
        """Count one task less in the lane."""

    async def take_again(self, lane: Lane) -> None:
        """Wait until the lane has a free slot, and take it."""


class HasFreeThreads(Protocol):
    """Where claimed jobs of the thread lane wait (``PrefetchBuffer``)."""

    def free(self) -> int:
        """Return the threads for which no job waits; negative where more wait."""


class Starts(Protocol):
    """Where claimed jobs are started."""

    @property
    def running(self) -> set[Execution]:
        """The executions that have begun and not ended. May be copied in any thread."""

    def start(self, job: Job) -> bool:
        """Begin to run ``job``; returns whether it has ended by then."""


class Runs(Starts, Protocol):
    """The runner."""

    def cancel(self, execution: Execution, reason: Reason) -> bool:
        """Ask an execution to end; returns False where it can't be asked, as it runs in a thread and joins no
        task there.
        """

    def abandon(self, execution: Execution) -> None:
        """Don't wait for an execution any longer: its slot is free, and its end is ignored."""


class Announces(Protocol):
    """The part that runs the receivers of signals."""

    @property
    def pending(self) -> "set[asyncio.Task[None]]":
        """The calls of receivers that haven't ended."""

    async def all_announced(self) -> None:
        """Wait until all receivers have ended."""


class Finishes(Protocol):
    """The finisher."""

    @property
    def announcer(self) -> Announces:
        """The part that sends ``task_finished``."""

    @property
    def pending(self) -> set[Execution]:
        """The executions whose outcomes aren't written yet. May be copied in any thread."""

    @property
    def crowded(self) -> bool:
        """Whether so much waits to be written that nothing more should be run for now."""

    def finish(self, execution: Execution) -> None:
        """Write the execution's outcome soon; returns at once."""

    async def wait_idle(self, timeout: float) -> bool:
        """Wait until all outcomes are written; returns whether that was within ``timeout`` seconds."""


class GivesBack(Protocol):
    """Where jobs go that the worker has claimed and doesn't run."""

    def give_back(self, job: Job) -> None:
        """Make ``job`` READY again, without an attempt spent."""


class HoldsClaims(Protocol):
    """The part that knows the worker's claims (``Ownership``)."""

    def held_claims(self) -> set[UUID]:
        """Return the ids of all claims that the worker holds; claims under way are among them."""

    def claimed_at(self) -> float:
        """Return when the last claim ended that has taken tasks, or may have, by ``time.monotonic()``;
        ``-inf`` if there was none.
        """


class AnnouncesLost(Protocol):
    """Where news of tasks goes that failed without an execution (``LostTasks``)."""

    def announce(self, job: Job, error: Exception) -> None:
        """Log that ``job`` is FAILED by ``error``, and send ``task_finished`` soon."""

    async def wait_for_receivers(self, most: int, timeout: float) -> None:
        """Wait until so many receivers run at most, but no more than ``timeout`` seconds."""


class TakesIn(Protocol):
    """The part that sends claims and starts their jobs (``Intake``)."""

    @property
    def claiming(self) -> set[UUID | None]:
        """The ids of the claims whose jobs haven't all been started."""

    @property
    def claimed_at(self) -> float:
        """When the last claim ended that has taken tasks, or may have, by ``time.monotonic()``; ``-inf`` if
        there was none.
        """

    def waiting(self) -> list[Job]:
        """Return the claimed jobs that haven't been started. May be called in any thread."""

    def start_no_more(self) -> None:
        """Give back what a claim under way brings."""


class Claims(Protocol):
    """The claimer."""

    @property
    def is_stopping(self) -> bool:
        """Whether ``stop()`` was called. May be asked in any thread."""

    def wake(self, wakeup: Wakeup | None = None) -> None:
        """Look for READY tasks: in the queue of ``wakeup``, or in all."""

    def look_back(self, since: float) -> None:
        """Look for tasks with a place in their queue as of ``since`` (epoch seconds) or later."""

    def try_key(self, job: Job) -> None:
        """The key of ``job`` has a free place, or ``job`` is READY again: claim, if it has a limit."""

    def suspect(self) -> None:
        """Look for tasks that have been in two crashes."""

    def slot_freed(self, job: Job | None = None) -> None:
        """A lane has room again; the outcome of ``job`` is written, or it waits for other tasks."""

    async def stop(self) -> None:
        """Claim no more; returns when no claim is under way."""

    def abort(self) -> None:
        """Give up a claim that has no reply."""


class MeetsQueues(Protocol):
    """The part that claims tasks with limits (``KeyedClaims``)."""

    def meet(self, queue_name: str, lane: Lane) -> None:
        """Note that a queue has tasks with limits."""


class LooksForDue(Protocol):
    """The promoter; and the ticker."""

    def look(self, due: float | None = None) -> None:
        """Look for tasks and ticks that are due, now or at ``due`` (epoch seconds)."""


class LooksForCancelled(Protocol):
    """The canceller."""

    def look(self) -> None:
        """Look for running tasks that are to be cancelled."""


class Tells(Protocol):
    """Where news goes of tasks that somebody awaits."""

    def tell(self, ids: Collection[UUID]) -> None:
        """Notify that these tasks have changed."""


class Wakes(Protocol):
    """Where news of READY tasks goes."""

    def wake(self, wakeups: Sequence[Wakeup], *, since: float | None = None) -> None:
        """Wake this worker and the others; ``since``: the earliest place of the tasks in their queues (epoch
        seconds), where that is in the past.
        """

    def wake_self(self) -> None:
        """Wake this worker alone, for tasks in all of its queues."""


class PassesOn(Protocol):
    """Where wake-ups go that this worker can't answer alone."""

    def pass_on(self, wakeup: Wakeup) -> None:
        """Wake two other workers for READY tasks of a lane; all, once enough workers have passed it on."""

    def pass_turn_on(self) -> None:
        """Have all workers look for tasks in all of their queues."""


class TriesKeys(Protocol):
    """Where news goes of tasks that hold their limits' places no more."""

    def try_keys(self, jobs: Iterable[Job]) -> None:
        """Have tasks claimed that have the limits' keys of ``jobs``: these have ended, or are READY again."""


class WakesAfterRescue(Tells, TriesKeys, Protocol):
    """Where news of rescued tasks goes."""

    def wake_after_rescue(self, wakeups: Sequence[Wakeup]) -> None:
        """Wake this worker and the others, for tasks that may have been in crashes."""


class TakesTurns(Protocol):
    """The worker's turn in what one worker at a time does (``Turn``)."""

    def take_within(self, seconds: float) -> None:
        """Have this worker act within so many seconds, whoever's turn it is."""


class HandlesHang(Protocol):
    """The part that acts when the loop hangs."""

    def hung(self, seconds: float, task: "asyncio.Task[Any] | None") -> None:
        """The loop has been blocked for so long, in ``task`` if in one. Called in the watchdog's thread."""

    def back(self) -> None:
        """The loop goes on after all. Called on the loop."""
