"""What the statements cost: their plans, with next to nothing and with 100,000 rows in the table.

The plans are those of prepared statements that have run a dozen times already, as a worker's have: from
the sixth run on PostgreSQL may keep a plan that it made when the table was small.
"""

import json
import math
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from aiotasks.db.connect import connect
from aiotasks.db.drivers import ConnectionDriver
from aiotasks.policies.policy import COLUMNS
from aiotasks.rows import Status
from aiotasks.store.bulk import Meant
from aiotasks.store.schedules import DeclaredSchedule
from aiotasks.store.statements import load
from aiotasks.store.store import Store

from .rows import EVER, new_schedule, worker

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the server doesn't know the loop

SLOTS = 10
QUEUES = ["default", "a", "b", "c", "d"]


@pytest.fixture
async def conn(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection as aiotasks opens them: how it plans is a setting of the session."""
    connection = await connect("default", timeout=10.0, statement_cache_size=100)
    yield connection
    await connection.close()


class Plan:
    """What EXPLAIN ANALYZE says of one run of a statement."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.nodes: list[dict[str, Any]] = []
        self._walk(plan)
        self.buffers = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        self.rows = plan["Actual Rows"]

    def _walk(self, node: dict[str, Any]) -> None:
        self.nodes.append(node)
        for child in node.get("Plans", []):
            self._walk(child)

    def kinds(self) -> set[str]:
        return {node["Node Type"] for node in self.nodes}

    def scans_of(self, table: str) -> set[str]:
        scans = (node for node in self.nodes if node.get("Relation Name") == table)
        return {node["Node Type"] for node in scans if "Scan" in node["Node Type"]}

    def counted(self) -> int:
        """How many rows of indexes and tables were read."""
        return sum(
            round(node["Actual Rows"] * node["Actual Loops"]) for node in self.nodes if "Index Name" in node
        )

    def indexes(self) -> set[str]:
        return {node["Index Name"] for node in self.nodes if "Index Name" in node}


class Prepared:
    """A statement that a session has prepared and run before."""

    def __init__(self, conn: asyncpg.Connection, name: str, arguments: Callable[[], tuple[Any, ...]]) -> None:
        self._conn = conn
        self._name = name
        self._arguments = arguments

    async def warm(self) -> None:
        self._statement = await self._conn.prepare(load(self._name).sql)
        for _ in range(12):
            await self._statement.fetch(*self._arguments())

    async def explain(self, *arguments: Any) -> Plan:
        """Run it, roll back, and say how it went."""
        values = ", ".join(_literal(value) for value in arguments or self._arguments())
        transaction = self._conn.transaction()
        await transaction.start()
        try:
            text = await self._conn.fetchval(
                f'EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE "{self._statement.get_name()}" ({values})'
            )
        finally:
            await transaction.rollback()
        return Plan(json.loads(text)[0]["Plan"])


def _literal(value: Any) -> str:
    if isinstance(value, list):
        items = ("NULL" if item is None else '"{}"'.format(str(item).replace('"', '\\"')) for item in value)
        return "'{%s}'" % ",".join(items)  # noqa: UP031  # braces
    return "NULL" if value is None else f"'{value}'"


def statements(conn: asyncpg.Connection, alive: uuid.UUID) -> dict[str, Prepared]:
    one, other = [uuid.uuid4()], [uuid.uuid4()]
    both: tuple[Any, ...] = (*(QUEUES, [EVER] * len(QUEUES), SLOTS, True) * 2, [], [], [], [])
    same = ("default", "default", "x", "loop", 0)
    no_policy = [None] * len(COLUMNS)
    keys = ["k 1", "k 2", "k 3"]
    arguments: dict[str, Callable[[], tuple[Any, ...]]] = {
        "insert_unique_job": lambda: (
            uuid.uuid4(),
            *same[:5],
            "[]",
            "{}",
            datetime.now(UTC),
            None,
            None,
            "k 0",
            None,
            False,
            "1s",
            None,
            None,
            None,
            *no_policy,
        ),
        "insert_unique_jobs": lambda: (
            [uuid.uuid4() for _ in keys],
            ["[]"] * 3,
            ["{}"] * 3,
            keys,
            [1, 2, 1],
            datetime.now(UTC),
            "1s",
            *([each] * 2 for each in (*same, None, None, None, False, None)),
            [None] * 3,
            *([each] * 2 for each in (None, *no_policy)),
        ),
        "free_unique_keys": lambda: ("default", keys, "1s"),
        "lock_unique_keys": lambda: ("default", keys, "1s"),
        "select_holders": lambda: ("default", keys),
        "replace_waiting_jobs": lambda: (
            [uuid.uuid4() for _ in keys],
            keys,
            ["[]"] * 3,
            ["{}"] * 3,
            "default",
            0,
            None,
            None,
            False,
            "1s",
            "{}",
            [None] * 3,
            None,
        ),
        "claim_jobs": lambda: (alive, uuid.uuid4(), "default", *both),
        "claim_suspect": lambda: (alive, uuid.uuid4(), "default", "loop", QUEUES),
        "claim_keyed": lambda: keyed(alive, ["l:1", "l:2", "m"]),
        "insert_limits": lambda: ("default", ["l:1", "l:2"], "1s"),
        "list_keys": lambda: ("default", "loop+", QUEUES, [""] * 5, 5),
        "top_keys": lambda: ("default", "loop+", QUEUES, 5),
        "recent_keys": lambda: ("default", "loop+", QUEUES, 60.0, 5),
        "list_keyed_suspects": lambda: ("default", "loop+", QUEUES, 10_000, "", 10),
        "prune_limits": lambda: ("default", "", 10),
        "has_claimable": lambda: ("default", ["default", "other"], ["loop", "thread"], 5.0),
        "begin_sample": lambda: ("default", 3600.0),
        "finish_sample": lambda: (1, "{}"),
        "select_samples": lambda: ("default", 3600.0, 10),
        "select_limits": lambda: ("default", None, 10, False),
        "count_limited_jobs": lambda: ("default", QUEUES[:1], 10),
        "count_keyed_jobs": lambda: ("default", ["l:1", "l:2", "m"], 10),
        "set_limit": lambda: ("default", "l:1", None, None, None, None, 2),
        "reset_limit": lambda: ("default", "l:1"),
        "pause_limit": lambda: ("default", "l:2", "why"),
        "resume_limit": lambda: ("default", "l:2"),
        "close_keys": lambda: ("default", ["l:1"], [0.0], "1s"),
        "release_line": lambda: (one[0], "default"),
        "finish_jobs": lambda: (one, other, ["FAILED"], [None], ["{}"]),
        "select_finished_jobs": lambda: (one, other),
        "await_jobs": lambda: (one, "default", 1),
        "select_ended_jobs": lambda: (one, "default"),
        "select_own_jobs": lambda: (one, "default"),
        "release_jobs": lambda: (one, other, [0.0], [None], [], []),
        "save_metadata": lambda: (one, other, ["{}"], [None]),
        "replace_metadata": lambda: (one[0], "default", "{}", None),
        "select_jobs": lambda: (one, "default"),
        "select_states": lambda: (one, "default", "{"),
        "promote_due_jobs": lambda: ("default", 50, None, []),
        "list_due_jobs": lambda: ("default", 50, []),
        "next_due": lambda: ("default", []),
        "select_pauses": lambda: ("default",),
        "select_due_schedules": lambda: ("default", 50),
        "move_schedules": lambda: ("default", ["s 1"], [EVER], ["* * * * *"], ["UTC"], [EVER], [EVER]),
        "skip_ticks": lambda: ("default", ["s 1"], [EVER], [1]),
        "fail_schedules": lambda: ("default", ["s 1"], [EVER], ["no"], 1.0, 9.0),
        "expire_jobs": lambda: ("default", "{}", 50),
        "list_queues": lambda: ("default", "", "", 50),
        "list_waiting": lambda: (100,),
        "oldest_running_job": lambda: ("default", 10),
        "count_failed_jobs": lambda: ("default", 10),
        "has_unfinished_jobs": lambda: ("default", None, ["loop", "thread"], []),
        "count_ready_jobs": lambda: ("default", QUEUES[:1], 10),
        "count_scheduled_jobs": lambda: ("default", 10),
        "count_running_jobs": lambda: ("default", 10),
        "select_workers": lambda: ("default",),
        "rescue_jobs": lambda: ("default", 3, "{}", 50, "{}", alive, 10.0),
        "cancel_jobs": lambda: (one, "default", "{}"),
        "select_cancelled_jobs": lambda: (alive,),
        "release_lost_claims": lambda: (alive, one, 10.0, "{}"),
        "list_ready": lambda: ("default", None),
        "walk_jobs": lambda: walk("finished", "FAILED"),
        "page_jobs": lambda: page("finished", "FAILED"),
        "select_listed": lambda: (one, "default"),
        "count_failures": lambda: ("default", 20, 10, *[None] * len(FILTERS)),
        "select_detail": lambda: (one[0], "default"),
        "select_running": lambda: ("default", 10, 50),
        "select_reports": lambda: ("default",),
        "select_left_jobs": lambda: (one, *meant("FAILED")),
        "cancel_free_jobs": lambda: (one, *meant("READY"), "{}"),
        "retry_jobs": lambda: (one, *meant("FAILED")),
        "run_jobs_now": lambda: (one, *meant("SCHEDULED")),
        "retry_unique_job": lambda: (uuid.uuid4(), *meant("FAILED"), "100ms"),
        "delete_jobs": lambda: (one, *meant("FAILED")),
        "prune_jobs": lambda: ("default", "SUCCESSFUL", 86_400.0, -math.inf, 50),
        "prune_kept_jobs": lambda: ("default", -math.inf, 50),
        "remove_dead_workers": lambda: ("default", alive),
        "renew_lease": lambda: (alive, 30.0, True, False, 10.0, 0, "{}"),
    }
    return {name: Prepared(conn, name, made) for name, made in arguments.items()}


# What a TaskFilter may be by, in the order of its statements' parameters.
FILTERS = (
    *("queue_name", "task_path", "unique_key"),
    *("after", "before", "finished_after", "finished_before", "error", "worker"),
)

# Long before every task, as a number, because _literal() writes it.
BEGIN, NIL, END = -1e9, uuid.UUID(int=0), 1e11


def keyed(
    worker_id: uuid.UUID,
    keys: list[str],
    concurrency: int | None = 2,
    *,
    ordered: bool = False,
    slots: int = SLOTS,
) -> tuple[Any, ...]:
    """The arguments of claim_keyed. The limit of all keys is "l", of "m" nothing is known."""
    queues = [QUEUES[number % 5] for number in range(len(keys))]
    rule = (["l"], [concurrency], [0.0], [1], [1], [ordered])
    asked = (queues, keys, [None] * len(keys))
    return (worker_id, uuid.uuid4(), "default", "loop+", slots, *asked, *rule)


async def fill_keyed(conn: asyncpg.Connection, number: int, keys: int, ordered: str | None = None) -> None:
    """READY tasks of so many keys, each of which is in one queue."""
    await fill(conn, "READY", number)
    await conn.execute(
        """
        UPDATE aiotasks_task AS task SET lane = 'loop+', limit_place = ready_at, ordered = $2,
            limit_key = 'l:' || each.n, queue_name = ($3::text[])[1 + each.n % 5]
        FROM (SELECT id, (row_number() OVER () % $1)::integer AS n FROM aiotasks_task) AS each
        WHERE task.id = each.id AND task.status = 'READY'
        """,
        keys,
        ordered,
        QUEUES,
    )


def meant(*statuses: str) -> Meant:
    """With times that are compared with each row's."""
    return Meant("default", [Status(status) for status in statuses], finished_by=datetime.now(UTC))


def walk(branch: str, status: str, limit: int = 50, at: float = BEGIN, **chosen: Any) -> tuple[Any, ...]:
    """The arguments of walk_jobs. chosen: queue, lane and priority of the leg, or the filter's values."""
    leg = [chosen.get(name) for name in ("queue", "lane", "priority")]
    return ("default", branch, status, *leg, at, NIL, END, limit, *(chosen.get(name) for name in FILTERS))


def page(branch: str, *statuses: str, number: int = 50, at: float = END, **chosen: Any) -> tuple[Any, ...]:
    """The arguments of page_jobs. chosen: the legs of READY tasks, or the filter's values."""
    queues = chosen.get("queues", [])
    legs = (queues, ["loop"] * len(queues), [3] * len(queues))
    place = (-at, NIL) if branch == "scheduled" else (at, uuid.UUID(int=2**128 - 1))
    filters = [chosen.get(name) for name in FILTERS]
    return ("default", branch, list(statuses) or None, *legs, *place, BEGIN, NIL, number, 100, *filters)


async def fill(conn: asyncpg.Connection, status: str, number: int) -> None:
    await conn.execute(
        """
        INSERT INTO aiotasks_task (
            id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
            crashes, enqueued_at, ready_at, run_after, finished_at, last_attempted_at, claim_id, worker_id
        )
        SELECT gen_random_uuid(), 'default', ($3::text[])[1 + n % cardinality($3::text[])], 'x',
            CASE WHEN n % 3 = 0 THEN 'thread' ELSE 'loop' END, n % 5, $1, '[]', '{}', '{}',
            ARRAY[gen_random_uuid()], 0, now(),
            CASE WHEN $1 <> 'SCHEDULED' THEN now() + n * interval '1 us' END,
            CASE WHEN $1 = 'SCHEDULED' THEN now() + interval '1 day' END,
            CASE WHEN $1 IN ('SUCCESSFUL', 'FAILED') THEN now() END,
            now(),
            CASE WHEN $1 NOT IN ('READY', 'SCHEDULED') THEN gen_random_uuid() END,
            CASE WHEN $1 = 'RUNNING' THEN (SELECT id FROM aiotasks_worker LIMIT 1) END
        FROM generate_series(1, $2::integer) AS n
        """,
        status,
        number,
        QUEUES,
    )


@pytest.fixture(params=["never analyzed", "analyzed while empty", "analyzed with a few rows"])
async def warm(
    request: pytest.FixtureRequest, conn: asyncpg.Connection
) -> AsyncIterator[dict[str, Prepared]]:
    """All statements, prepared and run a dozen times while there was hardly anything in the table.

    The tests fill it without ANALYZE: autovacuum takes up to a minute to notice.
    """
    await conn.execute("ALTER TABLE aiotasks_task SET (autovacuum_enabled = off)")
    alive = await worker(Store(ConnectionDriver(conn)))
    if request.param == "analyzed with a few rows":
        await fill(conn, "SUCCESSFUL", 300)
        await fill(conn, "READY", 3)
    if request.param != "never analyzed":
        await conn.execute("ANALYZE aiotasks_task, aiotasks_worker")
    prepared = statements(conn, alive)
    for one in prepared.values():
        await one.warm()
    yield prepared
    await conn.execute("ALTER TABLE aiotasks_task RESET (autovacuum_enabled)")


def check_claim(plan: Plan, claimed: int) -> None:
    assert plan.rows == claimed
    assert not plan.kinds() & {"Sort", "Incremental Sort"}
    assert plan.scans_of("aiotasks_task") <= {"Index Scan", "Index Only Scan", "Tid Scan"}
    assert plan.indexes() <= {"aiotasks_task_ready", "aiotasks_worker_pkey"}
    # For every row and queue some pages of the index; for every row its page, the new version's, and
    # what the other indexes take.
    assert plan.buffers < 100 + 50 * claimed


async def test_a_claims_cost_does_not_grow_with_the_backlog(
    conn: asyncpg.Connection, warm: dict[str, Prepared]
) -> None:
    """Fault 21 of docs/faults.md: 100,000 READY rows, then scheduled and finished ones beside them."""
    claim = warm["claim_jobs"]
    await fill(conn, "READY", 100_000)
    check_claim(await claim.explain(), 2 * SLOTS)
    suspect = await warm["claim_suspect"].explain()
    assert suspect.rows == 0
    assert suspect.indexes() <= {"aiotasks_task_suspects", "aiotasks_worker_pkey", "aiotasks_pause_name"}
    assert suspect.buffers < 50
    for status in ("SCHEDULED", "SUCCESSFUL"):
        await fill(conn, status, 30_000)
    check_claim(await claim.explain(), 2 * SLOTS)
    await conn.execute("ANALYZE aiotasks_task")
    check_claim(await claim.explain(), 2 * SLOTS)
    await conn.execute("DELETE FROM aiotasks_task WHERE status = 'READY'")
    await conn.execute("VACUUM ANALYZE aiotasks_task")
    check_claim(await claim.explain(), 0)


async def test_a_piece_of_the_walk_costs_by_its_steps(
    conn: asyncpg.Connection, warm: dict[str, Prepared]
) -> None:
    """Not by the queues that there are, nor by their tasks, nor by where it begins."""
    await fill(conn, "READY", 20_000)
    await conn.execute("UPDATE aiotasks_task SET queue_name = 'q ' || hashtext(id::text) % 5000")
    for analyzed in (False, True):
        if analyzed:
            await conn.execute("VACUUM ANALYZE aiotasks_task")
        for after in ("", "q 2", "q 99"):
            plan = await warm["list_queues"].explain("default", after, "loop", 50)
            assert 0 < plan.rows <= 50
            assert not plan.kinds() & {"Sort", "Incremental Sort"}
            assert plan.scans_of("aiotasks_task") <= {"Index Scan", "Index Only Scan"}
            assert plan.indexes() == {"aiotasks_task_ready"}
            assert plan.counted() <= 50
            assert analyzed is False or plan.buffers < 50 * 6
    claim = warm["claim_jobs"]
    names = [f"q {number}" for number in range(200)]
    none = ("{}", "{}", 0, False, "{}", "{}", "{}", "{}")
    worker_id, claim_id = await conn.fetchval("SELECT id FROM aiotasks_worker LIMIT 1"), uuid.uuid4()
    plan = await claim.explain(worker_id, claim_id, "default", names, [EVER] * 200, SLOTS, False, *none)
    check_claim(plan, SLOTS)
    absent = [f"absent {number}" for number in range(200)]
    plan = await claim.explain(worker_id, claim_id, "default", absent, [EVER] * 200, SLOTS, False, *none)
    assert plan.rows == 0
    assert plan.buffers < 200 * 6


@pytest.mark.parametrize(("keys", "ordered"), [(1, None), (10_000, None), (10, "stop")])
async def test_a_keyed_claims_cost_does_not_grow_with_the_backlog(
    conn: asyncpg.Connection, warm: dict[str, Prepared], keys: int, ordered: str | None
) -> None:
    """Nor with the keys, nor with the rows of keys; and it is the same where nothing can be taken."""
    await fill_keyed(conn, 60_000, keys, ordered)
    await conn.execute(
        "INSERT INTO aiotasks_limit (backend, key) "
        "SELECT 'default', 'l:' || n FROM generate_series(0, 20000) AS n ON CONFLICT DO NOTHING"
    )
    worker_id = await conn.fetchval("SELECT id FROM aiotasks_worker LIMIT 1")
    await conn.execute("UPDATE aiotasks_worker SET lease_expires_at = clock_timestamp() + interval '1 h'")
    asked = [f"l:{number}" for number in range(min(keys, SLOTS))]
    number = 1 if ordered else SLOTS // len(asked)
    indexes = {"keyed", "held", "ordered", "pkey"}
    for analyzed in (False, True):
        if analyzed:
            await conn.execute("VACUUM ANALYZE aiotasks_task, aiotasks_limit")
        for places in (SLOTS, 0):
            arguments = keyed(worker_id, asked, places, ordered=ordered is not None)
            plan = await warm["claim_keyed"].explain(*arguments)
            given = min(places, number) * len(asked)
            assert plan.rows == max(1, given)
            assert plan.scans_of("aiotasks_task") <= {"Index Scan", "Index Only Scan", "Tid Scan"}
            assert plan.scans_of("aiotasks_limit") <= {"Index Scan", "Index Only Scan", "Tid Scan"}
            of_tasks = {name for name in plan.indexes() if name.startswith("aiotasks_task")}
            assert of_tasks <= {f"aiotasks_task_{name}" for name in indexes}
            assert plan.buffers < 100 + 50 * len(asked) + 50 * given
    for step in (5, 50):
        plan = await warm["list_keys"].explain("default", "loop+", QUEUES, [""] * 5, step)
        assert plan.rows == min(5 * step, keys)
        assert plan.indexes() == {"aiotasks_task_keyed"}
        assert plan.counted() <= 5 * step
    counts: list[tuple[str, tuple[Any, ...]]] = [
        ("count_limited_jobs", ("default", QUEUES, 50)),
        ("count_keyed_jobs", ("default", asked, 50)),
    ]
    for name, arguments in counts:
        plan = await warm[name].explain(*arguments)
        assert plan.rows > 0
        assert plan.indexes() <= {"aiotasks_task_keyed"}
        assert plan.counted() <= 50 * max(len(QUEUES), len(asked)) + 100
    for name in ("top_keys", "recent_keys"):
        more = (86_400.0,) if name == "recent_keys" else ()
        plan = await warm[name].explain("default", "loop+", QUEUES, *more, 5)
        assert plan.rows >= min(keys, 5)
        assert plan.indexes() == {"aiotasks_task_ready"}
        assert plan.counted() <= 5 * 5 * 5 + 5 * 7


async def test_suspects_of_any_queue_cost_as_little(
    conn: asyncpg.Connection, warm: dict[str, Prepared]
) -> None:
    await fill(conn, "READY", 30_000)
    await conn.execute("UPDATE aiotasks_task SET queue_name = 'q ' || hashtext(id::text) % 5000")
    for crashes in (0, 2):
        await conn.execute(
            "UPDATE aiotasks_task SET crashes = $1 "
            "WHERE id IN (SELECT id FROM aiotasks_task WHERE status = 'READY' AND lane = 'loop' LIMIT 20)",
            crashes,
        )
        worker_id = await conn.fetchval("SELECT id FROM aiotasks_worker LIMIT 1")
        plan = await warm["claim_suspect"].explain(worker_id, uuid.uuid4(), "default", "loop", None)
        assert plan.rows == (1 if crashes else 0)
        assert plan.indexes() <= {"aiotasks_task_suspects", "aiotasks_worker_pkey", "aiotasks_pause_name"}
        assert plan.buffers < 100


async def test_schedules_that_are_not_due_cost_nothing(
    conn: asyncpg.Connection, warm: dict[str, Prepared]
) -> None:
    """The look for what comes next reads one of 10,000, and a tick's statements its own."""
    store = Store(ConnectionDriver(conn))
    later = datetime.now(UTC) + timedelta(hours=1)
    many = [new_schedule(f"s {number}", expression="* * * * *", timezone="UTC") for number in range(10_000)]
    await store.declare_schedules(
        "default", [DeclaredSchedule(each, None, later) for each in many], from_code=True
    )
    for name in ("next_due", "select_due_schedules", "move_schedules", "skip_ticks", "fail_schedules"):
        plan = await warm[name].explain()
        assert plan.scans_of("aiotasks_schedule") <= {"Index Scan", "Index Only Scan"}, name
        assert plan.buffers < 60, name


async def test_the_others_cost_is_by_the_rows_that_they_touch(
    conn: asyncpg.Connection, warm: dict[str, Prepared]
) -> None:
    for status in ("READY", "SCHEDULED", "SUCCESSFUL"):
        await fill(conn, status, 30_000)
    for analyzed in (False, True):
        if analyzed:
            await conn.execute("ANALYZE aiotasks_task, aiotasks_worker")
        for name in sorted(warm.keys() - {"claim_jobs"}):
            plan = await warm[name].explain()
            assert plan.buffers < 100, name
            if name != "has_unfinished_jobs":  # where the first row read is one, no index is faster
                assert "Seq Scan" not in plan.scans_of("aiotasks_task"), name


async def test_a_look_for_expired_tasks_costs_by_what_it_finds(
    conn: asyncpg.Connection, warm: dict[str, Prepared]
) -> None:
    """Not by the tasks that wait, with a time to expire or without."""
    for status in ("READY", "SCHEDULED"):
        await fill(conn, status, 30_000)
    await conn.execute(
        "UPDATE aiotasks_task SET expires_at = clock_timestamp() + interval '1 day' WHERE priority > 1"
    )
    for expired in (0, 60):
        await conn.execute(
            "UPDATE aiotasks_task SET expires_at = clock_timestamp() "
            "WHERE id IN (SELECT id FROM aiotasks_task WHERE status = 'READY' LIMIT $1)",
            expired,
        )
        plan = await warm["expire_jobs"].explain()
        assert plan.rows == min(expired, 50)
        assert plan.indexes() == {"aiotasks_task_expiring"}
        assert plan.buffers < 100 + 20 * plan.rows


async def test_a_key_costs_the_same_among_many(conn: asyncpg.Connection, warm: dict[str, Prepared]) -> None:
    """Of tasks that wait and of those that are finished, whose keys stay where they are."""
    for status in ("READY", "SUCCESSFUL"):
        await fill(conn, status, 30_000)
    await conn.execute("UPDATE aiotasks_task SET unique_key = 'k ' || id WHERE unique_key IS NULL")
    for analyzed in (False, True):
        if analyzed:
            await conn.execute("VACUUM ANALYZE aiotasks_task")
        rows = await conn.fetch(
            "SELECT id, unique_key FROM aiotasks_task WHERE status = 'READY' AND lane = 'loop' LIMIT 20"
        )
        ids, keys = [row[0] for row in rows], [row[1] for row in rows]
        for name, arguments in [
            ("free_unique_keys", ("default", keys, "1s")),
            ("lock_unique_keys", ("default", keys, "1s")),
            ("select_holders", ("default", keys)),
            (
                "replace_waiting_jobs",
                (
                    ids,
                    keys,
                    ["[]"] * 20,
                    ["{}"] * 20,
                    "default",
                    0,
                    None,
                    None,
                    False,
                    "1s",
                    None,
                    [None] * 20,
                    None,
                ),
            ),
        ]:
            plan = await warm[name].explain(*arguments)
            assert plan.rows == 20, name
            assert plan.indexes() <= {"aiotasks_task_unique", "aiotasks_task_pkey"}, name
            assert "Seq Scan" not in plan.scans_of("aiotasks_task"), name
            assert plan.buffers < 50 + 50 * 20, name
            compared = [node for node in plan.nodes if "Rows Removed by Join Filter" in node]
            assert not compared, f"{name} compares each with each"
        for name in ("insert_unique_job", "insert_unique_jobs"):
            plan = await warm[name].explain()
            assert plan.indexes() <= {"aiotasks_task_unique"}, name
            assert "Seq Scan" not in plan.scans_of("aiotasks_task"), name


async def test_finishes_and_releases_go_by_the_primary_key(
    conn: asyncpg.Connection, warm: dict[str, Prepared]
) -> None:
    """Also where many rows are RUNNING (a big fleet, or a dead one), which no statistics foretell."""
    await fill(conn, "RUNNING", 30_000)
    for analyzed in (False, True):
        if analyzed:
            await conn.execute("ANALYZE aiotasks_task")
        rows = await conn.fetch("SELECT id, claim_id FROM aiotasks_task WHERE status = 'RUNNING' LIMIT 20")
        ids, claim_ids = [row[0] for row in rows], [row[1] for row in rows]
        cases: list[tuple[str, tuple[Any, ...], int]] = [
            (
                "finish_jobs",
                (ids, claim_ids, ["SUCCESSFUL"] * 20, ["1"] * 20, [None] * 20),
                1,
            ),  # all in one row
            ("finish_jobs", (ids[:1], claim_ids[:1], ["SUCCESSFUL"], ["1"], [None]), 1),
            ("release_jobs", (ids, claim_ids, [0.0] * 20, [None] * 20, [], []), 20),
            ("save_metadata", (ids, claim_ids, ["{}"] * 20, [None] * 20), 20),
            ("await_jobs", (ids[:10], "default", 1), 1),
            ("await_jobs", (ids, "default", 2), 1),
            ("await_jobs", (ids, "default", 1), 1),
            ("select_ended_jobs", (ids, "default"), 1),
            ("select_own_jobs", (ids, "default"), 1),
            ("select_jobs", (ids, "default"), 20),
            ("select_states", (ids, "default", "{"), 20),
            ("select_finished_jobs", (ids, claim_ids), 20),
        ]
        for name, arguments, found in cases:
            plan = await warm[name].explain(*arguments)
            assert plan.rows == found, name
            assert plan.indexes() == {"aiotasks_task_pkey"}, name
            assert plan.buffers < 50 + 50 * len(arguments[0]), name


async def test_metadata_is_written_by_the_primary_key(
    conn: asyncpg.Connection, warm: dict[str, Prepared]
) -> None:
    await fill(conn, "READY", 10_000)
    id = await conn.fetchval("SELECT id FROM aiotasks_task LIMIT 1")
    plan = await warm["replace_metadata"].explain(id, "default", "{}", None)
    assert (plan.rows, plan.indexes()) == (1, {"aiotasks_task_pkey"})
    assert plan.buffers < 100


async def test_bulk_actions_go_by_the_primary_key(
    conn: asyncpg.Connection, warm: dict[str, Prepared]
) -> None:
    for status in ("SCHEDULED", "READY", "RUNNING", "FAILED"):
        await fill(conn, status, 20_000)
    for analyzed in (False, True):
        if analyzed:
            await conn.execute("ANALYZE aiotasks_task")
        for name, status, more in [
            ("run_jobs_now", "SCHEDULED", ()),
            ("cancel_free_jobs", "READY", ("{}",)),
            ("cancel_free_jobs", "RUNNING", ("{}",)),
            ("retry_jobs", "FAILED", ()),
            ("delete_jobs", "FAILED", ()),
            ("select_left_jobs", "FAILED", ()),
        ]:
            arguments = (*meant("SCHEDULED", "READY", "RUNNING", "FAILED"), *more)
            found = await conn.fetch("SELECT id FROM aiotasks_task WHERE status = $1 LIMIT 500", status)
            plan = await warm[name].explain([row[0] for row in found], *arguments)
            assert plan.rows == 500, name
            # Of a task that hasn't lost its key, nothing is read of the index of keys.
            keys = {"aiotasks_task_unique"} if name == "select_left_jobs" else set()
            assert plan.indexes() == {"aiotasks_task_pkey", *keys}, name
            assert plan.scans_of("aiotasks_task") <= {"Index Scan", "Index Only Scan", "Tid Scan"}, name
            assert plan.counted() == 500, name


async def test_a_key_that_is_taken_back_costs_two_rows(
    conn: asyncpg.Connection, warm: dict[str, Prepared]
) -> None:
    """Among many keys: the task's own row, and that of the finished task which has its key."""
    for status in ("READY", "SUCCESSFUL", "FAILED"):
        await fill(conn, status, 20_000)
    await conn.execute("UPDATE aiotasks_task SET unique_key = 'k ' || id WHERE status <> 'FAILED'")
    taken = await conn.fetchval("SELECT unique_key FROM aiotasks_task WHERE status = 'SUCCESSFUL' LIMIT 1")
    lost = await conn.fetchval("SELECT id FROM aiotasks_task WHERE status = 'FAILED' LIMIT 1")
    await conn.execute("UPDATE aiotasks_task SET former_key = $2 WHERE id = $1", lost, taken)
    for analyzed in (False, True):
        if analyzed:
            await conn.execute("VACUUM ANALYZE aiotasks_task")
        for name, arguments in [
            ("retry_unique_job", (lost, *meant("FAILED"), "1s")),
            ("select_left_jobs", ([lost], *meant("FAILED"))),
        ]:
            plan = await warm[name].explain(*arguments)
            assert plan.rows == 1
            assert plan.indexes() == {"aiotasks_task_pkey", "aiotasks_task_unique"}
            assert "Seq Scan" not in plan.scans_of("aiotasks_task")
            assert plan.buffers < 200


@pytest.mark.parametrize(
    ("branch", "status", "index"),
    [
        ("scheduled", "SCHEDULED", "aiotasks_task_scheduled"),
        ("ready", "READY", "aiotasks_task_ready"),
        ("running", "RUNNING", "aiotasks_task_running"),
        ("finished", "FAILED", "aiotasks_task_prunable"),
        ("kept", "FAILED", "aiotasks_task_kept"),
        ("key", "FAILED", "aiotasks_task_unique"),
    ],
)
async def test_a_walk_reads_one_index_and_what_it_looks_at(
    conn: asyncpg.Connection, warm: dict[str, Prepared], branch: str, status: str, index: str
) -> None:
    """Not what the filter leaves out behind it, nor what the steps before have looked at."""
    for each in ("SCHEDULED", "READY", "RUNNING", "FAILED", "SUCCESSFUL"):
        await fill(conn, each, 10_000)
    await conn.execute(
        """
        UPDATE aiotasks_task SET
            finished_at = CASE WHEN finished_at IS NOT NULL THEN now() - random() * interval '1 day' END,
            run_after = CASE WHEN status = 'SCHEDULED' THEN now() + random() * interval '1 day' END,
            keep_result = CASE WHEN hashtext(id::text) % 2 = 0 THEN 86400 * 30 END,
            unique_key = CASE WHEN status = 'FAILED' THEN id::text END
        """
    )
    leg = {"queue": "a", "lane": "loop", "priority": 3} if branch == "ready" else {}
    key = await conn.fetchval("SELECT unique_key FROM aiotasks_task WHERE unique_key IS NOT NULL LIMIT 1")
    if branch == "key":
        leg["unique_key"] = key
    # Where one row is expected, PostgreSQL before 18 sorts all rows of the leg before it takes the first.
    is_old = conn.get_server_version().major < 18 and branch in ("scheduled", "finished", "kept")
    for analyzed in (True,) if is_old else (False, True):
        if analyzed:
            await conn.execute("VACUUM ANALYZE aiotasks_task")
        at = BEGIN
        for chosen in ({}, {"task_path": "none"}, {"error": "none"}, {"worker": NIL}):
            plan = await warm["walk_jobs"].explain(*walk(branch, status, 100, at, **leg, **chosen))
            assert plan.rows == 1
            plan.nodes = [node for node in plan.nodes if node["Actual Loops"]]
            assert plan.indexes() == {index}
            assert "Seq Scan" not in plan.scans_of("aiotasks_task")
            # The running ones are sorted: all 10,000 rows, and the pages of the look.
            assert plan.counted() <= (10_100 if branch == "running" else 200)
            # Where the next step begins: in the middle.
            at = {"scheduled": 43_200.0, "ready": 0.005, "finished": -43_200.0, "kept": 86_400 * 29.5}.get(
                branch, 0.0
            )
            at += await conn.fetchval("SELECT date_part('epoch', now())")


@pytest.mark.parametrize(
    ("branch", "status", "indexes"),
    [
        ("newest", "READY", {"pkey"}),
        ("finished", "FAILED", {"prunable"}),
        ("kept", "FAILED", {"kept", "pkey"}),
        ("ready", "READY", {"ready"}),
        ("scheduled", "SCHEDULED", {"scheduled"}),
        ("running", "RUNNING", {"running"}),
        ("key", "FAILED", {"unique"}),
    ],
)
async def test_a_page_reads_what_it_looks_at(
    conn: asyncpg.Connection, warm: dict[str, Prepared], branch: str, status: str, indexes: set[str]
) -> None:
    """By one index, whatever the filter leaves out, and what its rows show by the primary key."""
    for each in ("SCHEDULED", "READY", "FAILED", "SUCCESSFUL"):
        await fill(conn, each, 10_000)
    await fill(conn, "RUNNING", 200)
    await conn.execute(
        """
        UPDATE aiotasks_task SET
            finished_at = CASE WHEN finished_at IS NOT NULL THEN now() - random() * interval '1 day' END,
            run_after = CASE WHEN status = 'SCHEDULED' THEN now() + random() * interval '1 day' END,
            keep_result = CASE WHEN hashtext(id::text) % 2 = 0 THEN 86400 * 30 END,
            unique_key = CASE WHEN status = 'FAILED' THEN id::text END
        """
    )
    values: dict[str, Any] = {"queues": QUEUES} if branch == "ready" else {}
    if branch == "key":
        key = "SELECT unique_key FROM aiotasks_task WHERE unique_key IS NOT NULL LIMIT 1"
        values["unique_key"] = await conn.fetchval(key)
    # As with the walk.
    is_old = conn.get_server_version().major < 18 and branch in ("scheduled", "finished", "kept", "ready")
    for analyzed in (True,) if is_old else (False, True):
        if analyzed:
            await conn.execute("VACUUM ANALYZE aiotasks_task")
        for chosen in ({}, {"task_path": "none"}, {"error": "none"}, {"worker": NIL}):
            plan = await warm["page_jobs"].explain(*page(branch, status, number=100, **values, **chosen))
            plan.nodes = [node for node in plan.nodes if node["Actual Loops"]]
            assert plan.indexes() == {f"aiotasks_task_{name}" for name in indexes}
            assert "Seq Scan" not in plan.scans_of("aiotasks_task")
            # Of each leg its own hundred; of those with a keep_result a hundred by each index; of RUNNING
            # ones all, and what the index still has of them. An incremental sort sees the
            # end of equal times by one more.
            most = {"ready": 100 * len(QUEUES), "kept": 200, "running": 1_000}
            assert 0 < plan.counted() <= most.get(branch, 101)
            assert plan.buffers < 2_000
    found = await conn.fetch("SELECT id FROM aiotasks_task LIMIT 50")
    plan = await warm["select_listed"].explain([row[0] for row in found], "default")
    assert plan.rows == 50
    assert plan.indexes() <= {"aiotasks_task_pkey", "aiotasks_worker_pkey"}
    assert "Seq Scan" not in plan.scans_of("aiotasks_task")


async def test_groups_of_failures_cost_by_what_is_looked_at(
    conn: asyncpg.Connection, warm: dict[str, Prepared]
) -> None:
    for status in ("READY", "FAILED", "SUCCESSFUL"):
        await fill(conn, status, 10_000)
    await conn.execute("UPDATE aiotasks_task SET keep_result = 9 WHERE hashtext(id::text) % 2 = 0")
    for analyzed in (False, True):
        if analyzed:
            await conn.execute("VACUUM ANALYZE aiotasks_task")
        plan = await warm["count_failures"].explain("default", 100, 10, *[None] * len(FILTERS))
        assert plan.indexes() <= {"aiotasks_task_prunable", "aiotasks_task_kept"}
        assert "Seq Scan" not in plan.scans_of("aiotasks_task")
        assert 0 < plan.counted() <= 300


async def test_the_priorities_of_queues_are_listed_by_their_number(
    conn: asyncpg.Connection, warm: dict[str, Prepared]
) -> None:
    await fill(conn, "READY", 30_000)
    for queue, number in ((None, 10), ("b", 2), ("none", 0)):
        plan = await warm["list_ready"].explain("default", queue)
        assert plan.rows == number
        assert plan.indexes() <= {"aiotasks_task_ready"}
        assert plan.counted() <= 2 * number + 5
        assert plan.buffers < 20 + 20 * number


async def test_counts_cost_by_what_they_count(conn: asyncpg.Connection, warm: dict[str, Prepared]) -> None:
    """Not by the backlog: `status` is for the day on which that has grown to millions."""
    for status in ("READY", "SCHEDULED", "RUNNING", "SUCCESSFUL"):
        await fill(conn, status, 20_000)
    for analyzed in (False, True):
        if analyzed:
            await conn.execute("ANALYZE aiotasks_task")
        for name, arguments, index in [
            ("count_ready_jobs", ("default", QUEUES, 200), "aiotasks_task_ready"),
            ("count_scheduled_jobs", ("default", 1_000), "aiotasks_task_scheduled"),
            ("count_running_jobs", ("default", 1_000), "aiotasks_task_running"),
            ("oldest_running_job", ("default", 1_000), "aiotasks_task_running"),
            ("list_waiting", (100,), "aiotasks_task_ready"),
        ]:
            plan = await warm[name].explain(*arguments)
            assert plan.indexes() == {index}, name
            assert "Seq Scan" not in plan.scans_of("aiotasks_task"), name
            # A page for each row that is counted, and some of the index for each queue, lane and priority.
            assert plan.buffers < 1_000 + 50 * len(QUEUES), name
            assert plan.counted() <= 1_000 + 15 * len(QUEUES), name


async def test_failures_of_the_last_day_cost_by_what_is_counted(
    conn: asyncpg.Connection, warm: dict[str, Prepared]
) -> None:
    """Not by the weeks for which they are kept."""
    await fill(conn, "FAILED", 40_000)
    await conn.execute(
        """
        UPDATE aiotasks_task SET finished_at = now() - interval '10 days' * random(),
            keep_result = CASE WHEN hashtext(id::text) % 2 = 0 THEN 86400 * 30 END
        """
    )
    for analyzed in (False, True):
        if analyzed:
            await conn.execute("VACUUM ANALYZE aiotasks_task")
        plan = await warm["count_failed_jobs"].explain("default", 500)
        assert plan.indexes() == {"aiotasks_task_prunable", "aiotasks_task_kept"}
        assert plan.counted() <= 1_600  # 500 of each kind, and those that are only counted
        assert plan.buffers < 4_500  # an index's page and the table's for each


async def test_the_pruners_cost_is_by_the_rows_that_it_deletes(
    conn: asyncpg.Connection, warm: dict[str, Prepared]
) -> None:
    """It passes over nothing: not what is kept for longer, nor what another backend keeps for ever."""
    await fill(conn, "FAILED", 30_000)
    await conn.execute("UPDATE aiotasks_task SET backend = 'other', finished_at = now() - interval '1 year'")
    await fill(conn, "FAILED", 30_000)
    await conn.execute(
        """
        UPDATE aiotasks_task SET finished_at = now() - interval '10 days' - random() * interval '1 day',
            keep_result = CASE WHEN hashtext(id::text) % 2 = 0 THEN 86400 * 30 END
        WHERE backend = 'default'
        """
    )
    await fill(conn, "SUCCESSFUL", 30_000)
    prune, prune_kept = warm["prune_jobs"], warm["prune_kept_jobs"]
    for analyzed in (False, True):
        if analyzed:
            await conn.execute("VACUUM ANALYZE aiotasks_task")
        for status, days in (("SUCCESSFUL", 1), ("FAILED", 14)):
            plan = await prune.explain("default", status, 86_400.0 * days, -math.inf, 50)
            check_prune(plan, "aiotasks_task_prunable", 0)
        check_prune(await prune_kept.explain(), "aiotasks_task_kept", 0)
        for keep, statement in ((None, prune), (86_400.0, prune_kept)):
            await conn.execute(
                """
                UPDATE aiotasks_task SET finished_at = now() - interval '2 days', keep_result = $1
                WHERE id = ANY(ARRAY(
                    SELECT id FROM aiotasks_task WHERE status = 'SUCCESSFUL' AND backend = 'default' LIMIT 60
                ))
                """,
                keep,
            )
            index = "aiotasks_task_prunable" if keep is None else "aiotasks_task_kept"
            check_prune(await statement.explain(), index, 50)
            await conn.execute(
                "DELETE FROM aiotasks_task "
                "WHERE status = 'SUCCESSFUL' AND finished_at < now() - interval '1 hour'"
            )


def check_prune(plan: Plan, index: str, deleted: int) -> None:
    assert not plan.kinds() & {"Sort", "Incremental Sort"}
    assert plan.scans_of("aiotasks_task") <= {"Index Scan", "Tid Scan"}
    assert plan.indexes() == {index}
    (scan,) = [node for node in plan.nodes if node.get("Index Name") == index]
    assert scan["Actual Rows"] == deleted
    assert plan.buffers < 20 + 20 * deleted
