"""Keyed claims, one session after the other: what is counted, what is said of a key, and what ends a task's
place."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from aiotasks.policies.unique import UniqueRule
from aiotasks.rows import Status, UniqueJob
from aiotasks.store.bulk import Meant
from aiotasks.store.limits import KeyFound, KeyRequest, LimitRule, LimitSetting
from aiotasks.store.store import Store

from .limits import LINE, ONE, claim_keys, fail, ids_of, only, states
from .rows import CANCELLED, claim, expire, finish, insert, new_job, release, rescue, row, worker

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the server doesn't know the loop

LATER = timedelta(hours=1)


async def test_a_limit_is_counted_from_the_rows_that_run(store: Store) -> None:
    ids = await insert(store, 4, limit_key="l")
    me = await worker(store)
    two = LimitRule("l", concurrency=2)
    found = await claim_keys(store, me, rules=[two])
    assert ids_of(found) == ids[:2]
    assert {(job.limit_key, job.lane, job.status) for job in found.jobs} == {("l", "loop", "RUNNING")}
    assert only(found)[2:5] == ("full", 2, 0)
    assert only(await claim_keys(store, me, rules=[two]))[2:5] == ("full", 0, 0)
    await finish(store, found.jobs[0])
    again = await claim_keys(store, me, rules=[two])
    assert (ids_of(again), only(again).state) == ([ids[2]], "full")
    await finish(store, *again.jobs, found.jobs[1])
    last = await claim_keys(store, me, rules=[two])
    assert (ids_of(last), only(last)[2:5]) == ([ids[3]], ("none", 1, 1))


async def test_what_else_claims_leaves_keyed_tasks_alone(store: Store) -> None:
    await insert(store, 2, limit_key="l")
    await insert(store, limit_key="l", lane="thread", priority=9)
    (plain,) = await insert(store)
    me = await worker(store)
    assert [job.id for job in await claim(store, me)] == [plain]
    assert ids_of(await claim_keys(store, me, lane="thread", queue_name="other")) == []


async def test_a_lease_that_is_over_claims_nothing(store: Store, conn: asyncpg.Connection) -> None:
    await insert(store, limit_key="l")
    me = await worker(store)
    await claim_keys(store, me, slots=1, rules=[LimitRule("l", concurrency=1)], queue_name="none")
    await expire(conn, me)
    assert await claim_keys(store, me) == ([], [])


async def test_what_a_claim_says_of_keys(store: Store, conn: asyncpg.Connection, database: str) -> None:
    for key in ("l:1", "l:2", "l:3", "l:4", "x:1", "l:6"):
        await insert(store, 3, limit_key=key)
    me = await worker(store)
    keys = ["l:1", "l:2", "l:3", "l:4", "x:1", "l:5", "l:1", "l:6"]
    await store.insert_limits("default", ["l:1", "l:2", "l:3", "l:5", "l:6"])
    await claim_keys(store, me, "l:3")
    await store.pause_limit("default", "l:2", "why")
    async with conn.transaction():
        await conn.execute("SELECT FROM aiotasks_limit WHERE key = 'l:6' FOR UPDATE")
        requests = [KeyRequest("default", key) for key in keys]
        found = await store.claim_keyed(me, uuid.uuid4(), "default", "loop", 20, requests, [ONE])
    expected = ["full", "paused", "full", "new", "unknown", "none", "left", "busy"]
    assert states(found) == expected
    assert [one.given for one in found.seen] == [1, 0, 0, 0, 0, 0, 0, 0]
    assert [one.key for one in found.seen] == keys


async def test_slots_end_a_claim(store: Store) -> None:
    for number in range(4):
        await insert(store, 3, limit_key=f"l:{number}")
    me = await worker(store)
    two = LimitRule("l", concurrency=2)
    found = await claim_keys(store, me, "l:0", "l:1", "l:2", "l:3", slots=2, rules=[two])
    assert (len(found.jobs), states(found)) == (2, ["more", "more", "left", "left"])


async def test_keys_take_turns_by_their_weights(store: Store) -> None:
    rules = [LimitRule("a", weight=3), LimitRule("b"), LimitRule("c", weight=2, concurrency=1)]
    for name in ("a", "b", "c"):
        await insert(store, 20, limit_key=name)
    found = await claim_keys(store, await worker(store), "a", "b", "c", rules=rules, slots=12)
    assert [(one.given, one.state) for one in found.seen] == [(6, "more"), (2, "more"), (1, "full")]


async def test_fairness_alone_needs_no_row(store: Store, conn: asyncpg.Connection) -> None:
    await insert(store, 2, limit_key="l:1")
    found = await claim_keys(store, await worker(store), "l:1", rules=[LimitRule("l")])
    assert (len(found.jobs), only(found)[2:7]) == (2, ("none", 2, None, None, None))
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_limit") == 0


async def test_priority_then_place_then_id(store: Store) -> None:
    (old,) = await insert(store, limit_key="l")
    low = await insert(store, limit_key="l", priority=-1)
    same = await insert(store, 2, limit_key="l")
    high = await insert(store, limit_key="l", priority=5)
    me = await worker(store)
    order = []
    for _ in range(5):
        found = await claim_keys(store, me)
        order += ids_of(found)
        await finish(store, *found.jobs)
    assert order == [*high, old, *same, *low]


@pytest.mark.parametrize(
    ("said_of_key", "said_of_limit", "given"),
    [
        (None, None, 2),
        (None, LimitSetting(concurrency=4), 4),
        (LimitSetting(concurrency=1), LimitSetting(concurrency=4), 1),
        (LimitSetting(concurrency=0), None, 0),
        (LimitSetting(rate="1/h", pace=3600.0, burst=1), None, 1),
        (LimitSetting(concurrency=6, rate="", pace=0.0), LimitSetting(rate="1/h", pace=3600.0), 6),
    ],
)
async def test_an_operators_word_counts_for_more(
    store: Store, said_of_key: LimitSetting | None, said_of_limit: LimitSetting | None, given: int
) -> None:
    await insert(store, 8, limit_key="l:1")
    for key, said in (("l:1", said_of_key), ("l", said_of_limit)):
        if said is not None:
            await store.set_limit("default", key, said)
    me = await worker(store)
    rule = LimitRule("l", concurrency=2)
    assert len((await claim_keys(store, me, "l:1", rules=[rule])).jobs) == given
    for key in ("l:1", "l"):
        said = said_of_key if key == "l:1" else said_of_limit
        assert await store.reset_limit("default", key) is (said is not None)
    more = await claim_keys(store, me, "l:1", rules=[rule])
    assert len(more.jobs) == max(0, 2 - given)


async def test_settings_that_are_not_given_stay(store: Store) -> None:
    await store.set_limit("default", "l", LimitSetting(concurrency=3, weight=2))
    await store.set_limit("default", "l", LimitSetting(concurrency=4, rate="5/s", pace=0.2, burst=2))
    await store.set_limit("default", "m:1", LimitSetting(weight=9))
    (state,) = await store.select_limits("default", "l", 10)
    assert (state.key, state.said) == ("l", LimitSetting(4, "5/s", 0.2, 2, 2))
    assert [one.key for one in await store.select_limits("default", None, 10)] == ["l", "m:1"]


async def test_a_limit_that_no_code_knows(store: Store) -> None:
    await insert(store, 2, limit_key="l:1", ordered="continue")
    me = await worker(store)
    assert only(await claim_keys(store, me, "l:1", rules=[])).state == "unknown"
    assert len((await claim_keys(store, me, "l:1", rules=[LimitRule("l", 1, ordered=True)])).jobs) == 1
    await store.set_limit("default", "l", LimitSetting(concurrency=2))
    assert only(await claim_keys(store, me, "l:1", rules=[])).state == "full"  # it may be a line


async def test_an_operators_rate_makes_a_limit_known(store: Store) -> None:
    """Also one of the key alone."""
    me = await worker(store)
    for key, said in (("l:1", "l"), ("m:1", "m:1")):
        await insert(store, 2, limit_key=key)
        await store.set_limit("default", said, LimitSetting(rate="1/h", pace=3600.0))
        await store.insert_limits("default", [key])
        (job,) = (await claim_keys(store, me, key, rules=[])).jobs
        await fail(store, job)
        assert only(await claim_keys(store, me, key, rules=[])).state == "closed"


async def test_pauses(store: Store, conn: asyncpg.Connection) -> None:
    await insert(store, 2, limit_key="l:1")
    me = await worker(store)
    for key in ("l:1", "l"):
        await store.pause_limit("default", key, "why")
        assert only(await claim_keys(store, me, "l:1")).state == "paused"
        (state,) = await store.select_limits("default", key, 10)
        assert (state.pause_reason, state.paused_at is None) == ("why", False)
        assert await store.resume_limit("default", key) is True
        assert await store.resume_limit("default", key) is False
    await store.insert_pause("default", "queue", "default", "", None, None)
    assert only(await claim_keys(store, me, "l:1")).state == "paused"
    await store.delete_pause("default", "queue", "default")
    path = new_job().template.task_path
    await store.insert_pause("default", "task", path, "", None, None)
    assert only(await claim_keys(store, me, "l:1"))[2:4] == ("none", 0)
    (other,) = await insert(store, limit_key="l:1", task_path="other")
    assert ids_of(await claim_keys(store, me, "l:1")) == [other]
    await conn.execute(
        "UPDATE aiotasks_task SET status = 'SUCCESSFUL', finished_at = now() WHERE id = $1", other
    )
    await conn.execute("UPDATE aiotasks_pause SET until = clock_timestamp()")
    assert len((await claim_keys(store, me, "l:1")).jobs) == 1


async def test_a_key_is_closed_for_the_longest_time(store: Store, conn: asyncpg.Connection) -> None:
    await insert(store, 2, limit_key="l:1")
    me = await worker(store)
    for seconds in (60.0, 3600.0, 1.0):
        await store.close_keys("default", [("l:1", seconds)])
    seen = only(await claim_keys(store, me, "l:1"))
    assert seen.state == "closed"
    assert seen.wait is not None
    assert 3000 < seen.wait <= 3600
    await conn.execute("UPDATE aiotasks_limit SET closed_until = 'infinity'")
    assert only(await claim_keys(store, me, "l:1")).state == "closed"
    await conn.execute("UPDATE aiotasks_limit SET closed_until = clock_timestamp()")
    assert len((await claim_keys(store, me, "l:1")).jobs) == 1


async def test_a_rate_leaks(store: Store, conn: asyncpg.Connection) -> None:
    await insert(store, 10, limit_key="l")
    me = await worker(store)
    rule = LimitRule("l", pace=60.0, burst=3)

    async def starts(seconds: float = 0.0) -> tuple[int, float]:
        await conn.execute(
            "UPDATE aiotasks_limit SET claimed_at = claimed_at - make_interval(secs => $1)", seconds
        )
        found = await claim_keys(store, me, rules=[rule])
        seen = only(found)
        assert seen.state == "closed"
        assert seen.wait is not None
        return len(found.jobs), seen.wait

    number, wait = await starts()
    assert (number, 55 < wait <= 60) == (3, True)
    assert (await starts())[0] == 0
    number, wait = await starts(90)
    assert (number, 25 < wait <= 30) == (1, True)
    assert (await starts(1_000_000))[0] == 3
    # The clock was set back: the key isn't closed for as long as that.
    number, wait = await starts(-1_000_000)
    assert (number, wait <= 60) == (1, True)


async def test_code_without_the_rate_pays_nothing_of_it(store: Store) -> None:
    """During a deploy: else each start of the old code would allow one more of the new."""
    await insert(store, 6, limit_key="l")
    me = await worker(store)
    known, unknown = LimitRule("l", pace=3600.0), LimitRule("l", concurrency=1, ordered=True)
    (first,) = (await claim_keys(store, me, rules=[known])).jobs
    await fail(store, first)
    for _ in range(3):
        (job,) = (await claim_keys(store, me, rules=[unknown])).jobs
        await fail(store, job)
        seen = only(await claim_keys(store, me, rules=[known]))
        assert (seen.state, seen.given) == ("closed", 0)


async def test_a_dead_workers_place_is_taken_until_the_rescue(store: Store, conn: asyncpg.Connection) -> None:
    first, second = await insert(store, 2, limit_key="l")
    dead, me = await worker(store), await worker(store)
    await claim_keys(store, dead)
    await expire(conn, dead)
    assert only(await claim_keys(store, me)).state == "full"
    (rescued,) = await rescue(store)
    assert (rescued.id, rescued.limit_key, rescued.lane) == (first, "l", "loop")
    found = await claim_keys(store, me)
    assert ids_of(found) == [first]  # at its old place
    assert await release(store, *found.jobs, delay=60) == {first: "default"}
    assert ids_of(await claim_keys(store, me)) == [second]


async def test_what_has_expired_is_not_started(store: Store, conn: asyncpg.Connection) -> None:
    late, other = await insert(store, 2, limit_key="l", ordered="stop")
    await conn.execute("UPDATE aiotasks_task SET expires_at = clock_timestamp() WHERE id = $1", late)
    me = await worker(store)
    for rule in (LINE, ONE):
        found = await claim_keys(store, me, rules=[rule])
        assert ids_of(found) == [other]
        await release(store, *found.jobs)
    assert [job.id for job in await store.expire_jobs("default", "{}", 10)] == [late]
    assert ids_of(await claim_keys(store, me, rules=[LINE])) == [other]


async def test_suspects_are_taken_by_their_ids(store: Store, conn: asyncpg.Connection) -> None:
    for ordered in (None, "continue"):
        await conn.execute("TRUNCATE aiotasks_task, aiotasks_limit")
        first, second = await insert(store, 2, limit_key="l", ordered=ordered)
        await conn.execute("UPDATE aiotasks_task SET crashes = 2 WHERE id = $1", first)
        me = await worker(store)
        rules = [LINE if ordered else ONE]
        (request,) = await store.list_keyed_suspects("default", "loop", None)
        assert request == ("default", "l", first)
        assert await store.list_keyed_suspects("default", "loop", ["other"]) == []
        assert await store.list_keyed_suspects("default", "thread", None) == []
        found = await claim_keys(store, me, rules=rules)
        assert ids_of(found) == ([] if ordered else [second])  # a line waits for its first
        if found.jobs:
            await finish(store, *found.jobs)
        assert ids_of(await claim_keys(store, me, rules=rules, ids=[first])) == [first]


async def test_rows_of_others_are_passed_over(store: Store, conn: asyncpg.Connection) -> None:
    first, second = await insert(store, 2, limit_key="l")
    me = await worker(store)
    async with conn.transaction():
        await conn.execute("SELECT FROM aiotasks_task WHERE id = $1 FOR UPDATE", first)
        assert ids_of(await claim_keys(store, me, rules=[LINE._replace(ordered=False, concurrency=1)])) == [
            second
        ]


# Inserts


async def test_every_insert_makes_lane_place_and_order(store: Store, conn: asyncpg.Connection) -> None:
    rule = UniqueRule(None, waiting=True, on_conflict="replace", keep_run_after=False)

    def unique(key: str, limit_key: str | None) -> UniqueJob:
        job = new_job(ordered="stop")
        return UniqueJob(job.id, job.template, "[]", "{}", job.enqueued_at, key, rule, limit_key=limit_key)

    keyed: dict[str, Any] = {"limit_key": "l", "ordered": "stop"}
    soon = datetime.now(UTC) + LATER
    (single,) = await insert(store, **keyed)
    mixed = [new_job(**keyed, lane="thread"), new_job(), new_job(**keyed, run_after=soon)]
    mixed.append(replace(mixed[0], id=str(uuid.uuid4()), limit_key=None))
    await store.insert_jobs(mixed)
    uniques = [unique("1", "l"), unique("2", None), unique("3", "l"), unique("4", None)]
    for one in uniques[:2]:
        assert await store.insert_unique_job(one, lock_timeout=1.0) == (True, None)
    assert await store.insert_unique_jobs(uniques[2:], lock_timeout=1.0) == {"3", "4"}
    ids = [single, *(uuid.UUID(job.id) for job in (*mixed, *uniques))]
    rows = [await row(conn, id) for id in ids]
    lines = [("loop+", "l", "stop"), ("thread+", "l", "stop")]
    none = ("loop", None, None)
    expected = [lines[0], lines[1], none, lines[0], ("thread", None, None), lines[0], none, lines[0], none]
    assert [(one["lane"], one["limit_key"], one["ordered"]) for one in rows] == expected
    for one in rows:
        place = None if one["limit_key"] is None else one["run_after"] or one["ready_at"]
        assert (one["limit_place"], one["limit_held"]) == (place, None)
    assert rows[3]["limit_place"] == soon


async def test_a_replaced_task_changes_its_line(store: Store, conn: asyncpg.Connection) -> None:
    rule = UniqueRule(None, waiting=True, on_conflict="replace", keep_run_after=False)
    job = new_job(ordered="stop")
    base = UniqueJob(job.id, job.template, "[]", "{}", job.enqueued_at, "u", rule)
    id = uuid.UUID(job.id)
    await store.insert_unique_job(base, lock_timeout=1.0)
    places = []
    for key in ("l:1", "l:1", "l:2", None):
        new = replace(base, id=str(uuid.uuid4()), limit_key=key)
        (found,) = (await store.replace_waiting_jobs([id], [new], lock_timeout=1.0)).values()
        stored = await row(conn, id)
        assert (found.limit_key, found.lane) == (key, "loop")
        assert stored["lane"] == ("loop+" if key else "loop")
        assert stored["ordered"] == ("stop" if key else None)
        places.append(stored["limit_place"])
    assert places[0] == places[1] < places[2]
    assert places[3] is None


# Lines in strict order


async def test_a_line_is_one_over_queues_and_lanes(store: Store) -> None:
    line: dict[str, Any] = {"limit_key": "l", "ordered": "continue"}
    (a,) = await insert(store, queue_name="a", **line)
    (b,) = await insert(store, queue_name="b", lane="thread", **line)
    (c,) = await insert(store, queue_name="a", **line)
    me = await worker(store)
    rules = [LINE]
    first = await claim_keys(store, me, queue_name="a", rules=rules)
    assert (ids_of(first), only(first).state) == ([a], "full")
    assert only(await claim_keys(store, me, queue_name="b", lane="thread", rules=rules)).state == "full"
    await finish(store, *first.jobs)
    waits = only(await claim_keys(store, me, queue_name="a", rules=rules))
    assert (waits.state, waits.elsewhere) == ("none", ("b", "thread+"))
    second = await claim_keys(store, me, queue_name="b", lane="thread", rules=rules)
    assert ids_of(second) == [b]
    await finish(store, *second.jobs)
    assert ids_of(await claim_keys(store, me, queue_name="a", rules=rules)) == [c]


@pytest.mark.parametrize("after", ["retry", "release", "rescue", "lost"])
async def test_what_has_begun_is_final_before_the_next_starts(
    store: Store, conn: asyncpg.Connection, after: str
) -> None:
    (first,) = await insert(store, limit_key="l", ordered="stop")
    me, other = await worker(store), await worker(store)
    (job,) = (await claim_keys(store, me, rules=[LINE])).jobs
    await insert(store, limit_key="l", ordered="stop", priority=9)
    if after == "retry":
        await release(store, job, delay=60, error="{}")
        assert only(await claim_keys(store, other, rules=[LINE])).state == "full"
        await conn.execute("UPDATE aiotasks_task SET run_after = now() WHERE id = $1", first)
        assert [one.lane for one in await store.promote_due_jobs("default", 10)] == ["loop+"]
    elif after == "release":
        await release(store, job)
    elif after == "rescue":
        await expire(conn, me)
        await rescue(store)
    else:
        await conn.execute("UPDATE aiotasks_task SET last_attempted_at = now() - interval '1 h'")
        assert len(await store.release_lost_claims(me, [], 1.0, CANCELLED)) == 1
    assert ids_of(await claim_keys(store, other, rules=[LINE])) == [first]


@pytest.mark.parametrize("ordered", ["continue", "stop"])
async def test_a_failure_stops_its_line_or_not(store: Store, conn: asyncpg.Connection, ordered: str) -> None:
    first, second = await insert(store, 2, limit_key="l:1", ordered=ordered)
    me = await worker(store)
    (job,) = (await claim_keys(store, me, "l:1", rules=[LINE])).jobs
    await fail(store, job)
    found = await claim_keys(store, me, "l:1", rules=[LINE])
    if ordered == "continue":
        assert ids_of(found) == [second]
        assert await store.release_line(first, "default") == (False, None)
        return
    assert (ids_of(found), only(found).state) == ([], "full")
    (state,) = await store.select_limits("default", None, 10)
    assert (state.key, state.stopped_by, state.running) == ("l:1", first, 0)
    assert await store.release_line(first, "other") == (False, None)
    assert await store.release_line(first, "default") == (True, ("default", "loop+"))
    assert await store.release_line(first, "default") == (False, None)
    assert ids_of(await claim_keys(store, me, "l:1", rules=[LINE])) == [second]
    assert (await row(conn, first))["status"] == "FAILED"


async def test_a_retry_by_hand_is_next(store: Store) -> None:
    first, _ = await insert(store, 2, limit_key="l", ordered="stop")
    me = await worker(store)
    (job,) = (await claim_keys(store, me, rules=[LINE])).jobs
    await fail(store, job)
    (retried,) = await store.retry_jobs([first], Meant("default", [Status.FAILED]))
    assert retried == (first, "default", "loop+", None)
    assert ids_of(await claim_keys(store, me, rules=[LINE])) == [first]


async def test_a_cancelled_task_stops_no_line(store: Store) -> None:
    first, second, third = await insert(store, 3, limit_key="l", ordered="stop")
    me = await worker(store)
    (job,) = (await claim_keys(store, me, rules=[LINE])).jobs
    await release(store, job, delay=60, error="{}")
    await store.cancel_jobs([first], "default", CANCELLED)
    (job,) = (await claim_keys(store, me, rules=[LINE])).jobs
    assert job.id == second
    await store.cancel_jobs([second], "default", CANCELLED)
    await fail(store, job)
    assert ids_of(await claim_keys(store, me, rules=[LINE])) == [third]


async def test_tasks_from_before_a_limit_had_an_order(store: Store) -> None:
    old = await insert(store, 2, limit_key="l")
    (new,) = await insert(store, limit_key="l", ordered="stop")
    me = await worker(store)
    order = []
    for _ in range(3):
        found = await claim_keys(store, me, rules=[LINE])
        order += ids_of(found)
        assert only(await claim_keys(store, me, rules=[LINE])).state == "full"
        await finish(store, *found.jobs)
    assert order == [*old, new]
    await insert(store, 2, limit_key="l", ordered="stop")  # and from when it had one
    assert len((await claim_keys(store, me, rules=[LimitRule("l", concurrency=2)])).jobs) == 2


# Keys


async def test_keys_are_listed_in_pieces(store: Store) -> None:
    for queue in ("a", "b"):
        for number in range(5):
            await insert(store, 2, limit_key=f"l:{number}", queue_name=queue, priority=number)
    await insert(store, limit_key="l:9", queue_name="a", lane="thread")
    await insert(store, queue_name="a")
    path = new_job().template.task_path
    first = await store.list_keys("default", "loop", [("a", ""), ("b", "l:2"), ("c", "")], 3)
    assert first == [
        *(KeyFound("a", f"l:{number}", number, path) for number in range(3)),
        *(KeyFound("b", f"l:{number}", number, path) for number in (3, 4)),
    ]
    assert [one.key for one in await store.top_keys("default", "loop", ["a", "b"], 3)] == [
        *["l:4"] * 2,
        *["l:3"] * 2,
    ]
    recent = await store.recent_keys("default", "loop", ["a"], 60.0, 1)
    assert [one.key for one in recent] == [f"l:{number}" for number in range(5)]
    assert await store.recent_keys("default", "loop", ["a"], -60.0, 1) == []
    assert await store.list_keys("other", "loop", [("a", "")], 3) == []


async def test_the_end_of_the_work(store: Store) -> None:
    """Keys that nobody may start tasks of aren't waited for, but closed ones are."""

    async def unfinished() -> bool:
        return await store.has_unfinished_jobs("default", None, ["loop"])

    assert await unfinished() is False
    await insert(store, limit_key="l:1")
    assert await unfinished() is True
    assert await store.has_unfinished_jobs("default", None, ["thread"]) is False
    await store.close_keys("default", [("l:1", 60.0)])
    assert await unfinished() is True
    for key in ("l:1", "l"):
        await store.pause_limit("default", key, "")
        assert await unfinished() is False
        await store.resume_limit("default", key)
    await store.set_limit("default", "l", LimitSetting(concurrency=0))
    assert await unfinished() is False
    await store.set_limit("default", "l:1", LimitSetting(concurrency=1))
    assert await unfinished() is True


async def test_counts_and_lists_know_keyed_tasks(store: Store) -> None:
    await insert(store, 2, limit_key="l", queue_name="q")
    me = await worker(store)
    assert (await store.count_ready_jobs("default", ["q"], 10))["q"].number == 2
    assert (await store.count_ready_jobs("default", ["q"], 10))["q"].oldest is not None
    assert await store.list_queues("default") == [("q", "loop+")]
    await claim_keys(store, me, queue_name="q", rules=[LimitRule("l", concurrency=9)])
    assert await store.count_running_jobs("default", 10) == [("q", me, "loop", 2)]


async def test_rows_that_nobody_needs_are_pruned(store: Store, conn: asyncpg.Connection) -> None:
    keys = ["busy", "closed", "idle", "new", "paid", "paused", "set", "unpaid"]
    await store.insert_limits("default", [*keys, "idle"])
    await insert(store, limit_key="busy")
    await claim_keys(store, await worker(store), "busy", rules=[LimitRule("busy", concurrency=1)])
    await store.pause_limit("default", "paused", "")
    await store.set_limit("default", "set", LimitSetting(weight=2))
    await store.close_keys("default", [("closed", 7200.0)])
    await conn.execute(
        """
        UPDATE aiotasks_limit SET claimed_at = now() - interval '2 h',
            paid_at = CASE key WHEN 'unpaid' THEN now() + interval '1 h' ELSE now() - interval '1 h' END
        WHERE key <> 'new'
        """
    )
    assert await store.prune_limits("default", "", 3) == (3, "idle")
    assert await store.prune_limits("default", "idle", 100) == (5, "unpaid")
    assert await store.prune_limits("default", "unpaid", 100) == (0, None)
    left = await conn.fetch("SELECT key FROM aiotasks_limit ORDER BY key")
    assert [one[0] for one in left] == ["busy", "closed", "new", "paused", "set", "unpaid"]


@pytest.mark.parametrize("column", ["pace", "concurrency", "burst", "weight", "level"])
async def test_no_value_makes_the_claims_of_other_keys_fail(conn: asyncpg.Connection, column: str) -> None:
    for value in ("-1", "'NaN'"):
        with pytest.raises(asyncpg.PostgresError):
            await conn.execute(
                f"INSERT INTO aiotasks_limit (backend, key, {column}) VALUES ('d', 'k', {value})"
            )
