"""What becomes of a task's place in the line of its key, and of what it holds there, by all that happens to
tasks beside claims."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from aiotasks.models import MAX_NAMES
from aiotasks.policies.unique import UniqueRule
from aiotasks.rows import Job, Status, UniqueJob
from aiotasks.store.bulk import Meant
from aiotasks.store.limits import LimitRule
from aiotasks.store.store import Store

from .limits import LINE, claim_keys, fail, ids_of
from .rows import CANCELLED, claim, finish, insert, lane, new_job, release, row, worker

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the server doesn't know the loop

FAILED = Meant("default", [Status.FAILED])


def unique(key: str = "l", *, keep: bool = False, in_hours: float | None = None, **values: Any) -> UniqueJob:
    """A call with the unique key u, which replaces a waiting one."""
    run_after = None if in_hours is None else datetime.now(UTC) + timedelta(hours=in_hours)
    job = new_job(run_after=run_after, **values)
    rule = UniqueRule(None, waiting=False, on_conflict="replace", keep_run_after=keep)
    return UniqueJob(job.id, job.template, "[]", "{}", job.enqueued_at, "u", rule, limit_key=key)


async def store_unique(store: Store, call: UniqueJob) -> UUID:
    await store.insert_unique_job(call, lock_timeout=1.0)
    return UUID(call.id)


async def replace(store: Store, id: UUID, call: UniqueJob) -> None:
    assert await store.replace_waiting_jobs([id], [call], lock_timeout=1.0)


async def hours_to(conn: asyncpg.Connection, id: UUID) -> float:
    """How far ahead the task's place in its line is."""
    query = "SELECT date_part('epoch', limit_place - now()) FROM aiotasks_task WHERE id = $1"
    return round(float(await conn.fetchval(query, id)) / 3600, 1)


async def claim_first(store: Store, me: UUID, key: str = "l", rule: LimitRule = LINE) -> Job:
    (job,) = (await claim_keys(store, me, key, rules=[rule], slots=1)).jobs
    return job


@pytest.mark.parametrize("limit_key", ["l", None])
@pytest.mark.parametrize("values", [{"snoozes": True}, {"error": "{}"}])
@pytest.mark.parametrize("delay", [0.0, 0.001])
async def test_a_task_that_was_put_off_comes_behind_those_that_waited(
    store: Store, delay: float, values: dict[str, Any], limit_key: str | None
) -> None:
    """With a limit as without one: else the others would never start."""
    ids = await insert(store, 3, limit_key=limit_key)
    me = await worker(store)
    order = []
    for _ in range(6):
        (job,) = (
            (await claim_keys(store, me)).jobs if limit_key else await claim(store, me, loop=lane(slots=1))
        )
        order.append(job.id)
        await release(store, job, delay=delay, **values)
        while delay and not await store.promote_due_jobs("default", 1):
            pass
    assert order == ids * 2


async def test_a_task_that_was_given_back_keeps_its_place(store: Store, conn: asyncpg.Connection) -> None:
    """And in strict order every one: the next doesn't start before it is final."""
    first, _ = await insert(store, 2, limit_key="l")
    me = await worker(store)
    for _ in range(3):
        (job,) = (await claim_keys(store, me)).jobs
        assert job.id == first
        await release(store, job)
    (ordered,) = await insert(store, limit_key="l:1", ordered="continue")
    place = (await row(conn, ordered))["limit_place"]
    for delay, values in ((0.0, {"snoozes": True}), (60.0, {"error": "{}"})):
        await release(store, await claim_first(store, me, "l:1"), delay=delay, **values)
        assert (await row(conn, ordered))["limit_place"] == place


async def test_a_replaced_task_holds_its_line_between_attempts(store: Store) -> None:
    id = await store_unique(store, unique(ordered="continue"))
    (behind,) = await insert(store, limit_key="l", ordered="continue", priority=9)
    me = await worker(store)
    await store.cancel_jobs([behind], "default", CANCELLED)
    await release(store, await claim_first(store, me), delay=60.0, error="{}")
    await store.retry_jobs([behind], FAILED)
    for keep, hours in ((True, None), (False, 1.0), (False, None)):
        assert ids_of(await claim_keys(store, me, rules=[LINE])) == []
        await replace(store, id, unique(ordered="continue", keep=keep, in_hours=hours))
    again = await claim_first(store, me)
    assert again.id == id
    # With another key it leaves its line, and comes by its place in the other.
    await release(store, again, delay=60.0, error="{}")
    await replace(store, id, unique("l:2", ordered="continue"))
    assert (await claim_first(store, me)).id == behind
    assert (await claim_first(store, me, "l:2")).id == id


@pytest.mark.parametrize(
    ("was", "key", "keep", "hours", "place"),
    [
        (1.0, "l", False, None, 0.0),
        (5.0, "l", False, 2.0, 2.0),
        (1.0, "l", False, 2.0, 2.0),
        (1.0, "l", True, 5.0, 1.0),
        (1.0, "l:2", True, 5.0, 1.0),
        (1.0, "l:2", False, 5.0, 5.0),
        (None, "l:2", True, 5.0, 0.0),
    ],
)
async def test_a_replaced_task_has_the_place_of_its_time(
    store: Store,
    conn: asyncpg.Connection,
    was: float | None,
    key: str,
    keep: bool,
    hours: float | None,
    place: float,
) -> None:
    id = await store_unique(store, unique(in_hours=was))
    await replace(store, id, unique(key, keep=keep, in_hours=hours))
    assert await hours_to(conn, id) == place


async def test_a_retry_by_hand_is_due_at_once(store: Store, conn: asyncpg.Connection) -> None:
    me = await worker(store)
    (id,) = await insert(store, limit_key="l")
    await release(store, *(await claim_keys(store, me)).jobs, delay=3600.0, error="{}")
    assert await hours_to(conn, id) == 1.0
    (later,) = await insert(store, limit_key="l", run_after=datetime.now(UTC) + timedelta(hours=2))
    (plain,) = await insert(store)
    await store.cancel_jobs([id, later, plain], "default", CANCELLED)
    assert len(await store.retry_jobs([id, later, plain], FAILED)) == 3
    assert (await hours_to(conn, id), await hours_to(conn, later)) == (0.0, 2.0)
    assert (await row(conn, plain))["limit_place"] is None


@pytest.mark.parametrize("keep_result", [None, 60.0])
async def test_what_has_stopped_a_line_is_not_pruned(
    store: Store, conn: asyncpg.Connection, keep_result: float | None
) -> None:
    """The line would go on by itself."""
    first, second = await insert(store, 2, limit_key="l", ordered="stop", keep_result=keep_result)
    me = await worker(store)
    await fail(store, await claim_first(store, me))

    async def prune() -> int:
        await conn.execute("UPDATE aiotasks_task SET finished_at = finished_at - interval '2 min'")
        kept = (await store.prune_kept_jobs("default", 0.0, 10))[0]
        return kept + (await store.prune_jobs("default", Status.FAILED, 60.0, 0.0, 10))[0]

    assert await prune() == 0
    assert ids_of(await claim_keys(store, me, rules=[LINE])) == []
    await store.release_line(first, "default")
    assert await prune() == 1
    # Nor does what was cancelled between two attempts stop it.
    await release(store, await claim_first(store, me), delay=60.0, error="{}")
    await store.cancel_jobs([second], "default", CANCELLED)
    assert await prune() == 1


async def test_a_closed_key_is_no_closed_limit(store: Store, conn: asyncpg.Connection) -> None:
    """Of a limit without `by` the key is its name."""
    for key in ("l", "l:1"):
        await insert(store, limit_key=key)
    await store.close_keys("default", [("l", 100 * 365 * 86_400.0)])
    found = await claim_keys(store, await worker(store), "l", "l:1")
    assert [seen.state for seen in found.seen] == ["closed", "full"]
    for_a_year = "SELECT closed_until < now() + interval '1 year' FROM aiotasks_limit WHERE key = 'l'"
    assert await conn.fetchval(for_a_year)


async def test_releases_that_differ_in_order(store: Store) -> None:
    """One says that the key is in order, the other that five may run: what the one goes on counting isn't
    forgotten by claims of the other."""
    # By calls of their own, so that each has a place of its own.
    ids = [(await insert(store, limit_key="l", ordered="continue"))[0] for _ in range(3)]
    me = await worker(store)
    await release(store, await claim_first(store, me), delay=60.0, error="{}")
    other = await claim_first(store, me, rule=LimitRule("l", concurrency=5))
    assert other.id == ids[1]
    await finish(store, other)
    assert ids_of(await claim_keys(store, me, rules=[LINE])) == []


async def test_keys_that_no_index_can_hold_are_kept_out(store: Store, conn: asyncpg.Connection) -> None:
    """A scheduled row of such a key, written by hand, would keep all others from being promoted."""
    await insert(store, limit_key="l", run_after=datetime.now(UTC) + timedelta(hours=1))
    # Texts that don't shrink by being compressed.
    change = """
        UPDATE aiotasks_task SET run_after = now(), limit_key = left(each.long, 301), queue_name = left(
            each.long, $1::integer - octet_length(backend) - octet_length(lane) - 301
        )
        FROM (SELECT string_agg(md5(n::text), '') AS long FROM generate_series(1, 100) AS n) AS each
    """
    with pytest.raises(asyncpg.CheckViolationError, match="aiotasks_task_keys_fit"):
        await conn.execute(change, MAX_NAMES + 1)
    await conn.execute(change, MAX_NAMES)
    assert len(await store.promote_due_jobs("default", 10)) == 1


async def test_a_limit_is_found_behind_many_tasks_of_others(store: Store) -> None:
    for key in ("a:1", "a:2", "z:1"):
        await insert(store, 50, limit_key=key)
    rules = [LimitRule("a"), LimitRule("z", concurrency=3)]
    await claim_keys(store, await worker(store), "a:1", "a:2", "z:1", rules=rules, slots=150)
    found = {
        limit: [(one.key, one.running) for one in await store.select_limits("default", limit, 2)]
        for limit in (None, "a", "z")
    }
    assert found == {
        None: [("a:1", 50), ("a:2", 50)],
        "a": [("a:1", 50), ("a:2", 50)],
        "z": [("z:1", 3)],
    }
