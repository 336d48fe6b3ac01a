"""Settling: the statements that decide which of some calls with unique keys is stored."""

from collections import deque
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from django.db import utils

from ..db.errors import Code, sqlstate
from ..rows import Job, NewJob, Status, UniqueJob, time_of
from .store import Store
from .wakeups import Wakeup, wakeups_of

__all__ = ["STORED", "Duplicates", "Limits", "Settled", "Settling", "explained", "wakeups_after"]

# How often in a row a key may change hands between a statement's snapshot and its insert, before it is an
# error. Each time another session has taken and freed it within about a millisecond.
MOST_CHANGES = 20


class Settled(NamedTuple):
    """What became of one call. ``holder``: the task that holds its key; None: it was stored. ``is_replaced``:
    the holder has taken the call's arguments, and was ``before`` until then. ``is_locked``: the transaction
    has locked the holder until its end. ``error``: none of this, but an error of its own."""

    holder: Job | None = None
    is_replaced: bool = False
    before: Job | None = None
    is_locked: bool = False
    error: Exception | None = None

    def is_refused(self, on_conflict: str) -> bool:
        """Whether the call is to raise, by its rule: a holder may be of a kind that can't be replaced."""
        return self.holder is not None and not self.is_replaced and on_conflict != "return"


STORED = Settled()


class Duplicates(Exception):  # it rolls back, and is no error
    """One of many calls is refused: to be rolled back, because all are stored or none."""

    def __init__(self, settled: list[Settled]) -> None:
        super().__init__()
        self.settled = settled


class Limits(NamedTuple):
    """Seconds that a statement may wait for locks, and for its answer (None: the driver's default)."""

    lock: float
    answer: float | None = None


def waits(job: Job) -> bool:
    """Whether the task waits to be run, for the first time or again."""
    return job.status in (Status.SCHEDULED, Status.READY)


class Settling:
    """Settles calls as if they had come one after another.

    All of ``jobs`` have one backend; those of different keys that replace waiting tasks have one template and
    one rule, too. ``run()`` may be called again after an error, but not after the rollback of what it has
    written.

    in_transaction: others see the tasks later than these statements, at a commit. A duplicate then locks the
    holder that it relies on, if that holds its key only until it starts: it must not start before the commit.
    """

    def __init__(
        self, jobs: Sequence[NewJob], moved_tasks: Mapping[str, str], *, in_transaction: bool
    ) -> None:
        self._backend = jobs[0].template.backend
        self._moved_tasks = moved_tasks
        self._in_transaction = in_transaction
        self._plain = [job for job in jobs if not isinstance(job, UniqueJob)]
        self._waiting: dict[str, deque[tuple[int, UniqueJob]]] = {}  # by key, in the order of the calls
        for number, job in enumerate(jobs):
            if isinstance(job, UniqueJob):
                self._waiting.setdefault(job.key, deque()).append((number, job))
        self.settled: list[Settled] = [STORED] * len(jobs)
        self.has_failed = False  # one of the calls is to raise
        self._tried: UniqueJob | None = None  # whose values the last statement has sent, of calls of one key

    async def run(self, store: Store, limits: Limits) -> list[Settled]:
        """Settle all calls over ``store``."""
        if self._plain:
            await store.insert_jobs(self._plain, timeout=limits.answer)
            self._plain = []
        changes = 0
        while self._waiting:
            before = self._left()
            await self._settle_some(store, limits)
            changes = changes + 1 if self._left() == before else 0
            if changes >= MOST_CHANGES:
                raise utils.OperationalError(
                    f"The unique key {next(iter(self._waiting))!r:.200} has changed hands {MOST_CHANGES} "
                    "times during one enqueue."
                )
        return self.settled

    async def run_all_or_none(self, store: Store, limits: Limits) -> list[Settled]:
        """The same for calls of which none is to be stored if one is to raise: raises Duplicates then, to be
        rolled back."""
        settled = await self.run(store, limits)
        if self.has_failed:
            raise Duplicates(settled)
        return settled

    @property
    def waiting(self) -> list[UniqueJob]:
        """The calls that aren't settled."""
        return [job for calls in self._waiting.values() for _, job in calls]

    def keep(self, ids: Container[str]) -> None:
        """Leave out the calls whose tasks aren't among ``ids``, because nobody waits for them."""
        for key, waiting in list(self._waiting.items()):
            kept = deque(each for each in waiting if each[1].id in ids)
            if kept:
                self._waiting[key] = kept
            else:
                del self._waiting[key]

    def note_stored(self) -> None:
        """Note that the first call that waits was stored, by a statement whose reply was lost."""
        self._settle(next(iter(self._waiting)), STORED)

    def note_refused(self, error: Exception) -> None:
        """Note that ``run()`` has raised an error that isn't transient, for calls of one key: the one whose
        values were sent fails with it, and the others needn't."""
        if self._tried is None:
            raise error
        self.fail(self._tried, error)

    def fail(self, job: UniqueJob, error: Exception) -> None:
        """Settle a call that waits with an error of its own."""
        waiting = self._waiting[job.key]
        place = next(each for each in waiting if each[1] is job)
        waiting.remove(place)
        if not waiting:
            del self._waiting[job.key]
        self.settled[place[0]] = Settled(error=error)

    def _left(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _first(self, key: str) -> UniqueJob:
        return self._waiting[key][0][1]

    def _settle(self, key: str, settled: Settled) -> None:
        """Settle the first call of a key that waits."""
        waiting = self._waiting[key]
        number, job = waiting.popleft()
        self.settled[number] = settled
        if not waiting:
            del self._waiting[key]
        if settled.is_refused(job.rule.on_conflict):
            self.has_failed = True

    async def _settle_some(self, store: Store, limits: Limits) -> None:
        """Settle at least one call of each key, unless the key changes hands meanwhile."""
        stored, held = await self._insert(store, limits)
        # A holder with the call's own id was stored by a try whose reply was lost.
        mine = [key for key, holder in held.items() if str(holder.id) == self._first(key).id]
        for key in (*stored, *mine):
            self._settle(key, STORED)
        for key in mine:
            del held[key]
        replaceable = {key: holder for key, holder in held.items() if self._may_replace(holder, key)}
        if replaceable:
            await self._replace(store, replaceable, limits)
        relied_on = {key: Settled(holder) for key, holder in held.items() if key not in replaceable}
        if self._in_transaction:
            relied_on = await self._lock_waiting(store, relied_on, limits)
        for key, settled in relied_on.items():
            self._settle(key, settled)
            # It is the holder for those that came next, too, whatever their own rule says.
            while key in self._waiting and self._first(key).rule.on_conflict != "replace":
                self._settle(key, settled)

    async def _insert(self, store: Store, limits: Limits) -> tuple[set[str], dict[str, Job]]:
        """Try to store the first call of each key. Returns the keys stored, and the holders of others."""
        lock, answer = limits
        if len(self._waiting) == 1:
            (key,) = self._waiting
            self._tried = self._first(key)
            is_stored, holder = await store.insert_unique_job(self._tried, lock_timeout=lock, timeout=answer)
            return ({key} if is_stored else set()), ({} if holder is None else {key: holder})
        firsts = [self._first(key) for key in self._waiting]
        stored = await store.insert_unique_jobs(firsts, lock_timeout=lock, timeout=answer)
        others = self._waiting.keys() - stored
        if not others:
            return stored, {}
        held = await store.free_unique_keys(self._backend, others, lock_timeout=lock, timeout=answer)
        return stored, held

    def _may_replace(self, holder: Job, key: str) -> bool:
        first = self._first(key)
        path = holder.task_path
        return (
            first.rule.on_conflict == "replace"
            and waits(holder)
            and first.template.task_path in (path, self._moved_tasks.get(path))
        )

    async def _replace(self, store: Store, held: Mapping[str, Job], limits: Limits) -> None:
        """Give each holder the arguments of the last of the calls that wait, as far as they are alike."""
        calls = {key: self._alike(key) for key in held}
        self._tried = next(iter(calls.values()))[-1]
        replaced = await store.replace_waiting_jobs(
            [holder.id for holder in held.values()],
            [calls[key][-1] for key in held],
            lock_timeout=limits.lock,
            timeout=limits.answer,
        )
        for key, after in replaced.items():
            for _ in calls[key]:
                replaced_by = Settled(
                    after, is_replaced=True, before=held[key], is_locked=self._in_transaction
                )
                self._settle(key, replaced_by)

    def _alike(self, key: str) -> list[UniqueJob]:
        """The calls of a key that wait, up to the first one of another task or rule."""
        first = self._first(key)
        alike = []
        for _, job in self._waiting[key]:
            if job.rule != first.rule or job.template.task_path != first.template.task_path:
                break
            alike.append(job)
        return alike

    async def _lock_waiting(
        self, store: Store, relied_on: Mapping[str, Settled], limits: Limits
    ) -> dict[str, Settled]:
        """Lock the holders that must not start before the commit; those that have started are left out."""
        to_lock = [
            key
            for key, (holder, *_) in relied_on.items()
            if holder is not None and self._first(key).rule.waiting and waits(holder)
        ]
        if not to_lock:
            return dict(relied_on)
        lock, answer = limits
        locked = await store.lock_unique_keys(self._backend, to_lock, lock_timeout=lock, timeout=answer)
        return {key: settled for key, settled in relied_on.items() if key not in to_lock} | {
            key: Settled(holder, is_locked=True) for key, holder in locked.items()
        }


def wakeups_after(jobs: Sequence[NewJob], settled: Sequence[Settled]) -> list[Wakeup]:
    """Wake-ups for the tasks that were stored, for those that were replaced and may be due earlier, and for
    those that are READY and were locked until the commit: claims have passed them over meanwhile."""
    stored = []
    held: set[Wakeup] = set()
    for job, (holder, _, before, is_locked, _) in zip(jobs, settled, strict=True):
        if holder is None:
            stored.append(job)
            continue
        is_replaced = before is not None
        was_locked = is_locked or (is_replaced and len(jobs) > 1)  # many are a transaction
        is_earlier = before is not None and not _is_known(before, holder, job.enqueued_at)
        if is_earlier or (was_locked and holder.status == Status.READY):
            held.add(_wakeup_of(holder))
    return [*wakeups_of(stored), *held]


def _is_known(before: Job, after: Job, now: datetime) -> bool:
    """Whether the workers know of a time that isn't later than the task's: they look then, and find it."""
    if after.status == Status.READY or before.status == Status.READY:
        return after.status == before.status
    known, due = time_of(before.run_after), time_of(after.run_after)
    # A past time is what the caller asked for; the task waits for a retry, of which only one worker knows.
    return known is not None and due is not None and now < known <= due


def _wakeup_of(job: Job) -> Wakeup:
    if job.status == Status.READY:
        return Wakeup(job.backend, job.queue_name, lane=job.lane, keyed=job.limit_key is not None)
    due = time_of(job.run_after)
    return Wakeup(job.backend, job.queue_name, None if due is None else due.timestamp())


def explained(error: utils.Error, jobs: Iterable[NewJob], within: float) -> utils.Error:
    """The error to raise for calls that have failed: of a lock, one that says what has been waited for."""
    if sqlstate(error) != Code.LOCK_TIMEOUT:
        return error
    keys = {job.key for job in jobs if isinstance(job, UniqueJob)}
    what = (
        f"the unique key {next(iter(keys))!r:.200}" if len(keys) == 1 else f"one of {len(keys)} unique keys"
    )
    return utils.OperationalError(
        f"Another transaction that has enqueued, or locked, a task with {what} hasn't ended within "
        f"COMMAND_TIMEOUT ({within:g} s)."
    )
