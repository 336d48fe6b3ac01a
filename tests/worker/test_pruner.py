"""The pruner in a worker, what people see of it, and `manage.py aiotasks prune`."""

import asyncio
import logging
import math
from datetime import timedelta
from io import StringIO
from typing import Any
from uuid import UUID, uuid4

import pytest
from asgiref.sync import sync_to_async
from django.core.management import CommandError, call_command
from django.db import utils
from django.tasks import TaskResultStatus
from django.tasks.exceptions import TaskResultDoesNotExist

import aiotasks
from aiotasks.store.loop import close_pools
from aiotasks.store.outcomes import Pruned
from aiotasks.store.store import Store
from aiotasks.worker import engine
from aiotasks.worker.maintenance import pruner
from aiotasks.worker.maintenance.pruner import Pruner
from tests.site import default_task_backend, running_store

from . import tasks
from .harness import Configure, Ledger, until

HOUR = 3600.0


def finish(ledger: Ledger, number: int, *, hours: float, status: str = "SUCCESSFUL") -> None:
    """Rows that were finished so many hours ago."""
    ledger.connection.execute(
        """
        INSERT INTO aiotasks_task (
            id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
            crashes, enqueued_at, ready_at, finished_at
        )
        SELECT gen_random_uuid(), 'default', 'default', 'tests.worker.tasks.add', 'loop', 0, %s, '[]', '{}',
            '{}', '{}', 0, now(), now(), now() - make_interval(hours => %s)
        FROM generate_series(1, %s)
        """,
        [status, hours, number],
    )


async def test_a_worker_prunes(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    configure(KEEP_SUCCESSFUL=timedelta(hours=2), KEEP_FAILED=None)
    caplog.set_level(logging.DEBUG, "aiotasks.worker")
    monkeypatch.setattr(engine, "PRUNE_INTERVAL", 0.02)
    finish(ledger, 3, hours=3)
    finish(ledger, 2, hours=1)
    finish(ledger, 1, hours=1000, status="FAILED")
    async with aiotasks.Worker():
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 2, "FAILED": 1})
        await until(lambda: "Pruned finished tasks backend='default' count=3" in caplog.text)
        result = await tasks.add.aenqueue(1, 2)
        await until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
        ledger.connection.execute("UPDATE aiotasks_task SET finished_at = now() - interval '1 day'")
        await until(lambda: ledger.statuses() == {"FAILED": 1})
    with pytest.raises(TaskResultDoesNotExist):
        await result.arefresh()
    with pytest.raises(TaskResultDoesNotExist):
        await tasks.add.aget_result(result.id)
    with pytest.raises(TaskResultDoesNotExist):
        await sync_to_async(result.refresh)()
    assert result.status is TaskResultStatus.READY  # as it was last seen


async def test_a_tasks_keep_result(configure: Configure, ledger: Ledger) -> None:
    kept = tasks.add.using(keep_result=timedelta(days=2))
    assert kept.keep_result == 2 * 86_400.0
    result = await kept.aenqueue(1, 2)
    ever = await kept.using(keep_result=math.inf).aenqueue(1, 2)
    async with aiotasks.Worker():
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 2})
    found = await default_task_backend.aget_result(result.id)
    assert found.task == kept
    assert kept.keep_result == 2 * 86_400.0
    for days, left in ((1.9, 2), (2.1, 1), (10_000, 1)):
        ledger.connection.execute(
            "UPDATE aiotasks_task SET finished_at = now() - make_interval(hours => %s)", [int(days * 24)]
        )
        await pruner_of(KEEP_SUCCESSFUL=0.0).run_once()
        assert ledger.value("SELECT count(*) FROM aiotasks_task") == left
    await ever.arefresh()
    await close_pools()


def pruner_of(**values: Any) -> Pruner:
    return Pruner(
        running_store(),
        backend="default",
        keep_successful=values.get("KEEP_SUCCESSFUL", HOUR),
        keep_failed=values.get("KEEP_FAILED", HOUR),
    )


class Deletes:
    """In place of the store and the clock. A DELETE takes ``wait`` seconds, and ``cost`` seconds a task.

    ``rate`` tasks a second were finished ``for_`` seconds long, and go on to be finished unless ``ended``.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        rate: float,
        cost: float,
        for_: float,
        wait: float = 0.0,
        ended: bool = False,
    ) -> None:
        self.now = 1_000_000.0
        self.pauses: list[float] = []  # by what the DELETEs before have taken
        self.began_at: list[float] = []
        self.limits: list[int] = []
        self.fails_before = -math.inf  # DELETEs that begin there
        self._rate, self._cost, self._wait = rate, cost, wait
        self.deleted_to = self.now - for_
        self._end = self.now if ended else math.inf
        monkeypatch.setattr(pruner, "asyncio", self)
        monkeypatch.setattr(pruner, "time", self)

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds / self._taken)
        self.now += seconds

    async def prune_jobs(self, backend: str, status: str, keep: float, since: float, limit: int) -> Pruned:
        self.began_at.append(since)
        if since < self.fails_before:
            raise utils.OperationalError("timeout")
        self.limits.append(limit)
        number = min(limit, int(self.backlog()))
        span = number / self._rate
        self.deleted_to += span
        self._taken = self._wait + number * self._cost
        self.now += self._taken
        return Pruned(number, self.deleted_to if number else since, span)

    async def prune_kept_jobs(self, backend: str, since: float, limit: int) -> Pruned:
        return Pruned(0, since, 0.0)

    def backlog(self) -> float:
        """How many tasks are to be deleted."""
        return (min(self.now, self._end) - self.deleted_to) * self._rate

    def fade(self, seconds: float) -> None:
        """No task was finished for so long."""
        self.now += seconds
        self.deleted_to = self.now

    def slow_down(self, rate: float) -> None:
        """Only so many tasks were finished since the last DELETE, for an hour."""
        self._rate = rate
        self.deleted_to, self.now = self.now, self.now + HOUR

    def pruner(self) -> Pruner:
        return Pruner(self, backend="default", keep_successful=HOUR, keep_failed=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rate", "cost", "wait"),
    [(100, 2e-6, 0), (3_000, 1.5e-5, 0), (30_000, 2e-6, 0), (30_000, 1.5e-5, 0), (10_000, 2e-6, 0.05)],
)
async def test_it_keeps_up_with_what_is_finished(
    monkeypatch: pytest.MonkeyPatch, rate: float, cost: float, wait: float
) -> None:
    """As long as a DELETE takes less than half of the time in which its tasks were finished."""
    deletes = Deletes(monkeypatch, rate=rate, cost=cost, for_=600.0, wait=wait)
    one = deletes.pruner()
    for _ in range(20):
        soon = await one.run_round()
        waiting = min(60.0, soon or 60.0)
        assert deletes.backlog() < pruner.LARGEST_BATCH
        deletes.now += waiting
    assert deletes.backlog() <= max(pruner.ROUND_TASKS, pruner.SHORTEST_INTERVAL * rate) * 1.2


@pytest.mark.parametrize(("rate", "factor"), [(100, 4.0), (30_000, 0.5 / 0.3 - 1), (1_000_000, 0.5)])
async def test_a_pause_is_long_where_there_is_time(
    monkeypatch: pytest.MonkeyPatch, rate: float, factor: float
) -> None:
    """A fifth of a connection for what was finished slowly, never more than two thirds."""
    deletes = Deletes(monkeypatch, rate=rate, cost=1e-5, for_=10_000 / rate, ended=True)
    await deletes.pruner().run_once()
    assert deletes.pauses == pytest.approx([factor] * len(deletes.pauses))


async def test_a_batch_is_large_where_small_ones_would_not_keep_up(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Deletes(monkeypatch, rate=10_000, cost=2e-6, for_=2.0, wait=0.05, ended=True)
    await slow.pruner().run_once()
    assert slow.limits[:4] == [500, 1_000, 2_000, 2_000]
    quick = Deletes(monkeypatch, rate=10_000, cost=2e-6, for_=2.0, ended=True)
    await quick.pruner().run_once()
    assert set(quick.limits) == {500}


async def test_rounds_come_by_how_much_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def next_round(rate: float) -> float | None:
        deletes = Deletes(monkeypatch, rate=rate, cost=2e-6, for_=0.0)
        one = deletes.pruner()
        deletes.now += 60.0
        return await one.run_round()

    assert await next_round(5) is None
    assert await next_round(3_000) == pytest.approx(pruner.ROUND_TASKS / 3_000, rel=0.1)
    assert await next_round(100_000) == pruner.SHORTEST_INTERVAL


async def test_what_a_turn_finds_has_come_since_another_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fleet of a hundred a worker's own last round is more than an hour ago."""
    deletes = Deletes(monkeypatch, rate=3_000, cost=2e-6, for_=3 * HOUR)
    one = deletes.pruner()
    deletes.now += 2 * HOUR
    deletes.deleted_to = deletes.now - 60.0
    assert await one.run_round() == pytest.approx(pruner.ROUND_TASKS / 3_000, rel=0.1)


async def test_a_round_begins_where_the_last_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would read the dead index entries of what has been deleted since the last vacuum."""
    deletes = Deletes(monkeypatch, rate=100, cost=2e-6, for_=60.0)
    one = deletes.pruner()

    async def first_of_a_round() -> tuple[float, float | None]:
        deletes.began_at.clear()
        soon = await one.run_round()
        return deletes.began_at[0], soon

    assert await first_of_a_round() == (-math.inf, 1.0)
    end = deletes.deleted_to
    deletes.now += 60.0
    assert (await first_of_a_round())[0] == end
    deletes.now += pruner.RESUMING  # what was locked when rounds passed it
    assert (await first_of_a_round())[0] == -math.inf
    end = deletes.deleted_to
    deletes.now += 1.0
    since, soon = await first_of_a_round()
    assert since == end
    assert soon == pytest.approx(2.0, rel=0.01)  # few: rounds get rarer
    deletes.fade(4.0)
    assert (await first_of_a_round())[1] == pytest.approx(8.0, rel=0.01)
    deletes.fade(50.0)
    assert (await first_of_a_round())[1] is None
    deletes.now += 60.0
    assert (await first_of_a_round())[0] == -math.inf
    deletes.now += 60.0
    await one.run_once()
    assert deletes.began_at[-1] != -math.inf
    deletes.began_at.clear()
    await one.run_once()
    assert deletes.began_at[0] == -math.inf


async def test_a_round_that_can_not_restart_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old snapshot keeps millions of dead index entries before the first row."""
    deletes = Deletes(monkeypatch, rate=100, cost=2e-6, for_=60.0)
    one = deletes.pruner()
    await one.run_round()
    end = deletes.deleted_to
    deletes.now += pruner.RESUMING + 1
    deletes.fails_before = end
    with pytest.raises(utils.OperationalError):
        await one.run_round()
    deletes.now += pruner.RESUMING + 1  # in a fleet it has its turn so rarely
    await one.run_round()
    assert deletes.began_at[-2] >= end
    assert deletes.backlog() < 1


async def test_it_goes_in_small_batches(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruner, "PRUNE_LIMIT", 10)
    monkeypatch.setattr(pruner, "LARGEST_BATCH", 10)
    finish(ledger, 25, hours=2)
    finish(ledger, 5, hours=2, status="FAILED")
    batches: list[int] = []
    prune_jobs = Store.prune_jobs

    async def seen(self: Store, *args: Any) -> Pruned:
        pruned = await prune_jobs(self, *args)
        batches.append(pruned.number)
        return pruned

    monkeypatch.setattr(Store, "prune_jobs", seen)
    assert await pruner_of().run_once() == 30
    assert batches == [10, 5, 10, 5]  # one kind doesn't wait for the other
    await close_pools()


@pytest.mark.parametrize("transient", [True, False])
async def test_a_kind_that_cannot_be_deleted_holds_up_no_other(
    configure: Configure, ledger: Ledger, transient: bool
) -> None:
    """A trigger of the site refuses the deletes of one kind, or takes too long for them."""
    finish(ledger, 3, hours=2)
    finish(ledger, 3, hours=2, status="FAILED")
    condition = "query_canceled" if transient else "raise_exception"
    ledger.connection.execute(
        f"""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN RAISE {condition} USING MESSAGE = ''kept''; END';
        CREATE TRIGGER refuse BEFORE DELETE ON aiotasks_task FOR EACH ROW
            WHEN (OLD.status = 'SUCCESSFUL') EXECUTE FUNCTION refuse();
        """
    )
    try:
        one = pruner_of()
        with pytest.raises(utils.Error, match="kept"):
            await one.run_round()
        assert ledger.statuses() == {"SUCCESSFUL": 3}
    finally:
        ledger.connection.execute("DROP FUNCTION refuse CASCADE")
    assert await one.run_once() == 3
    await close_pools()


async def test_it_goes_back_to_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the history is one of a low rate."""
    deletes = Deletes(monkeypatch, rate=10_000, cost=2e-6, for_=2.0, wait=0.05)
    one = deletes.pruner()
    await one.run_round()
    assert deletes.limits[-1] > pruner.PRUNE_LIMIT
    deletes.slow_down(10)
    await one.run_round()
    await one.run_round()
    assert deletes.limits[-1] == pruner.PRUNE_LIMIT


async def test_what_a_batch_can_not_do_in_time_a_smaller_one_may(configure: Configure) -> None:
    """Large results: their rows take long to delete."""
    asked: list[int] = []

    class Slow:
        async def prune_jobs(
            self, backend: str, status: str, keep: float, since: float, limit: int
        ) -> Pruned:
            asked.append(limit)
            if limit > 100:
                raise utils.OperationalError("timeout")
            return Pruned(0, since, 0.0)

        async def prune_kept_jobs(self, backend: str, since: float, limit: int) -> Pruned:
            return Pruned(0, since, 0.0)

    one = Pruner(Slow(), backend="default", keep_successful=1.0, keep_failed=None)  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(utils.OperationalError):
            await one.run_once()
    assert await one.run_once() == 0
    assert asked == [500, 250, 125, 62]


async def test_several_prune_at_once_and_a_claim_goes_on(configure: Configure, ledger: Ledger) -> None:
    finish(ledger, 3000, hours=2)
    async with aiotasks.Worker():
        runs = [asyncio.create_task(pruner_of().run_once()) for _ in range(4)]
        result = await tasks.add.aenqueue(1, 2)
        await until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
        assert sum(await asyncio.gather(*runs)) == 3000
    assert ledger.statuses() == {"SUCCESSFUL": 1}


def prune(*arguments: str) -> str:
    output = StringIO()
    call_command("aiotasks", "prune", *arguments, stdout=output)
    return output.getvalue().strip()


def dead_worker(ledger: Ledger, backend: str, hours: float) -> UUID:
    id = uuid4()
    ledger.connection.execute(
        "INSERT INTO aiotasks_worker VALUES "
        "(%s, %s, 'host', 1, '{}', 1, 1, '0', now(), now() - make_interval(mins => %s))",
        [id, backend, int(hours * 60)],
    )
    return id


def test_the_command_prunes_by_the_settings(configure: Configure, ledger: Ledger) -> None:
    configure(KEEP_SUCCESSFUL=HOUR)
    finish(ledger, 3, hours=2)
    finish(ledger, 1, hours=0)
    finish(ledger, 1, hours=24 * 13, status="FAILED")
    finish(ledger, 1, hours=24 * 15, status="FAILED")
    dead_worker(ledger, "default", 1)
    assert prune() == "Deleted: 4 finished tasks, 1 rows of dead workers."
    assert ledger.statuses() == {"SUCCESSFUL": 1, "FAILED": 1}
    assert prune() == "Deleted: 0 finished tasks, 0 rows of dead workers."


def test_the_command_prunes_by_age(configure: Configure, ledger: Ledger) -> None:
    configure(KEEP_SUCCESSFUL=None, KEEP_FAILED=None)
    for status in ("SUCCESSFUL", "FAILED"):
        finish(ledger, 1, hours=47, status=status)
        finish(ledger, 2, hours=49, status=status)
    finish(ledger, 1, hours=1000)
    ledger.connection.execute(
        "UPDATE aiotasks_task SET keep_result = 'inf' WHERE finished_at < now() - '9d'::interval"
    )
    assert prune("--older-than", "50h").startswith("Deleted: 0 ")
    assert prune("--older-than", "2d").startswith("Deleted: 4 ")
    assert prune("--older-than", "0s").startswith("Deleted: 2 ")
    assert ledger.statuses() == {"SUCCESSFUL": 1}


@pytest.mark.parametrize("age", ["2", "-1d", "2y", "1.5h", "inf", "", "99999999s"])
def test_an_age_must_be_one(configure: Configure, age: str) -> None:
    with pytest.raises(CommandError, match="isn't a number with a unit"):
        prune(f"--older-than={age}")


def test_an_age_has_a_limit(configure: Configure) -> None:
    """PostgreSQL's timestamps have none that is much earlier."""
    with pytest.raises(CommandError, match="is more than 100 years"):
        prune("--older-than=999999w")
    assert prune("--older-than=5214w").startswith("Deleted: 0 ")


def test_the_command_says_what_is_wrong(configure: Configure, ledger: Ledger) -> None:
    with pytest.raises(CommandError, match="TASKS has no backend 'nowhere'"):
        prune("--backend", "nowhere")
    ledger.connection.execute("ALTER TABLE aiotasks_task RENAME COLUMN keep_result TO gone")
    try:
        with pytest.raises(CommandError, match="keep_result"):
            prune()
    finally:
        ledger.connection.execute("ALTER TABLE aiotasks_task RENAME COLUMN gone TO keep_result")


async def test_the_rows_of_dead_workers_go(configure: Configure, ledger: Ledger) -> None:
    """Without any task to their name, and where no worker of their backend is left to remove them."""
    configure(LEASE_TIMEOUT=0.5)
    dead_worker(ledger, "default", 0.1)
    dead_worker(ledger, "gone", 25)
    young = dead_worker(ledger, "other", 23)
    async with aiotasks.Worker():
        await until(lambda: ledger.workers() == 2)
    assert [id for (id,) in ledger.rows("SELECT id FROM aiotasks_worker")] == [young]
