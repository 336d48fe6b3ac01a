"""Faults 24 and 53 of docs/faults.md: the primary is killed and a standby promoted; a server can't be written
to, or is full.
"""

import asyncio
import json
import os
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from django.db import close_old_connections, connections, utils

from aiotasks.demo.postgres import PostgresServer, unprivileged_user
from tests.conftest import BIN_DIR
from tests.faults.away import Away, connected, environment, migrate
from tests.standby import Pair
from tests.worker import tasks
from tests.worker.harness import Configure, Ledger, Start, until, wait_until

# The options of docs/howto/standby.md.
# Without a time-out psycopg waits two minutes for a server that dies just then.
READ_WRITE = {"target_session_attrs": "read-write", "connect_timeout": 2}
OPTIONS = {"LEASE_TIMEOUT": 3, "POLL_INTERVAL": 0.5, "COMMAND_TIMEOUT": 2}


@pytest.fixture
def pair(request: pytest.FixtureRequest, database: str) -> Iterator[Pair]:
    """What this process' connections go to: both hosts, whoever can write."""
    with Pair(synchronous=getattr(request, "param", True)) as pair, connected(pair, **READ_WRITE):
        yield pair


@pytest.fixture
def env(pair: Pair, database: str) -> dict[str, str]:
    return {
        "AIOTASKS_DB_HOST": pair.host,
        "AIOTASKS_DB_PORT": pair.port,
        "AIOTASKS_DB_NAME": "postgres",
        "AIOTASKS_DB_USER": "postgres",
        "AIOTASKS_DB_PASSWORD": "",
        "TEST_DB_OPTIONS": json.dumps(READ_WRITE),
        "LEDGER_DSN": database,  # another server, which stays
    }


# Tries a second that a worker may make while nobody can write: claims, finishes, renewals, maintenance.
MOST_TRIES = 40


# How it begins, and how it ends.
READ_ONLY = (
    ["ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"],
    ["ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"],
)
# What PostgreSQL says when it can't make a file longer, for every write of ours.
FULL_DISK = (
    [
        """
        CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$
        """,
        "CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON aiotasks_worker EXECUTE FUNCTION full_disk()",
        "CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON aiotasks_task EXECUTE FUNCTION full_disk()",
    ],
    ["DROP FUNCTION full_disk CASCADE"],
)


@pytest.mark.battery
@pytest.mark.parametrize(("begin", "end"), [READ_ONLY, FULL_DISK], ids=["read-only", "full disk"])
def test_a_server_that_cant_be_written_to_is_waited_out(
    start_worker: Start,
    own_server: PostgresServer,
    ledger: Ledger,
    database: str,
    begin: list[str],
    end: list[str],
) -> None:
    """24: for two leases: no spinning, said once, nothing lost, nothing run twice."""
    away = Away(own_server)
    away.rows("SET default_transaction_read_only = off")
    away.rows("TRUNCATE aiotasks_task, aiotasks_worker")
    env = {**environment(own_server), "LEDGER_DSN": database}
    options = {"LEASE_TIMEOUT": 2, "POLL_INTERVAL": 0.5, "COMMAND_TIMEOUT": 1}
    worker = start_worker("--threads", "5", options=options, env=env)
    away.enqueue("work", 0.5, count=10)
    away.enqueue("work", 6.0, count=10)
    away.enqueue("work_sync", 0.5, count=5, lane="thread")
    wait_until(lambda: ledger.events("start") >= 25)
    for statement in begin:
        away.rows(statement)
    worker.wait_for("cannot be renewed")
    worker.wait_for("outcomes wait for the database")
    tries = "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    before, began = away.value(tries), time.monotonic()
    time.sleep(4.0)  # load: an outage of two leases
    rate = (away.value(tries) - before) / (time.monotonic() - began)
    print(f"{rate:.1f} tries a second")  # noqa: T201
    for statement in end:
        away.rows(statement)
    wait_until(lambda: away.statuses() == {"SUCCESSFUL": 25})
    away.enqueue("work", count=5)
    wait_until(lambda: away.statuses() == {"SUCCESSFUL": 30})
    away.close()
    assert ledger.events("start") == 30
    assert 0 < rate < MOST_TRIES
    assert worker.stop() == 0
    for said in ("claims wait", "outcomes wait", "cannot be renewed"):
        assert worker.log.count(said) <= 1
    assert "fenced" not in worker.log
    assert "Traceback" not in worker.log


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Enqueuers:
    """Threads that enqueue without a pause: one from sync code, and one on each kind of loop."""

    kinds = ("sync", *LOOPS)

    def __init__(self) -> None:
        self.acknowledged: dict[str, list[tuple[str, float]]] = {kind: [] for kind in self.kinds}
        self.refused = Counter[str]()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._sync),
            *(threading.Thread(target=self._on_loop, args=[kind]) for kind in LOOPS),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def count(self, kind: str) -> int:
        return len(self.acknowledged[kind])

    @property
    def ids(self) -> set[str]:
        """Of all tasks that were acknowledged."""
        return {id for acknowledged in self.acknowledged.values() for id, _ in acknowledged}

    def _sync(self) -> None:
        while not self._stopping.is_set():
            close_old_connections()  # as Django does before a request
            try:
                self._note("sync", tasks.work.enqueue().id)
            except utils.Error:
                self.refused["sync"] += 1
                time.sleep(0.05)  # load: it would spin otherwise
        connections.close_all()

    def _on_loop(self, kind: str) -> None:
        async def enqueue() -> None:
            while not self._stopping.is_set():
                try:
                    self._note(kind, (await tasks.work.aenqueue()).id)
                except utils.Error:
                    self.refused[kind] += 1

        async def main() -> None:
            await asyncio.gather(*(enqueue() for _ in range(3)))

        with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
            runner.run(main())

    def _note(self, kind: str, id: str) -> None:
        self.acknowledged[kind].append((id, time.monotonic()))
        time.sleep(0.002)  # load: some hundred a second


@pytest.fixture
def enqueuers(configure: Configure) -> Iterator[Enqueuers]:
    configure(**OPTIONS)
    enqueuers = Enqueuers()
    yield enqueuers
    enqueuers.stop()


def fail_over(pair: Pair, enqueuers: Enqueuers, ledger: Ledger, *, away: float) -> dict[str, Any]:
    """Kill the primary under load, promote the standby after ``away`` seconds; what came of it."""
    for kind in enqueuers.kinds:
        wait_until(lambda kind=kind: enqueuers.count(kind) > 50)
    wait_until(lambda: ledger.events("end") > 50)
    finished = pair.rows(
        pair.primary, "SELECT id, claim_id, finished_at FROM aiotasks_task WHERE status = 'SUCCESSFUL'"
    )
    killed = pair.kill_primary()
    time.sleep(away)
    promoted = pair.promote()
    before = ledger.events("start")
    times = {}
    for kind in enqueuers.kinds:
        wait_until(lambda kind=kind: enqueuers.acknowledged[kind][-1][1] > promoted)
        times[kind] = time.monotonic() - promoted
    wait_until(lambda: ledger.events("start") > before + 10)
    times["work"] = time.monotonic() - promoted
    counts = {kind: enqueuers.count(kind) for kind in enqueuers.kinds}
    for kind, count in counts.items():
        wait_until(lambda kind=kind, count=count: enqueuers.count(kind) > count + 50)
    enqueuers.stop()
    stored = {str(id) for (id,) in pair.rows(pair.standby, "SELECT id FROM aiotasks_task")}
    kept = pair.rows(pair.standby, "SELECT id, claim_id, finished_at FROM aiotasks_task")
    return {
        "away": promoted - killed,
        "gone on after": times,
        "acknowledged": len(enqueuers.ids),
        "refused": dict(enqueuers.refused),
        "lost": len(enqueuers.ids - stored),
        "finished": len(finished),
        "unfinished again": len(set(finished) - set(kept)),
    }


def all_done(pair: Pair) -> bool:
    return pair.rows(pair.standby, "SELECT DISTINCT status FROM aiotasks_task") == [("SUCCESSFUL",)]


def start_workers(start_worker: Start, env: dict[str, str]) -> list[Any]:
    workers = [start_worker(options=OPTIONS, env=env, ready=False) for _ in range(2)]
    for worker in workers:
        worker.wait_for("connections: at most")
    return workers


@pytest.mark.parametrize("away", [0.5, pytest.param(6.0, marks=pytest.mark.battery, id="two leases")])
def test_a_standby_takes_over(
    start_worker: Start, pair: Pair, env: dict[str, str], ledger: Ledger, enqueuers: Enqueuers, away: float
) -> None:
    """Everybody goes on by themselves, and with a synchronous standby nothing that was told is lost."""
    workers = start_workers(start_worker, env)
    enqueuers.start()
    figures = fail_over(pair, enqueuers, ledger, away=away)
    wait_until(lambda: all_done(pair))
    again = ledger.value("SELECT count(*) - count(DISTINCT task_id) FROM ledger WHERE event = 'start'")
    print({**figures, "run again": again})  # noqa: T201
    assert figures["lost"] == 0
    assert figures["unfinished again"] == 0
    assert [worker.stop() for worker in workers] == [0, 0]
    for worker in workers:
        assert "Traceback" not in worker.log


@pytest.mark.battery
async def test_what_the_standby_has_not_got_is_not_acknowledged(pair: Pair, configure: Configure) -> None:
    """24: the primary cuts an INSERT's wait for the standby short, as a restart does: it is committed."""
    configure(COMMAND_TIMEOUT=30)
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    stored = "SELECT id::text FROM aiotasks_task"
    pair.standby.stop("immediate")
    enqueue = asyncio.ensure_future(tasks.work.aenqueue())
    await until(lambda: pair.rows(pair.primary, waiting))
    pair.rows(pair.primary, f"SELECT pg_terminate_backend(pid) FROM ({waiting}) AS waiting")
    await until(lambda: pair.rows(pair.primary, stored))
    await until(lambda: enqueue.done() or pair.rows(pair.primary, waiting))
    assert not enqueue.done()
    pair.standby.start()
    result = await enqueue
    await until(lambda: pair.rows(pair.standby, stored) == [(result.id,)])


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A folder on a file system of 16 MiB, of the user whom servers run as."""
    user = unprivileged_user()
    folder = Path(tempfile.mkdtemp(prefix="aiotasks-disk-"))
    options = f"size=16m,uid={user.pw_uid},mode=0700" if user else "size=16m"
    mount: list[str | Path] = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if mounted:
        yield folder
        subprocess.run(["umount", folder], check=True)
    folder.rmdir()
    if not mounted:
        pytest.skip("no file system can be mounted here")


@pytest.fixture
def small_server(small_disk: Path, database: str) -> Iterator[PostgresServer]:
    """What this process' connections go to: a server with our tables, alone, on the small disk."""
    with PostgresServer(bin_dir=BIN_DIR) as server:
        away = Away(server)
        away.rows(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
        away.rows("ALTER DATABASE postgres SET default_tablespace = 'small'")
        away.close()
        migrate(server)
        with connected(server, connect_timeout=2):
            yield server


@pytest.mark.battery
def test_a_disk_that_is_full_is_waited_out(
    start_worker: Start,
    small_disk: Path,
    small_server: PostgresServer,
    ledger: Ledger,
    database: str,
    enqueuers: Enqueuers,
) -> None:
    """24: enqueues are refused, and whatever was acknowledged is run, once, when there is room again."""
    away = Away(small_server)
    env = {**environment(small_server), "LEDGER_DSN": database}
    worker = start_worker("--threads", "5", options=OPTIONS, env=env)
    enqueuers.start()
    wait_until(lambda: ledger.events("end") > 50)
    text = os.urandom(100_000).hex()  # too large for what is free in the table's pages
    result = tasks.note.using(priority=100).enqueue(text, 3.0)
    wait_until(lambda: tasks.note.get_result(result.id).status == "RUNNING")
    with (small_disk / "full").open("wb", buffering=0) as full, suppress(OSError):
        while full.write(bytes(4096)):
            pass
    for kind in enqueuers.kinds:
        wait_until(lambda kind=kind: enqueuers.refused[kind] > 0)
    enqueuers.stop()
    worker.wait_for("outcomes wait for the database")
    tries = "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    before, began = away.value(tries), time.monotonic()
    time.sleep(OPTIONS["LEASE_TIMEOUT"] + 1)  # load: an outage longer than a lease
    rate = (away.value(tries) - before) / (time.monotonic() - began)
    (small_disk / "full").unlink()
    wait_until(lambda: away.statuses().keys() == {"SUCCESSFUL"})
    stored = {str(row.id) for row in away.rows("SELECT id FROM aiotasks_task")}
    away.close()
    print(f"{rate:.1f} tries a second; acknowledged {len(enqueuers.ids)}, {dict(enqueuers.refused)} refused")  # noqa: T201
    assert enqueuers.ids <= stored
    assert ledger.events("start") == len(stored) - 1
    assert tasks.note.get_result(result.id).return_value == text
    assert rate < MOST_TRIES
    assert worker.stop() == 0
    assert "fenced" not in worker.log
    assert "Traceback" not in worker.log
