"""A keyed claim outlasts a crash of the server: else its places would be given away while its tasks run."""

import uuid

import asyncpg
import pytest

from aiotasks.db.drivers import ConnectionDriver
from aiotasks.demo.postgres import PostgresServer
from aiotasks.store.limits import KeyRequest, LimitRule
from aiotasks.store.store import Store
from tests.conftest import BIN_DIR
from tests.faults.away import migrate
from tests.store.rows import new_job, worker

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the server doesn't know the loop


@pytest.mark.parametrize(("commit", "given"), [("on", 0), ("off", 2)])
async def test_a_server_that_is_killed_right_after_a_claim(commit: str, given: int) -> None:
    """Without the wait for the disk, the control, the claim is forgotten, and there would be 4 of 2."""
    rule = LimitRule("l", concurrency=2)
    request = [KeyRequest("default", "l")]
    # What isn't waited for is written after three such delays at the latest.
    with PostgresServer(bin_dir=BIN_DIR, settings={"wal_writer_delay": "10s"}) as server:
        migrate(server)
        connection = await asyncpg.connect(server.dsn())
        store = Store(ConnectionDriver(connection))
        await store.insert_jobs([new_job(limit_key="l") for _ in range(4)])
        await store.insert_limits("default", ["l"])
        me = await worker(store)
        await connection.execute(f"SET synchronous_commit = {commit}")
        claim = await store.claim_keyed(me, uuid.uuid4(), "default", "loop", 10, request, [rule])
        assert len(claim.jobs) == 2
        server.restart("immediate")
        connection.terminate()
        connection = await asyncpg.connect(server.dsn())
        store = Store(ConnectionDriver(connection))
        again = await store.claim_keyed(me, uuid.uuid4(), "default", "loop", 10, request, [rule])
        assert len(again.jobs) == given
        await connection.close()
