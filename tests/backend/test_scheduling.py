"""Order by priority, run_after, and times with and without USE_TZ."""

import zoneinfo
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from django.tasks import TaskResultStatus
from django.tasks.exceptions import InvalidTask
from django.utils import timezone
from django.utils.timezone import get_fixed_timezone as fixed_timezone

from aiotasks.rows import AnyTask
from tests import tasks
from tests.site import default_task_backend
from tests.worker.harness import until

from .support import Api, Heard, finished, run_all, times_of, worker

NOTES = pytest.mark.parametrize("note", [tasks.note, tasks.anote], ids=["sync task", "coroutine task"])


@pytest.fixture(autouse=True)
def _nothing_noted() -> None:
    tasks.noted.clear()


# --- Priority ------------------------------------------------------------------------------------


@NOTES
async def test_higher_priorities_run_first_and_equal_ones_in_their_order(
    database: str, either: Api, note: AnyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine nothing is given back to the queue, behind what is claimed meanwhile.
    monkeypatch.setattr("aiotasks.worker.claiming.prefetch.PATIENCE", 60.0)
    for priority in (-100, 0, 100, 5, 0, -1, 100):
        await either.enqueue(note.using(priority=priority), f"{priority}:{len(tasks.noted)}")
    for n in range(5):
        await either.enqueue(note.using(priority=50), n)
    await run_all(concurrency=1, threads=1)
    assert [str(noted).partition(":")[0] for noted in tasks.noted] == [
        *("100", "100", "0", "1", "2", "3", "4", "5", "0", "0", "-1", "-100")
    ]


async def test_those_that_are_claimed_together_start_in_that_order_too(database: str, either: Api) -> None:
    for priority in (-100, 0, 100, 5, 0):
        await either.enqueue(tasks.anote.using(priority=priority), priority)
    await run_all(concurrency=20)
    assert tasks.noted == [100, 5, 0, 0, -100]


# --- run_after -----------------------------------------------------------------------------------


@NOTES
async def test_what_became_due_while_no_worker_ran_starts_in_its_order(
    database: str, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, note: AnyTask
) -> None:
    """Across the batches of a promotion, and those due 10 ms apart."""
    monkeypatch.setattr("aiotasks.worker.claiming.prefetch.PATIENCE", 60.0)  # as above
    monkeypatch.setattr("aiotasks.worker.maintenance.promoter.PROMOTE_LIMIT", 7)
    first = timezone.now() + timedelta(hours=1)
    for n in reversed(range(20)):
        await note.using(run_after=first + timedelta(milliseconds=10 * n)).aenqueue(n)
    await conn.execute("UPDATE aiotasks_task SET run_after = run_after - interval '2 h'")
    await run_all(concurrency=1, threads=1)
    assert tasks.noted == sorted(tasks.noted)
    assert len(tasks.noted) == 20


@NOTES
async def test_a_task_for_later_shows_as_ready_and_waits(
    database: str, either: Api, conn: asyncpg.Connection, note: AnyTask
) -> None:
    at = timezone.now() + timedelta(hours=1)
    result = await either.enqueue(note.using(run_after=at), "later")
    now = await either.enqueue(note, "now")
    assert result.status is TaskResultStatus.READY
    row = await conn.fetchrow("SELECT status, run_after, ready_at FROM aiotasks_task WHERE run_after > now()")
    assert tuple(row) == ("SCHEDULED", at, None)
    await run_all()
    await either.call(result, "refresh")
    await either.call(now, "refresh")
    assert (result.status, now.status) == (TaskResultStatus.READY, TaskResultStatus.SUCCESSFUL)
    assert tasks.noted == ["now"]
    found = await either.call(default_task_backend, "get_result", result.id)
    assert found.status is TaskResultStatus.READY
    assert type(found.status) is TaskResultStatus
    assert found.task.run_after == at


@NOTES
async def test_a_task_runs_once_it_is_due_and_not_before(database: str, either: Api, note: AnyTask) -> None:
    at = timezone.now() + timedelta(seconds=0.5)
    async with worker():
        result = await either.enqueue(note.using(run_after=at), "then")
        await finished(result)
    assert result.started_at is not None
    assert result.started_at >= at
    assert tasks.noted == ["then"]


async def test_the_soonest_runs_first(database: str, either: Api) -> None:
    """A task that is due earlier than the one the worker waits for moves its timer."""
    now = timezone.now()
    async with worker():
        late = await either.enqueue(tasks.anote.using(run_after=now + timedelta(hours=1)), "late")
        soon = await either.enqueue(tasks.anote.using(run_after=now + timedelta(seconds=0.3)), "soon")
        await finished(soon)
    assert tasks.noted == ["soon"]
    await either.call(late, "refresh")
    assert late.status is TaskResultStatus.READY


async def test_what_is_due_already_is_ready(database: str, either: Api, conn: asyncpg.Connection) -> None:
    past = timezone.now() - timedelta(days=1)
    await either.enqueue(tasks.anote.using(run_after=past), "past")
    assert await conn.fetchval("SELECT status FROM aiotasks_task") == "READY"
    await run_all()
    assert tasks.noted == ["past"]


async def test_a_long_due_task_does_not_jump_the_queue(database: str, either: Api) -> None:
    await either.enqueue(tasks.anote, "first")
    await either.enqueue(tasks.anote.using(run_after=timezone.now() - timedelta(days=1)), "second")
    await run_all(concurrency=1)
    assert tasks.noted == ["first", "second"]


@pytest.mark.parametrize("at", [datetime.max, datetime(2999, 1, 1), datetime.min])
async def test_naive_times_are_refused_where_use_tz_is_on(database: str, at: datetime) -> None:
    with pytest.raises(InvalidTask, match="aware"):
        tasks.add.using(run_after=at)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu"])
async def test_any_time_zone_will_do(database: str, api: Api, zone: str) -> None:
    at = (timezone.now() + timedelta(hours=1)).astimezone(zoneinfo.ZoneInfo(zone))
    result = await api.enqueue(tasks.add.using(run_after=at), 1, 2)
    found = await api.call(default_task_backend, "get_result", result.id)
    assert found.task.run_after == at


@pytest.mark.parametrize("at", [datetime(9999, 12, 31, tzinfo=UTC), datetime(1, 1, 2, tzinfo=UTC)])
async def test_the_ends_of_time(database: str, either: Api, at: datetime) -> None:
    result = await either.enqueue(tasks.add.using(run_after=at), 1, 2)
    found = await either.call(default_task_backend, "get_result", result.id)
    assert found.task.run_after == at
    await run_all()
    await either.call(result, "refresh")
    assert result.is_finished is (at.year == 1)


TONGA = fixed_timezone(timedelta(hours=14))
BAKER = fixed_timezone(timedelta(hours=-12))


@pytest.mark.parametrize(
    "at",
    [
        datetime.max.replace(tzinfo=UTC),
        datetime.min.replace(tzinfo=UTC),
        datetime(9999, 12, 31, 0, 0, 0, 1, tzinfo=UTC),
        datetime(1, 1, 1, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime.max.replace(tzinfo=BAKER),  # in UTC, of the year 10000
        datetime.min.replace(tzinfo=TONGA),  # … and of the year 0
        datetime.max.replace(tzinfo=TONGA),
        datetime.max.replace(tzinfo=zoneinfo.ZoneInfo("America/New_York")),
        datetime.min.replace(tzinfo=zoneinfo.ZoneInfo("Asia/Kathmandu")),
    ],
    ids=str,
)
async def test_times_that_some_time_zone_cannot_show_are_refused(at: datetime) -> None:
    with pytest.raises(InvalidTask, match=r"run_after must be from 0001-01-02 to 9999-12-31 \(UTC\)"):
        tasks.add.using(run_after=at)


async def test_a_row_that_never_is_due_can_be_looked_up_and_cancelled(
    database: str, api: Api, conn: asyncpg.Connection
) -> None:
    """datetime.max has been stored as 'infinity' by an older release."""
    result = await api.enqueue(tasks.add.using(run_after=timezone.now() + timedelta(days=1)), 1, 2)
    await conn.execute("UPDATE aiotasks_task SET run_after = 'infinity'")
    await api.call(result, "refresh")
    assert (await api.call(default_task_backend, "get_result", result.id)).task.run_after is None
    assert await api.call(result, "cancel")


# --- USE_TZ = False ------------------------------------------------------------------------------


@pytest.mark.parametrize("add", [tasks.describe, tasks.adescribe], ids=["sync task", "coroutine task"])
async def test_without_use_tz_all_times_are_naive_and_local(
    naive_time: str, either: Api, heard: list[Heard], add: AnyTask
) -> None:
    zone = zoneinfo.ZoneInfo(naive_time)
    before = datetime.now(zone).replace(tzinfo=None)
    result = await either.enqueue(add)
    await run_all()
    await either.call(result, "refresh")
    after = datetime.now(zone).replace(tzinfo=None)
    assert result.status is TaskResultStatus.SUCCESSFUL
    times = times_of(result)
    assert all(timezone.is_naive(time) for time in times)
    assert times == sorted(times)
    slack = timedelta(seconds=1)  # the database's clock is another
    assert before - slack <= times[0] <= times[-1] <= after + slack
    for one in heard:
        told = [one.fields[name] for name in ("enqueued_at", "started_at", "finished_at")]
        assert all(time is None or timezone.is_naive(time) for time in told)
    assert heard[-1].fields["finished_at"] == result.finished_at


async def test_without_use_tz_the_row_says_the_same_moment(
    naive_time: str, api: Api, conn: asyncpg.Connection
) -> None:
    zone = zoneinfo.ZoneInfo(naive_time)
    at = datetime.now(zone).replace(tzinfo=None) + timedelta(hours=1)
    result = await api.enqueue(tasks.add.using(run_after=at), 1, 2)
    row = await conn.fetchrow("SELECT enqueued_at, run_after, status FROM aiotasks_task")
    assert row["run_after"] == at.replace(tzinfo=zone)
    assert result.enqueued_at is not None
    assert row["enqueued_at"] == result.enqueued_at.replace(tzinfo=zone)
    assert row["status"] == "SCHEDULED"
    found = await api.call(default_task_backend, "get_result", result.id)
    assert found.task.run_after == at
    assert found.enqueued_at == result.enqueued_at


@pytest.mark.parametrize("at", [datetime.min, datetime.max, datetime(9999, 12, 31, 23), datetime(1, 1, 1, 1)])
async def test_without_use_tz_the_ends_of_time_are_refused_too(naive_time: str, at: datetime) -> None:
    with pytest.raises(InvalidTask, match="run_after must be from"):
        tasks.add.using(run_after=at)


@pytest.mark.parametrize("at", [datetime(1, 1, 3), datetime(9999, 12, 30)])
async def test_without_use_tz_what_is_left_is_kept_exactly(naive_time: str, api: Api, at: datetime) -> None:
    result = await api.enqueue(tasks.add.using(run_after=at), 1, 2)
    found = await api.call(default_task_backend, "get_result", result.id)
    assert found.task.run_after == at


async def test_without_use_tz_an_aware_time_is_taken_too(
    naive_time: str, api: Api, conn: asyncpg.Connection
) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    await api.enqueue(tasks.add.using(run_after=at), 1, 2)
    assert await conn.fetchval("SELECT run_after FROM aiotasks_task") == at


async def test_without_use_tz_a_task_runs_once_it_is_due(naive_time: str, either: Api) -> None:
    at = datetime.now(zoneinfo.ZoneInfo(naive_time)).replace(tzinfo=None) + timedelta(seconds=0.3)
    async with worker():
        result = await either.enqueue(tasks.anote.using(run_after=at), "then")
        await finished(result)
    assert result.started_at is not None
    assert result.started_at >= at


async def test_a_worker_that_starts_late_finds_what_was_due(
    database: str, either: Api, conn: asyncpg.Connection
) -> None:
    result = await either.enqueue(tasks.anote.using(run_after=timezone.now() + timedelta(seconds=0.2)), "x")

    async def is_due() -> bool:
        return bool(await conn.fetchval("SELECT run_after <= clock_timestamp() FROM aiotasks_task"))

    await until(is_due)
    async with worker():
        await finished(result)
    assert tasks.noted == ["x"]
