"""Many callers on one loop share statements; none waits for what it could do alone."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections

from tests import tasks
from tests.site import default_task_backend
from tests.worker.harness import Configure, until

from .support import Api, worker

COUNT = "SELECT count(*) FROM aiotasks_task"


async def test_500_at_once_are_distinct_and_durable_in_a_few_statements(
    database: str, conn: asyncpg.Connection, statements: list[str]
) -> None:
    results = await asyncio.gather(*(tasks.echo.aenqueue(n) for n in range(500)))
    assert len({result.id for result in results}) == 500
    assert [result.args for result in results] == [[n] for n in range(500)]
    rows = await conn.fetch("SELECT id::text, args::text FROM aiotasks_task")
    assert {row[0]: row[1] for row in rows} == {result.id: f"[{result.args[0]}]" for result in results}
    # The first goes at once, alone; those that came meanwhile go together.
    assert Counter(statements)["insert_jobs"] <= 3
    assert Counter(statements)["notify"] <= 3


async def test_500_refreshes_at_once_get_their_own_rows(
    database: str, conn: asyncpg.Connection, statements: list[str]
) -> None:
    results = await default_task_backend.aenqueue_many(tasks.echo, [((n,), {}) for n in range(500)])
    await conn.execute(
        "UPDATE aiotasks_task SET status = 'SUCCESSFUL', return_value = args, finished_at = now()"
    )
    statements.clear()
    await asyncio.gather(*(result.arefresh() for result in results))
    assert [result.return_value for result in results] == [[n] for n in range(500)]
    # The first goes at once, alone; the others go by a hundred (LOOKUP_LIMIT).
    assert Counter(statements)["select_jobs"] <= 7


async def test_one_after_the_other_none_waits(
    database: str, statements: list[str], configure: Configure
) -> None:
    configure(NOTIFY=False)
    for n in range(5):
        result = await tasks.echo.aenqueue(n)
        await result.arefresh()
    assert statements == ["insert_job", "select_jobs"] * 5


async def test_both_aliases_are_looked_up_at_once(database: str, settings: Any) -> None:
    one = {"BACKEND": "aiotasks.backend.PostgresBackend", "QUEUES": []}
    settings.TASKS = {"default": one, "other": one}
    other = tasks.echo.using(backend="other")
    results = await asyncio.gather(*((other if n % 2 else tasks.echo).aenqueue(n) for n in range(50)))
    await asyncio.gather(*(result.arefresh() for result in results))
    assert {result.backend for result in results} == {"default", "other"}


async def test_a_refused_call_harms_no_neighbour(database: str, conn: asyncpg.Connection) -> None:
    async def one(n: int) -> Any:
        return await tasks.echo.aenqueue(object() if n % 10 == 3 else n)

    outcomes = await asyncio.gather(*(one(n) for n in range(100)), return_exceptions=True)
    assert sum(isinstance(outcome, TypeError) for outcome in outcomes) == 10
    assert await conn.fetchval(COUNT) == 90


async def test_what_the_database_refuses_fails_alone(database: str, conn: asyncpg.Connection) -> None:
    """The batch is halved until the bad row fails by itself."""
    from django.db import IntegrityError

    await conn.execute(
        "ALTER TABLE aiotasks_task ADD CONSTRAINT no_thirteen CHECK (args::text <> '[13]') NOT VALID"
    )
    try:
        outcomes = await asyncio.gather(*(tasks.echo.aenqueue(n) for n in range(100)), return_exceptions=True)
    finally:
        await conn.execute("ALTER TABLE aiotasks_task DROP CONSTRAINT no_thirteen")
    (error,) = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert isinstance(error, IntegrityError)
    assert outcomes[13] is error
    assert await conn.fetchval(COUNT) == 99


async def test_cancelled_callers_harm_no_neighbour(database: str, conn: asyncpg.Connection) -> None:
    """Whoever was cancelled may have a row or not; all others have theirs, and so have later ones."""
    calls = [asyncio.ensure_future(tasks.echo.aenqueue(n)) for n in range(200)]
    await asyncio.sleep(0)
    for call in calls[::3]:
        call.cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    kept = [outcome.id for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert len(kept) >= 133
    later = await asyncio.gather(*(tasks.echo.aenqueue(n) for n in range(50)))
    ids = {row[0] for row in await conn.fetch("SELECT id::text FROM aiotasks_task")}
    assert {*kept, *(result.id for result in later)} <= ids


@pytest.mark.parametrize("name", ["enqueue", "enqueue_many", "get_result"])
async def test_sync_methods_on_the_loops_thread_name_the_async_one(
    database: str, conn: asyncpg.Connection, name: str
) -> None:
    args: dict[str, tuple[Any, ...]] = {
        "enqueue": (tasks.add, [1, 2], {}),
        "enqueue_many": (tasks.add, [((1, 2), {})]),
        "get_result": ("0" * 32,),
    }
    with pytest.raises(SynchronousOnlyOperation, match=rf"{name}\(\) .* `await a{name}\(\)`"):
        getattr(default_task_backend, name)(*args[name])
    assert await conn.fetchval(COUNT) == 0


async def test_so_do_those_of_tasks_and_results(database: str, conn: asyncpg.Connection) -> None:
    result = await tasks.add.aenqueue(1, 2)
    with pytest.raises(SynchronousOnlyOperation, match="aenqueue"):
        tasks.add.enqueue(1, 2)
    for call in (lambda: tasks.add.get_result(result.id), result.refresh):
        with pytest.raises(SynchronousOnlyOperation, match="aget_result"):
            call()
    assert await conn.fetchval(COUNT) == 1


# --- Many in one call ------------------------------------------------------------------------------


async def test_many(database: str, api: Api, conn: asyncpg.Connection) -> None:
    calls = [((n,), {"key": n}) for n in range(2000)]
    results = await api.call(default_task_backend, "enqueue_many", tasks.echo, calls)
    assert len({result.id for result in results}) == 2000
    assert [(result.args, result.kwargs) for result in results] == [([n], {"key": n}) for n in range(2000)]
    rows = await conn.fetch("SELECT id::text FROM aiotasks_task ORDER BY (args->>0)::int")
    assert [row[0] for row in rows] == [result.id for result in results]


async def test_many_are_one_statement(database: str, statements: list[str], configure: Configure) -> None:
    configure(NOTIFY=False)
    await default_task_backend.aenqueue_many(tasks.echo, [((n,), {}) for n in range(500)])
    assert statements == ["insert_jobs"]


@pytest.mark.parametrize("bad", [object(), float("nan"), {1: 1, "1": 2}, "x" * 2_000_000])
async def test_all_or_none(database: str, api: Api, conn: asyncpg.Connection, bad: Any) -> None:
    calls: list[Any] = [*(((n,), {}) for n in range(10)), ((bad,), {}), *(((n,), {}) for n in range(10))]
    with pytest.raises((TypeError, ValueError), match="args"):
        await api.call(default_task_backend, "enqueue_many", tasks.echo, calls)
    assert await conn.fetchval(COUNT) == 0


async def test_all_or_none_where_the_database_refuses(
    database: str, api: Api, conn: asyncpg.Connection
) -> None:
    from django.db import IntegrityError

    await conn.execute(
        "ALTER TABLE aiotasks_task ADD CONSTRAINT no_thirteen CHECK (args::text <> '[13]') NOT VALID"
    )
    try:
        with pytest.raises(IntegrityError):
            await api.call(default_task_backend, "enqueue_many", tasks.echo, [((n,), {}) for n in range(20)])
    finally:
        await conn.execute("ALTER TABLE aiotasks_task DROP CONSTRAINT no_thirteen")
    assert await conn.fetchval(COUNT) == 0


async def test_many_of_nothing(database: str, api: Api, statements: list[str]) -> None:
    assert await api.call(default_task_backend, "enqueue_many", tasks.echo, []) == []
    assert statements == []


async def test_many_takes_any_iterable(database: str, api: Api, conn: asyncpg.Connection) -> None:
    calls: Iterator[Any] = (([n], {}) for n in range(3))
    assert len(await api.call(default_task_backend, "enqueue_many", tasks.echo, calls)) == 3
    assert await conn.fetchval(COUNT) == 3


async def test_many_from_an_iterable_that_raises(database: str, api: Api, conn: asyncpg.Connection) -> None:
    def calls() -> Any:
        yield (1,), {}
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await api.call(default_task_backend, "enqueue_many", tasks.echo, calls())
    assert await conn.fetchval(COUNT) == 0


async def test_many_of_one_is_one(database: str, api: Api) -> None:
    (result,) = await api.call(default_task_backend, "enqueue_many", tasks.echo, [((1,), {})])
    assert result.args == [1]


async def test_under_a_serializable_default_no_enqueue_fails(database: str, conn: asyncpg.Connection) -> None:
    """PostgreSQL then refuses statements for the sake of others that run beside them (40001)."""
    name = connection.settings_dict["NAME"]
    await conn.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = serializable")
    try:

        def enqueue(count: int) -> None:
            try:
                for number in range(count):
                    tasks.noop.enqueue()
                    if not number % 10:
                        tasks.noop.get_result(default_task_backend.enqueue_many(tasks.noop, [((), {})])[0].id)
                        tasks.noop.using(priority=-1).enqueue().cancel()
            finally:
                connections.close_all()

        async with worker():
            await asyncio.gather(*(asyncio.to_thread(enqueue, 100) for _ in range(3)))
            await asyncio.gather(*(tasks.noop.aenqueue() for _ in range(100)))

            async def are_finished() -> bool:
                return not await conn.fetchval("SELECT count(*) FROM aiotasks_task WHERE finished_at IS NULL")

            await until(are_finished)
        assert await conn.fetchval("SELECT count(*) FROM aiotasks_task") == 460
    finally:
        await conn.execute(f"ALTER DATABASE {name} RESET default_transaction_isolation")
