"""``manage.py aiotasks status``."""

import asyncio
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.core.management import CommandError
from django.db import connection, utils

import aiotasks
from aiotasks import queue_figures
from aiotasks.db.statement import Statement
from aiotasks.operations import status as module
from aiotasks.operations.connection import operator_connection
from aiotasks.operations.pauses import Pause
from aiotasks.operations.status import (
    Count,
    FleetUse,
    LaneTotal,
    LaneUse,
    Queue,
    Running,
    Snapshot,
    Status,
    WorkerRow,
    read_status,
)
from aiotasks.operations.tables import as_text
from aiotasks.operations.text import age, status_parts
from aiotasks.store.store import Store
from aiotasks.worker.startup import backend_of
from tests.proxy import Proxy
from tests.site import postgres_result
from tests.worker import tasks
from tests.worker.harness import Configure, Ledger, until

from .conftest import run, status

type Fill = Callable[..., None]
type Enter = Callable[..., UUID]


def test_queues(sql: psycopg.Connection, fill: Fill, enter: Enter, configure: Configure) -> None:
    """Whatever waits or runs, and what the settings name."""
    configure(["default", "idle"])
    fill("READY", 3, lane="thread", priority=-5, age=100)
    fill("READY", 2, priority=7, age=20)
    fill("READY", 4, "mails", priority=7, age=50)
    fill("READY", 9, backend="other", age=5_000)
    fill("SCHEDULED", 5, "mails")
    fill("SCHEDULED", 1, "later")
    fill("RUNNING", 2, "mails", age=9_000)
    fill("SUCCESSFUL", 8, "done")
    enter(queues=["mails", "later"])
    enter(queues=[])
    enter(queues=["mails"], lease=-5.0)
    enter(backend="other")
    queues = {queue["name"]: queue for queue in status()["queues"]}
    assert list(queues) == ["default", "idle", "later", "mails"]
    told = {
        name: [queue[key]["number"] for key in ("ready", "scheduled", "running")]
        for name, queue in queues.items()
    }
    assert told == {"default": [5, 0, 0], "idle": [0, 0, 0], "later": [0, 1, 0], "mails": [4, 5, 2]}
    assert {name: queue["workers"] for name, queue in queues.items()} == {
        "default": 1,
        "idle": 1,
        "later": 2,
        "mails": 2,
    }
    assert not any(
        queue[key]["capped"] for queue in queues.values() for key in ("ready", "scheduled", "running")
    )
    assert 100 <= queues["default"]["oldest_ready"] < 130  # of the lowest priority, in the other lane
    assert 50 <= queues["mails"]["oldest_ready"] < 80
    assert queues["later"]["oldest_ready"] is None
    (other,) = [queue for queue in status_of("other") if queue.ready.number]
    assert other.ready == Count(9, capped=False)


def status_of(alias: str) -> list[Queue]:
    """The queues of a backend that the settings don't have."""
    backend = backend_of("default")
    backend.alias = alias
    try:
        return asyncio.run(read_status(backend)).queues
    finally:
        backend.alias = "default"


def test_counting_stops(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COUNT_LIMIT", 20)
    fill("READY", 19, "a")
    fill("READY", 30, "b")
    fill("SCHEDULED", 30, "a")
    fill("SCHEDULED", 1, "c")  # due like the first of them, or not looked at any more
    fill("RUNNING", 30, "a")
    monkeypatch.setattr(queue_figures, "COUNT_LIMIT_AT_LEAST", 1)
    a, b, *_ = status()["queues"]
    assert a["ready"] == {"number": 19, "capped": False}
    assert b["ready"] == {"number": 20, "capped": True}
    assert a["scheduled"]["capped"]
    assert a["running"] == {"number": 20, "capped": True}
    assert b["running"] == {"number": 0, "capped": True}  # at least none: nobody has looked further
    text = run("status")[1]
    assert "  20+ " in text
    monkeypatch.setattr(queue_figures, "COUNT_LIMIT_OF_ALL", 20)  # among two queues
    assert [queue["ready"]["number"] for queue in status()["queues"][:2]] == [10, 10]
    monkeypatch.setattr(queue_figures, "QUEUE_LIMIT", 1)
    looked = status()
    assert looked["queues_capped"] is True
    assert "There are more queues than these." in run("status")[1]


async def test_workers(configure: Configure, fill: Fill, enter: Enter, ledger: Ledger) -> None:
    """What a worker says of itself, and what it holds in each lane; that of a dead one stays."""
    configure(LEASE_TIMEOUT=6, POLL_INTERVAL=0.2)
    dead = enter(host="gone", lease=-300.0, listening=None, queues=["a", "b"], concurrency=5, threads=0)
    fill("RUNNING", 2, worker=dead)  # not rescued while the test looks on: no time for it

    async def look() -> dict[str, WorkerRow]:
        found = await read_status(backend_of("default"))
        return {worker.host: worker for worker in found.workers}

    before = (await look())["gone"]
    assert (before.alive, before.loop, before.thread) == (False, LaneUse(2, 5), LaneUse(0, 0))
    assert (before.listening, before.queues, before.id) == (None, ["a", "b"], dead)
    assert -330 < before.lease <= -300
    async with aiotasks.Worker(concurrency=7, threads=3, grace=0):
        held = [await tasks.wait_for_release.aenqueue(str(n)) for n in range(2)]

        async def both_run() -> Any:
            mine = [worker for host, worker in (await look()).items() if host != "gone"]
            return mine and mine[0].loop == LaneUse(2, 7) and mine[0].listening and mine[0]

        mine = await until(both_run)
        assert (mine.pid, mine.thread, mine.version) == (os.getpid(), LaneUse(0, 3), aiotasks.__version__)
        assert mine.alive
        assert mine.lease <= 6
        assert mine.queues == []
        for result in held:
            await postgres_result(result).acancel()


async def test_the_limits_of_queues(configure: Configure, ledger: Ledger) -> None:
    """In the order of the queues, as the worker's options name them."""
    configure()
    async with aiotasks.Worker(queues={"z": None, "a": 3, "b=1": None, "b": 1}, grace=0):
        found = await read_status(backend_of("default"))
        (mine,) = found.workers
        assert (mine.queues, mine.queue_limits) == (["a", "b", "b=1", "z"], {"a": 3, "b": 1})
        assert "  a=3, b=1, b=1=, z  " in as_text(status_parts(found))
    async with aiotasks.Worker(queues=["a"], grace=0):
        assert ledger.value("SELECT queue_limits FROM aiotasks_worker") is None


@pytest.mark.parametrize(
    ("queues", "limits", "shown"),
    [
        (["a", None, "b"], [1, 2], {"a": 1}),
        (["a", None, "b"], [1, 2, 3, 4], {"a": 1, "b": 3}),
        (["a"], [], {}),
        ([], [5], {}),
    ],
)
def test_limits_that_no_worker_has_written(
    sql: psycopg.Connection, enter: Enter, queues: list[str | None], limits: list[int], shown: dict[str, int]
) -> None:
    enter()
    sql.execute("UPDATE aiotasks_worker SET queues = %s::text[], queue_limits = %s", [queues, limits])
    (worker,) = status()["workers"]
    assert worker["queues"] == [name for name in queues if name is not None]
    assert worker["queue_limits"] == shown


def test_the_live_workers_together(fill: Fill, enter: Enter) -> None:
    """Those of this backend, in one line."""
    assert "Live workers" not in run("status")[1]
    enter(host="gone", lease=-5.0)
    assert "\n\nLive workers: none\n\n" in run("status")[1]
    first = enter(host="a", pid=1, concurrency=50, threads=0)
    second = enter(host="a", pid=2)
    enter(host="b", version="0.0.1", channel=None)
    enter(host="c", listening=False, channel=None)
    enter(host="d", listening=None)
    enter(host="elsewhere", backend="other")
    fill("RUNNING", 3, worker=first)
    fill("RUNNING", 1, worker=second, lane="thread")
    fleet = status()["fleet"]
    assert [fleet["workers"], fleet["hosts"]] == [5, 4]
    assert fleet["loop"] == {"running": {"number": 3, "capped": False}, "slots": 450}
    assert fleet["thread"] == {"running": {"number": 1, "capped": False}, "slots": 40}
    assert {key: fleet[key] for key in ("listening", "listening_to_all", "polling", "unknown")} == {
        "listening": 2,
        "listening_to_all": 1,
        "polling": 1,
        "unknown": 1,
    }
    assert fleet["stuck_threads"] == 0
    assert fleet["versions"] == {"0.0.1": 1, aiotasks.__version__: 4}
    text = run("status")[1]
    assert (
        "\n\nLive workers: 5 on 4 hosts; loop 3/450, threads 1/40; "
        "wake-ups LISTEN: 2, LISTEN (all): 1, polling: 1, unknown: 1; versions 0.0.1: 1, "
    ) in text


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_worker_that_polls_says_so(configure: Configure, sql: psycopg.Connection) -> None:
    """Without NOTIFY, and when the listener has lost its line; back again when it has it again."""

    async def listening(expected: bool) -> None:
        async def told() -> bool:
            (worker,) = (await read_status(backend_of("default"))).workers
            return worker.listening is expected

        await until(told)

    configure(LEASE_TIMEOUT=0.6, NOTIFY=False)
    async with aiotasks.Worker(grace=0):
        await listening(False)
    configure(LEASE_TIMEOUT=0.6)
    async with aiotasks.Worker(grace=0) as worker:
        await listening(True)
        worker.engine.resources.wakeups.listening.clear()
        await listening(False)
        worker.engine.resources.wakeups.listening.set()
        await listening(True)


@pytest.mark.parametrize("status", ["READY", "SCHEDULED", "RUNNING"])
@pytest.mark.parametrize("time", ["infinity", "-infinity", "20000-01-01", "4000-01-01 BC"])
def test_rows_that_somebody_else_wrote(
    sql: psycopg.Connection, fill: Fill, enter: Enter, status: str, time: str
) -> None:
    """Of tasks, whoever may enqueue; of workers, whoever may work. What is told stays JSON, and text."""
    fill(status, 1, "a\n\x1b[31m")
    sql.execute("UPDATE aiotasks_task SET ready_at = %s, run_after = %s, priority = -32768", [time, time])
    enter(host="a\nb", version="\x1b[2J")
    sql.execute("UPDATE aiotasks_worker SET queues = '{{NULL,a},{NULL,b}}', pid = -1")
    sql.execute("UPDATE aiotasks_worker SET started_at = %s, lease_expires_at = %s", [time, time])

    def refuse(constant: str) -> None:
        raise AssertionError(constant)  # Infinity and NaN, which JSON hasn't

    code, text = run("status", "--json")
    told = json.loads(text, parse_constant=refuse)
    assert (code, told["workers"][0]["queues"]) == (0, ["a", "b"])
    code, text = run("status")
    assert (code, "\x1b" in text) == (0, False)
    code, text = run("check", "--json")
    assert code == 0


def test_a_queue_beyond_the_limit_is_not_said_to_have_nothing_ready(
    fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_figures, "QUEUE_LIMIT", 1)
    fill("READY", 1, "a")
    fill("READY", 1, "b")
    fill("SCHEDULED", 1, "b")
    told = status()
    assert told["queues_capped"]
    assert "b" not in [queue["name"] for queue in told["queues"]]


def test_queues_are_listed_up_to_the_limit(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the READY tasks of the others that are shown are counted."""
    monkeypatch.setattr(queue_figures, "QUEUE_LIMIT", 2)
    listed: list[Any] = []
    list_queues = Store.list_queues

    async def noted(*args: Any, **options: Any) -> Any:
        found = await list_queues(*args, **options)
        if "limit" in options:  # the limits by key are listed by others
            listed.extend(found)
        return found

    monkeypatch.setattr(Store, "list_queues", noted)
    for number in range(20):
        fill("READY", 1, f"a{number:02}")
    fill("READY", 3, "z")
    fill("RUNNING", 1, "z")
    told = status()
    assert len(listed) == 9
    assert told["queues_capped"]
    assert {queue["name"]: queue["ready"]["number"] for queue in told["queues"]} == {
        "a00": 1,
        "a01": 1,
        "z": 3,
    }


def test_the_oldest_snapshot(sql: psycopg.Connection, database: str) -> None:
    """Fault 20 of docs/faults.md: while a session holds an old snapshot, vacuum removes nothing newer."""
    assert status()["oldest_snapshot"] is None
    with psycopg.connect(database, application_name="report") as holder:
        holder.execute("SET default_transaction_isolation = 'repeatable read'")
        holder.commit()
        holder.execute("SELECT 1")
        for _ in range(5):
            sql.execute("CREATE TEMP TABLE t (); DROP TABLE t")
        held = status()["oldest_snapshot"]
        assert held["name"] == f"{holder.info.backend_pid} report"
        assert held["kind"] == "session"
        assert held["transactions"] >= 5
        assert held["seconds"] >= 0
        assert f"transactions (session {holder.info.backend_pid} report)" in run("status")[1]
    assert status()["oldest_snapshot"] is None


def test_a_role_that_may_not_see_others_sessions_is_told_so(sql: psycopg.Connection, fill: Fill) -> None:
    """And to read the tables is all that it needs."""
    fill("READY", 1)
    options = connection.settings_dict["OPTIONS"]
    tables = "aiotasks_task, aiotasks_worker, aiotasks_pause, aiotasks_limit, aiotasks_schedule"
    sql.execute(f"CREATE ROLE onlooker; GRANT SELECT ON {tables} TO onlooker")
    options["assume_role"] = "onlooker"
    try:
        assert status()["all_snapshots_seen"] is False
        assert "none is held, as far as this role may see" in run("status")[1]
    finally:
        del options["assume_role"]
        connection.close()
        sql.execute("DROP OWNED BY onlooker; DROP ROLE onlooker")


def test_the_shape_for_machines(fill: Fill, enter: Enter) -> None:
    fill("READY", 1)
    id = enter(lease=12.0)
    found = status()
    assert found["workers"][0].pop("lease") == pytest.approx(12, abs=10)
    assert datetime.fromisoformat(found["workers"][0].pop("started_at")).tzinfo is not None
    assert found["queues"][0].pop("oldest_ready") >= 0
    assert datetime.fromisoformat(found.pop("now")).tzinfo is not None
    nothing = {"number": 0, "capped": False}
    assert found == {
        "backend": "default",
        "database": "default",
        "queues": [
            {
                "name": "default",
                "ready": {"number": 1, "capped": False},
                "scheduled": nothing,
                "running": nothing,
                "limited": nothing,
                "workers": 1,
            }
        ],
        "queues_capped": False,
        "pauses": [],
        "standing": [],
        "schedules": [],
        "schedules_in_all": 0,
        "failed_in_hour": nothing,
        "failed_in_day": nothing,
        "oldest_running": None,
        "fleet": {
            "workers": 1,
            "hosts": 1,
            "loop": {"running": nothing, "slots": 100},
            "thread": {"running": nothing, "slots": 10},
            "listening": 1,
            "listening_to_all": 0,
            "polling": 0,
            "unknown": 0,
            "stuck_threads": 0,
            "versions": {aiotasks.__version__: 1},
        },
        "workers": [
            {
                "id": str(id),
                "host": "host",
                "pid": 1,
                "queues": [],
                "queue_limits": {},
                "claims_keyed": True,
                "schedule_troubles": [],
                "loop": {"running": 0, "slots": 100},
                "thread": {"running": 0, "slots": 10},
                "listening": True,
                "has_channel": True,
                "stuck_threads": 0,
                "version": aiotasks.__version__,
            }
        ],
        "oldest_snapshot": None,
        "all_snapshots_seen": True,
    }


def test_the_table() -> None:
    worker = WorkerRow(
        id=UUID(int=1),
        host="web-1",
        pid=4711,
        queues=[],
        claims_keyed=True,
        schedule_troubles=[],
        queue_limits={},
        lease=24.7,
        loop=LaneUse(37, 100),
        thread=LaneUse(2, 10),
        listening=True,
        has_channel=False,
        stuck_threads=0,
        version="0.1.0",
        started_at=datetime.now(UTC),
    )
    gone = WorkerRow(
        id=UUID(int=2),
        host="web-2\x1b[2J",
        pid=9,
        queues=["default", "a\nb"],
        claims_keyed=True,
        schedule_troubles=[],
        queue_limits={"default": 20},
        lease=-75.0,
        loop=LaneUse(1_200, 2_000),
        thread=LaneUse(0, 0),
        listening=None,
        has_channel=True,
        stuck_threads=0,
        version="0.0.9",
        started_at=datetime.now(UTC),
    )
    queues = [
        Queue(
            name="default",
            ready=Count(10_000, capped=True),
            oldest_ready=185.0,
            scheduled=Count(1_204, capped=False),
            running=Count(37, capped=False),
            limited=Count(0, capped=False),
            workers=1,
        ),
        Queue(
            name="a\nb",
            ready=Count(0, capped=False),
            oldest_ready=None,
            scheduled=Count(0, capped=True),
            running=Count(0, capped=False),
            limited=Count(0, capped=False),
            workers=1,
        ),
    ]
    fleet = FleetUse(
        workers=1_001,
        hosts=1,
        loop=LaneTotal(Count(10_000, capped=True), 100_100),
        thread=LaneTotal(Count(2, capped=False), 10),
        listening=1_000,
        listening_to_all=1,
        polling=0,
        unknown=0,
        stuck_threads=0,
        versions={"0.0.9\x1b[2J": 1_000, "0.1.0": 1},
    )
    shown = as_text(
        status_parts(
            Status(
                backend="default",
                database="default",
                now=datetime.now(UTC),
                queues=queues,
                queues_capped=False,
                pauses=[
                    Pause(
                        kind="queue",
                        name="mails",
                        reason="over\nload",
                        age=7_300.0,
                        until=datetime(2030, 1, 1, tzinfo=UTC),
                    ),
                    Pause(kind="task", name="shop.tasks.report", reason="", age=1.0, until=None),
                ],
                standing=[],
                schedules=[],
                schedules_in_all=0,
                failed_in_hour=Count(3, capped=False),
                failed_in_day=Count(10_000, capped=True),
                oldest_running=Running(UUID(int=7), "shop.tasks.report", 7_300.0, "web-1:4711"),
                fleet=fleet,
                workers=[worker, gone],
                oldest_snapshot=Snapshot("replication slot", "standby", 1, None),
                all_snapshots_seen=True,
            )
        )
    )
    assert shown.splitlines() == [
        "Backend 'default', DATABASES['default']",
        "",
        "queue      ready  oldest  scheduled  running  workers",
        "default  10,000+   3 min      1,204       37        1",
        r"'a\nb'         0       -         0+        0        1",
        "",
        "paused  name               since  until                      reason",
        r"queue   mails                2 h  2030-01-01 00:00:00+00:00  'over\nload'",
        "task    shop.tasks.report    1 s  resumed",
        "",
        "Failed: 3 in the last hour, 10,000+ in the last day",
        "Oldest running task: shop.tasks.report, 2 h, on web-1:4711 (00000000-0000-0000-0000-000000000007)",
        "",
        "Live workers: 1,001 on 1 host; loop 10,000+/100,100, threads 2/10; "
        r"wake-ups LISTEN: 1,000, LISTEN (all): 1; versions '0.0.9\x1b[2J': 1,000, 0.1.0: 1",
        "",
        "worker            queues              lease                     loop  threads  wake-ups      "
        "version",
        "web-1:4711        any                 24 s left               37/100     2/10  LISTEN (all)  0.1.0",
        r"'web-2\x1b[2J:9'  'default=20, a\nb'  expired 1 min ago  1,200/2,000      0/0  unknown       0.0.9",
        "",
        "Oldest snapshot: 1 transaction (replication slot standby)",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (7_199, "1 h"),
        (86_400, "1 d"),
        (86_400 * 4_000, "4,000 d"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_nothing_is_written(fill: Fill, enter: Enter, sql: psycopg.Connection) -> None:
    sql.execute(f'ALTER DATABASE "{sql.info.dbname}" SET default_transaction_read_only = on')
    try:
        fill("READY", 1)
        assert status()["queues"][0]["ready"]["number"] == 1
    finally:
        sql.execute(f'ALTER DATABASE "{sql.info.dbname}" RESET default_transaction_read_only')


@pytest.mark.parametrize("subcommand", ["status", "prune"])
@pytest.mark.parametrize("mode", ["refuse", "blackhole"])
def test_a_database_that_is_away_is_one_sentence(
    configure: Configure, mode: Any, database: str, subcommand: str
) -> None:
    configure(COMMAND_TIMEOUT=0.3)
    params = connection.settings_dict
    here = {key: params[key] for key in ("HOST", "PORT")}
    with Proxy(params["HOST"], int(params["PORT"])) as proxy:
        params.update(HOST="127.0.0.1", PORT=str(proxy.port))
        try:
            proxy.mode = mode
            with pytest.raises(
                CommandError, match=r"^PostgreSQL at DATABASES\['default'\] can't be reached: "
            ):
                run(subcommand)
        finally:
            params.update(here)


async def test_a_line_that_dies_is_given_up(database: str) -> None:
    """A ROLLBACK over it would wait for as long again."""
    params = connection.settings_dict
    here = {key: params[key] for key in ("HOST", "PORT")}
    with Proxy(params["HOST"], int(params["PORT"])) as proxy:
        params.update(HOST="127.0.0.1", PORT=str(proxy.port))
        try:
            async with operator_connection("default", timeout=0.3) as line:
                store = Store(line)
                assert await store.backend_pid() == line.announced_pid
                proxy.mode = "blackhole"
                with pytest.raises(utils.OperationalError):
                    await store.backend_pid()
                assert line.connection.is_closed()
                with pytest.raises(utils.InterfaceError):
                    await store.backend_pid()
        finally:
            params.update(here)


async def test_a_line_leaves_nothing_in_the_session(database: str) -> None:
    """Behind a pooler it is another one's next."""
    async with operator_connection("default", timeout=5.0) as line:
        store = Store(line)
        assert await store.list_queues("default") == []
        assert await line.connection.fetchval("SHOW enable_seqscan") == "on"
        with pytest.raises(utils.DataError):
            await line.fetch(Statement("fails", "SELECT 1 / 0", ""))
        assert not line.connection.is_in_transaction()
        assert await store.list_queues("default") == []


def test_a_mistake_in_the_settings_is_one_sentence(settings: Any, database: str) -> None:
    settings.TASKS = {"default": {"BACKEND": "aiotasks.backend.PostgresBackend", "OPTIONS": {"POLL": 1}}}
    with pytest.raises(CommandError, match="no option 'POLL'"):
        run("status")
    with pytest.raises(CommandError, match="TASKS has no backend 'x'; it has 'default'"):
        run("status", "--backend", "x")


def test_failures_and_the_oldest_running_task(
    sql: psycopg.Connection, fill: Fill, enter: Enter, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure()
    told = status()
    assert (told["failed_in_hour"], told["failed_in_day"]) == (2 * ({"number": 0, "capped": False},))
    assert told["oldest_running"] is None
    assert "Oldest running task: none" in run("status")[1]

    fill("READY", 9)
    sql.execute(
        """
        WITH numbered AS (SELECT id, row_number() OVER (ORDER BY id) AS n FROM aiotasks_task)
        UPDATE aiotasks_task AS task SET status = 'FAILED',
            finished_at = now() - CASE WHEN n < 4 THEN interval '1 min' WHEN n < 8 THEN interval '5 h'
                ELSE interval '2 days' END,
            keep_result = CASE WHEN n IN (1, 5, 9) THEN 'infinity'::float END
        FROM numbered WHERE numbered.id = task.id
        """
    )
    fill("READY", 5, backend="other")
    sql.execute("UPDATE aiotasks_task SET status = 'FAILED', finished_at = now() WHERE backend = 'other'")
    worker = enter(host="web-1", pid=4711)
    fill("RUNNING", 3, worker=worker)
    sql.execute(
        """
        UPDATE aiotasks_task SET last_attempted_at = now() - interval '1 min' WHERE status = 'RUNNING'
        """
    )
    (oldest,) = sql.execute("SELECT id FROM aiotasks_task WHERE status = 'RUNNING' LIMIT 1").fetchone() or ()
    sql.execute(
        """
        UPDATE aiotasks_task SET task_path = 'shop.report', last_attempted_at = now() - interval '2 h'
        WHERE id = %s
        """,
        [oldest],
    )
    told = status()
    assert told["failed_in_hour"] == {"number": 3, "capped": False}
    assert told["failed_in_day"] == {"number": 7, "capped": False}
    assert told["oldest_running"]["id"] == str(oldest)
    assert told["oldest_running"]["worker"] == "web-1:4711"
    assert 7_200 <= told["oldest_running"]["seconds"] < 7_300
    text = run("status")[1]
    assert "Failed: 3 in the last hour, 7 in the last day" in text
    assert f"Oldest running task: shop.report, 2 h, on web-1:4711 ({oldest})" in text

    monkeypatch.setattr(module, "COUNT_LIMIT", 2)
    assert status()["failed_in_day"]["capped"]
