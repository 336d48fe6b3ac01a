"""Due tasks that the database refuses to make READY, or hangs with."""

import logging
from math import inf
from typing import Any

import asyncpg
import pytest
from django.db import utils

from aiotasks.worker.fleet import Fleet
from aiotasks.worker.maintenance import promotion
from aiotasks.worker.maintenance.promoter import Promoter
from tests.site import running_store
from tests.store.rows import insert

from .harness import until
from .test_wakeups import in_future

pytestmark = pytest.mark.usefixtures("database")

READY, SCHEDULED = "READY", "SCHEDULED"


class Nobody:
    def wake(self, wakeups: Any, *, since: float | None = None) -> None: ...
    def wake_self(self) -> None: ...


def make_promoter(timeout: float = 30.0) -> Promoter:
    return Promoter(running_store(), backend="default", waker=Nobody(), peers=Fleet(), timeout=timeout)


async def statuses(conn: asyncpg.Connection) -> dict[str, int]:
    return dict(await conn.fetch("SELECT status, count(*) FROM aiotasks_task GROUP BY 1"))


async def fill(conn: asyncpg.Connection, number: int) -> None:
    """Due tasks of priority 0 to ``number`` - 1, all due at the same moment."""
    for priority in range(number):
        await insert(running_store(), priority=priority, run_after=in_future(3600))
    await conn.execute("UPDATE aiotasks_task SET run_after = now() - interval '1 h'")


async def meet(conn: asyncpg.Connection, which: str, *, by: str) -> None:
    """What a trigger of the site does with ``which`` of the tasks that are made READY."""
    await conn.execute(
        f"""
        CREATE OR REPLACE FUNCTION meet() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {by}; RETURN NEW; END';
        CREATE OR REPLACE TRIGGER meet BEFORE UPDATE ON aiotasks_task FOR EACH ROW
            WHEN (NEW.status = 'READY' AND {which}) EXECUTE FUNCTION meet()
        """
    )


@pytest.fixture
async def _without_trigger(conn: asyncpg.Connection) -> Any:
    yield
    await conn.execute("DROP FUNCTION IF EXISTS meet CASCADE")


@pytest.mark.usefixtures("_without_trigger")
async def test_a_task_that_is_refused_holds_up_no_other(
    conn: asyncpg.Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(conn, 20)
    await meet(conn, "NEW.priority IN (0, 7, 8, 19)", by="RAISE ''not this one''")
    promoter = make_promoter()
    assert await promoter.run_once() == inf  # it doesn't wait for the refused ones
    assert await statuses(conn) == {READY: 16, SCHEDULED: 4}
    assert caplog.text.count("A due task can't be made READY") == 1
    assert await promoter.run_once() == inf
    assert await statuses(conn) == {READY: 16, SCHEDULED: 4}
    assert caplog.text.count("A due task can't be made READY") == 1
    monkeypatch.setattr(promotion, "REFUSED_FOR", 0.0)
    promoter = make_promoter()
    await promoter.run_once()
    await conn.execute("DROP FUNCTION meet CASCADE")
    assert await promoter.run_once() == inf
    assert await statuses(conn) == {READY: 20}


@pytest.mark.usefixtures("_without_trigger")
async def test_a_task_whose_trigger_hangs_holds_up_no_other(conn: asyncpg.Connection) -> None:
    await fill(conn, 3)
    await meet(conn, "NEW.priority = 1", by="PERFORM pg_sleep(60)")
    promoter = make_promoter(timeout=0.5)

    async def are_others_ready() -> bool:
        await promoter.run_once()
        return await statuses(conn) == {READY: 2, SCHEDULED: 1}

    await until(are_others_ready)


@pytest.mark.usefixtures("_without_trigger")
async def test_what_concerns_all_tasks_is_an_outage(
    conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And if it is over, they needn't be looked for again one by one."""
    caplog.set_level(logging.ERROR, "aiotasks.worker")
    monkeypatch.setattr(promotion, "STATEMENTS", 10)
    await fill(conn, 40)
    await meet(conn, "true", by="RAISE ''none''")
    promoter = make_promoter()
    with pytest.raises(utils.Error, match="none"):
        await promoter.run_once()
    await conn.execute("DROP FUNCTION meet CASCADE")
    await promoter.run_once()
    assert (await statuses(conn))[READY] >= 30
