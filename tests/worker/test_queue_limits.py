"""Limits of a worker's queues: how many of its tasks run at a time; a full queue holds up no other."""

from collections import Counter
from typing import Any

import asyncpg
import pytest

import aiotasks
from aiotasks.worker.process.cli import queues_and_limits
from tests.examples import example
from tests.site import default_task_backend

from . import tasks
from .harness import Configure, Ledger, Start, until, wait_until

HOUR = 3600
OPTIONS = {"POLL_INTERVAL": HOUR, "LEASE_TIMEOUT": 300}


class Gauge:
    """Counts how many executions of each queue a worker runs, at every look; ``most`` is what it has seen."""

    def __init__(self, worker: aiotasks.Worker) -> None:
        self.most: Counter[str] = Counter()
        self._worker = worker

    def look(self) -> Counter[str]:
        now = Counter(execution.job.queue_name for execution in self._worker.running())
        self.most |= now
        return now


async def test_a_full_queue_holds_up_no_other(configure: Configure, ledger: Ledger) -> None:
    """Neither before nor behind it, over wake-ups alone; and it goes on as its tasks end."""
    configure(**OPTIONS)
    tasks.seen.clear()
    async with aiotasks.Worker(queues={"limited": 2, "default": None, "other": 50}, grace=0) as worker:
        held = [await tasks.wait_for_release.using(queue_name="limited").aenqueue(str(n)) for n in range(5)]
        await until(lambda: len(tasks.seen) == 2)
        for number in range(1, 6):
            for queue in ("default", "other"):
                await tasks.add.using(queue_name=queue).aenqueue(1, 2)
                await tasks.add_sync.using(queue_name=queue).aenqueue(1, 2)
            await until(
                lambda number=number: (
                    ledger.statuses() == {"RUNNING": 2, "READY": 3, "SUCCESSFUL": 4 * number}
                )
            )
        assert len(tasks.seen) == 2
        first = next(iter(worker.running())).job.id
        assert await held[[result.id for result in held].index(str(first))].acancel()
        await until(lambda: len(tasks.seen) == 3)
        assert ledger.statuses()["RUNNING"] == 2


@pytest.mark.parametrize("limit", [1, 3, 20])
async def test_no_more_than_the_limit_in_both_lanes_together(
    configure: Configure, conn: asyncpg.Connection, ledger: Ledger, limit: int
) -> None:
    """Deep queues in both lanes, long and short tasks: all run, and never too many at a time."""
    configure(**OPTIONS)
    for task, arguments, number in (
        (tasks.note, ("x", 0.01), 60),
        (tasks.work_sync, (0.01,), 60),
        (tasks.noop, (), 500),
        (tasks.add_sync, (1, 2), 300),
    ):
        for queue in ("limited", "free"):
            await default_task_backend.aenqueue_many(task.using(queue_name=queue), [(arguments, {})] * number)
    async with aiotasks.Worker(queues={"limited": limit, "free": None}) as worker:
        gauge = Gauge(worker)
        runner: Any = worker.engine.runner
        start = runner.start

        def count(job: Any) -> Any:
            ended = start(job)
            gauge.look()
            return ended

        runner.start = count
        worker.engine.claimer.intake._runner = runner
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 1840}, 120)
    assert 0 < gauge.most["limited"] <= limit
    assert gauge.most["free"] > 0


async def test_another_worker_is_woken_for_what_has_no_room(start_worker: Start, ledger: Ledger) -> None:
    """Each takes as many as it may, without a poll."""
    for _ in range(3):
        start_worker("--queue", "default=2", options=OPTIONS)
    wait_until(lambda: ledger.value("SELECT count(*) FROM aiotasks_worker WHERE listening") == 3)
    for _ in range(12):
        await tasks.note.aenqueue("x", 2.0)  # the three have begun before the first ends

    def use() -> list[int]:
        return sorted(
            row[1]
            for row in ledger.rows(
                "SELECT worker_id, count(*) FROM aiotasks_task WHERE status = 'RUNNING' GROUP BY 1"
            )
        )

    # Not wait_until(): the NOTIFYs are sent on this loop.
    await until(lambda: use() == [2, 2, 2])
    await until(lambda: ledger.statuses() == {"SUCCESSFUL": 12})


async def test_a_suspect_has_no_room_beyond_the_limit(
    configure: Configure, conn: asyncpg.Connection, ledger: Ledger
) -> None:
    configure(**OPTIONS)
    tasks.seen.clear()
    async with aiotasks.Worker(queues={"default": 1}, grace=0) as worker:
        await tasks.wait_for_release.aenqueue("first")
        await until(lambda: tasks.seen == ["first"])
        await tasks.wait_for_release.using(max_crashes=5).aenqueue("suspect")
        await conn.execute("UPDATE aiotasks_task SET crashes = 2 WHERE status = 'READY'")
        limits = worker.engine.claimer.queue_limits
        assert limits.served(["default"]) == []
        worker.engine.claimer.suspect()
        await until(lambda: not worker.engine.claimer.quarantine.lanes())
        assert tasks.seen == ["first"]


async def test_the_page_on_limits(database: str) -> None:
    with example("howto/worker.md") as page:
        await page.run()
        assert page.worker.queues == ["default", "reports"]
        assert page.worker.queue_limits == {"reports": 2}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, None),
        (["a"], {"a": None}),
        (["a=20", "b", "a=20"], {"a": 20, "b": None}),
        (["a=b=2"], {"a=b": 2}),
        (["a=b="], {"a=b": None}),
    ],
)
def test_names_with_limits(given: Any, found: Any) -> None:
    assert queues_and_limits(given) == found


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["a=b"], "--queue a=b: the limit must be a whole number, not 'b'"),
        (["a=-1"], "must be a whole number, not '-1'"),
        (["a=1", "a=2"], "queue 'a' is named twice"),
        (["a=1", "a"], "queue 'a' is named twice"),
    ],
)
def test_wrong_limits_on_the_command_line(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        queues_and_limits(given)


def test_a_wrong_limit_ends_the_command(start: Start) -> None:
    for text, says in (("a=0", "limit of queue 'a' must be from 1"), ("a=x", "must be a whole number")):
        process = start("-m", "aiotasks.worker", "--queue", text)
        assert process.wait() != 0
        assert says in process.log
        assert "Traceback" not in process.log


@pytest.mark.parametrize(
    ("queues", "error", "says"),
    [
        ({"a": 0}, ValueError, "limit of queue 'a' must be from 1 to 1,000,000"),
        ({"a": "2"}, TypeError, "limit of queue 'a' must be a whole number or None, not '2'"),
        ({"a": True}, TypeError, "not True"),
        ({}, ValueError, "must name a queue"),
        ({"": 2}, ValueError, "Queue ''"),
    ],
)
def test_wrong_limits_of_a_worker(database: str, queues: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        aiotasks.Worker(queues=queues)
