"""operations.tasks: lists of tasks by filter, a page at a time."""

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from aiotasks import TaskFilter
from aiotasks.operations import tasks as module
from aiotasks.operations.connection import operator_connection
from aiotasks.operations.filters import read_filter
from aiotasks.operations.tasks import Cursor, Page, TaskRow, list_tasks
from aiotasks.rows import Status
from aiotasks.schedules.cron import tick_id
from aiotasks.store.store import Store
from tests.examples import example
from tests.store.rows import new_job, worker

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the order is the server's


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with operator_connection("default", timeout=30.0) as connection:
        yield Store(connection)


async def put(conn: asyncpg.Connection, store: Store, number: int) -> None:
    """So many tasks of every status, in two queues and with two priorities; half of those that are finished
    have a keep_result. Some share a time."""
    jobs = [
        new_job(queue_name=f"q {n % 2}", priority=n % 3, task_path=f"shop.{status.lower()}")
        for n in range(number)
        for status in Status
    ]
    await store.insert_jobs(jobs)
    await conn.execute(
        """
        UPDATE aiotasks_task AS task SET
            status = upper(split_part(task_path, '.', 2)),
            ready_at = CASE WHEN task_path <> 'shop.scheduled' THEN new.at END,
            run_after = CASE WHEN task_path = 'shop.scheduled' THEN new.at END,
            last_attempted_at = CASE WHEN task_path NOT IN ('shop.scheduled', 'shop.ready') THEN new.at END,
            finished_at = CASE WHEN task_path IN ('shop.failed', 'shop.successful') THEN new.at END,
            keep_result = CASE WHEN new.n % 2 = 0 THEN 3600 + hashtext(id::text) % 1000 END
        FROM (
            SELECT id AS new_id, n,
                now() - interval '1 hour' + interval '1 s' * (hashtext(id::text) % 50) AS at
            FROM unnest($1::uuid[]) WITH ORDINALITY AS one (id, n)
        ) AS new
        WHERE task.id = new.new_id
        """,
        [job.id for job in jobs],
    )


async def pages(
    store: Store, chosen: TaskFilter, limit: int, between: Callable[[], Any] | None = None
) -> list[Page]:
    found, after = [], None
    while True:
        page = await list_tasks(store, "default", chosen, after=after, limit=limit)
        found.append(page)
        if page.next is None:
            return found
        assert after is None or page.next != after
        after = Cursor.read(str(page.next))
        if between is not None:
            await between()


FILTERS = [
    ({}, "true", "id DESC"),
    ({"status": "ready"}, "status = 'READY'", "ready_at DESC, id DESC"),
    (
        {"status": "ready", "queue": "q 1"},
        "status = 'READY' AND queue_name = 'q 1'",
        "ready_at DESC, id DESC",
    ),
    ({"status": "scheduled"}, "status = 'SCHEDULED'", "run_after, id"),
    ({"status": "running"}, "status = 'RUNNING'", "last_attempted_at DESC, id DESC"),
    ({"status": "failed"}, "status = 'FAILED'", "finished_at DESC, id DESC"),
    ({"status": "failed,successful"}, "finished_at IS NOT NULL", "finished_at DESC, id DESC"),
    ({"status": "failed,ready"}, "status IN ('FAILED', 'READY')", "id DESC"),
    ({"queue": "q 0"}, "queue_name = 'q 0'", "id DESC"),
    ({"task": "shop.failed"}, "task_path = 'shop.failed'", "id DESC"),
    ({"finished_after": "1h"}, "finished_at >= $1", "finished_at DESC, id DESC"),
    ({"finished_before": "1h"}, "finished_at < $1", "finished_at DESC, id DESC"),
    ({"enqueued_after": "1h"}, "true", "id DESC"),
    ({"enqueued_before": "1h"}, "false", "id"),
    ({"status": "ready", "finished_after": "1h"}, "false", "id"),
    ({"error": "ValueError", "status": "ready"}, "false", "id"),
    ({"error": "ValueError", "status": "ready", "since": "1d"}, "false", "id"),
]


@pytest.mark.parametrize("limit", [3, 100])
@pytest.mark.parametrize(("texts", "condition", "order"), FILTERS, ids=[str(each[0]) for each in FILTERS])
async def test_pages_have_each_task_once_and_in_order(
    store: Store, conn: asyncpg.Connection, texts: dict[str, Any], condition: str, order: str, limit: int
) -> None:
    await put(conn, store, 12)
    await store.insert_jobs([new_job(backend="other", queue_name="q 0") for _ in range(10)])
    chosen = read_filter(**texts)
    found = await pages(store, chosen, limit)
    wanted = await conn.fetch(
        f"SELECT id FROM aiotasks_task WHERE backend = 'default' AND ({condition}) ORDER BY {order}",
        *([time] if (time := chosen.finished_after or chosen.finished_before) and "$1" in condition else []),
    )
    assert [row.id for page in found for row in page.rows] == [row[0] for row in wanted]
    assert all(len(page.rows) <= limit and page.complete for page in found)


@pytest.mark.parametrize("texts", [{}, {"status": "ready"}, {"status": "failed"}, {"status": "scheduled"}])
async def test_tasks_that_come_between_move_none_of_the_others(
    store: Store, conn: asyncpg.Connection, texts: dict[str, Any]
) -> None:
    await put(conn, store, 12)
    chosen = read_filter(**texts)
    (before,) = await pages(store, chosen, 100)

    async def more() -> None:
        await put(conn, store, 1)

    rows = [row.id for page in await pages(store, chosen, 4, more) for row in page.rows]
    assert len(rows) == len(set(rows))
    assert [id for id in rows if id in {row.id for row in before.rows}] == [row.id for row in before.rows]


async def test_more_queues_than_can_be_merged(
    store: Store, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_LEGS", 3)
    await put(conn, store, 12)
    found = await pages(store, read_filter(status="ready"), 5)
    wanted = await conn.fetch("SELECT id FROM aiotasks_task WHERE status = 'READY' ORDER BY id DESC")
    assert [row.id for page in found for row in page.rows] == [row[0] for row in wanted]


@pytest.mark.parametrize("most", [2, 6], ids=["by id", "by time"])
async def test_the_number_of_queues_changes_between_two_pages(
    store: Store, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(module, "MOST_LEGS", most)
    await put(conn, store, 12)
    wanted = await conn.fetch("SELECT id FROM aiotasks_task WHERE status = 'READY'")
    chosen = read_filter(status="ready")
    first = await list_tasks(store, "default", chosen, limit=5)
    monkeypatch.setattr(module, "MOST_LEGS", 8 - most)
    assert first.next is not None
    rest = await list_tasks(store, "default", chosen, after=first.next, limit=100)
    assert sorted(row.id for page in (first, rest) for row in page.rows) == sorted(row[0] for row in wanted)


async def test_a_place_of_a_list_in_another_order(store: Store, conn: asyncpg.Connection) -> None:
    await put(conn, store, 2)
    lists = [read_filter(), read_filter(status="failed"), read_filter(status="scheduled")]
    for chosen in lists:
        after = (await list_tasks(store, "default", chosen, limit=1)).next
        for other in lists:
            if other is not chosen:
                with pytest.raises(module.WrongCursor, match="is a place in a list of other tasks"):
                    await list_tasks(store, "default", other, after=after)


@pytest.mark.parametrize("texts", [{"task": "none"}, {"task": "none", "status": "failed"}])
async def test_a_page_ends_where_it_has_looked_at_enough(
    store: Store, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, texts: dict[str, Any]
) -> None:
    monkeypatch.setattr(module, "LOOK_AT", 20)
    await put(conn, store, 30)
    page = await list_tasks(store, "default", read_filter(**texts), limit=1)
    assert page.rows == []
    assert page.looked_at == 20
    assert page.next is not None
    for_all = await pages(store, read_filter(**texts), 1)
    assert sum(len(page.rows) for page in for_all) == 0
    assert len(for_all) > 1


async def test_a_page_that_is_longer_than_what_is_looked_at(
    store: Store, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_AT_ERRORS", 20)
    await put(conn, store, 50)
    await conn.execute(
        """
        UPDATE aiotasks_task SET errors = ARRAY['{"class": "builtins.ValueError", "traceback": "x"}'::json]
        WHERE status = 'FAILED'
        """
    )
    found = await pages(store, read_filter(error="ValueError"), 100)
    wanted = await conn.fetch(
        "SELECT id FROM aiotasks_task WHERE status = 'FAILED' ORDER BY finished_at DESC, id DESC"
    )
    assert [row.id for page in found for row in page.rows] == [row[0] for row in wanted]


async def test_too_many_kept_tasks_are_said_to_be_missing(
    store: Store, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 8)
    await put(conn, store, 12)
    page = await list_tasks(store, "default", read_filter(status="failed"), limit=3)
    assert not page.complete
    assert (await list_tasks(store, "default", read_filter(status="ready"), limit=3)).complete


async def test_a_task_of_a_late_tick_is_found_by_its_enqueue(store: Store) -> None:
    late = tick_id("default", "weekly", datetime.now(UTC) - timedelta(days=6))
    await store.insert_jobs([new_job(), new_job(id=str(late))])
    found = await pages(store, read_filter(since="1h"), 1)
    assert [row.id for page in found for row in page.rows][1:] == [late]


async def test_what_a_row_says(store: Store, conn: asyncpg.Connection) -> None:
    here, gone = await worker(store), uuid4()
    texts = [
        json.dumps(
            {"class": "shop.Bad", "traceback": "Traceback\n  x\nshop.Bad: no \0 \ud800 card\n", "attempt": 2}
        ),
        json.dumps({"class": "shop.Bad", "traceback": "x" * 20_000}),
        '["by hand"]',
    ]
    ids: dict[str, UUID] = {}
    for text, workers in zip(texts, ([gone, here], [gone], []), strict=True):
        (job,) = [new_job(queue_name="q", priority=7, task_path="shop.charge")]
        await store.insert_jobs([job])
        await conn.execute(
            """
            UPDATE aiotasks_task SET status = 'FAILED', finished_at = now(), unique_key = $4,
                limit_key = 'l:1',
                errors = ARRAY['{"class": "x.Older", "traceback": "older"}', $2]::json[],
                worker_ids = $3::uuid[], started_at = '-infinity'
            WHERE id = $1
            """,
            job.id,
            text,
            workers,
            f"k {job.id}",
        )
        ids[text] = UUID(job.id)
    page = await list_tasks(store, "default", read_filter(status="failed"))
    rows = {row.id: row for row in page.rows}
    first, second, third = (rows[ids[text]] for text in texts)
    assert first == TaskRow(
        id=ids[texts[0]],
        status=Status.FAILED,
        task_path="shop.charge",
        queue_name="q",
        priority=7,
        enqueued_at=first.enqueued_at,
        run_after=None,
        started_at=None,
        last_attempted_at=None,
        finished_at=first.finished_at,
        attempts=2,
        unique_key=f"k {ids[texts[0]]}",
        limit_key="l:1",
        error="shop.Bad: no \0 \ud800 card",
        worker="host:1",
        worker_id=here,
    )
    assert (second.error, second.worker, second.worker_id) == ("shop.Bad", str(gone), gone)
    assert (third.error, third.worker, third.attempts) == ('["by hand"]', None, 0)


async def test_by_error_worker_and_key(store: Store, conn: asyncpg.Connection) -> None:
    await put(conn, store, 6)
    me = uuid4()
    await conn.execute(
        """
        UPDATE aiotasks_task SET unique_key = 'k', worker_ids = ARRAY[$1::uuid],
            errors = ARRAY['{"class": "builtins.ValueError", "traceback": "x"}'::json]
        WHERE id = (SELECT id FROM aiotasks_task WHERE status = 'FAILED' ORDER BY id LIMIT 1)
        """,
        me,
    )
    right: list[dict[str, Any]] = [
        {"error": "ValueError"},
        {"worker": str(me)},
        {"key": "k"},
        {"key": "k", "status": "failed"},
    ]
    for texts in right:
        found = await pages(store, read_filter(**texts), 2)
        assert [row.unique_key for page in found for row in page.rows] == ["k"], texts
    wrong: list[dict[str, Any]] = [
        {"error": "Error"},
        {"worker": str(uuid4())},
        {"key": "l"},
        {"key": "k", "status": "ready"},
        {"error": "ValueError", "status": "ready", "since": "1d"},
    ]
    for texts in wrong:
        assert not any(page.rows for page in await pages(store, read_filter(**texts), 2)), texts


@pytest.mark.parametrize(
    "text", ["", "1", "x,y", f"tnan,{UUID(int=1)}", f"t1e300,{UUID(int=1)}", "t1.5,x", f"1.5,{UUID(int=1)}"]
)
async def test_what_is_no_place_in_a_list(text: str) -> None:
    with pytest.raises(ValueError, match="is no place in a list: take one that a page has ended with"):
        Cursor.read(text)


async def test_the_example_of_the_guide(store: Store, conn: asyncpg.Connection) -> None:
    await put(conn, store, 2)
    await conn.execute("UPDATE aiotasks_task SET finished_at = now() WHERE status = 'FAILED'")
    with example("howto/look.md") as page:
        await page.run()
        rows, after = await page.failures()
        assert page.blocks == []
    assert [row.status for row in rows] == ["FAILED"] * 2
    assert after is None
