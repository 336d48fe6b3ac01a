"""Tasks for the tests of Django's connections in the worker's threads."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection, transaction

from aiotasks import task
from aiotasks.models import Task

from .harness import until

# How many have come so far, for tasks that wait for each other; and what else tasks leave behind.
arrived: list[Any] = []
left_cursors: list[Any] = []
go = threading.Event()


def value(statement: str, *params: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement, params)
        return cursor.fetchone()[0] if cursor.description else None


avalue = sync_to_async(value, thread_sensitive=True)


def pid() -> int:
    return int(value("SELECT pg_backend_pid()"))


@task
def backend_sync() -> int:
    return pid()


@task
async def backend() -> int:
    return int(await sync_to_async(pid)())


@task
async def backend_in_executor() -> int:
    return await asyncio.to_thread(pid)


@task
async def count_and_wait(others: int) -> int:
    """A query, and then a wait until so many have had theirs."""
    found = await Task.objects.acount()
    arrived.append(found)
    await until(lambda: len(arrived) >= others)
    return found


@task
def count_sync() -> int:
    found = Task.objects.count()
    time.sleep(0.02)
    return found


@task
def logged_queries() -> int:
    value("SELECT length(%s)", "x" * 1000)
    return len(connection.queries)


@task
async def alogged_queries() -> int:
    await avalue("SELECT length(%s)", "x" * 1000)
    return await sync_to_async(lambda: len(connection.queries))()


# --- What changes a session: by name, the statement for it, and one that shows whose session it is

WAYS: dict[str, tuple[str, str]] = {
    "set_config": (
        "SELECT set_config('test.tenant', %s, false)",
        "SELECT coalesce(current_setting('test.tenant', true), '')",
    ),
    "set": ("SET test.tenant = %s", "SELECT coalesce(current_setting('test.tenant', true), '')"),
    "role": (
        "SET ROLE pg_monitor; SELECT %s",
        "SELECT CASE current_user WHEN 'pg_monitor' THEN %s ELSE '' END",
    ),
    "temp": (
        "CREATE TEMPORARY TABLE secrets AS SELECT %s::text AS secret",
        "SELECT CASE WHEN to_regclass('pg_temp.secrets') IS NULL THEN '' ELSE %s END",
    ),
    "advisory": (
        "SELECT pg_advisory_lock(4711), %s",
        "SELECT CASE WHEN EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711"
        " AND pid = pg_backend_pid()) THEN %s ELSE '' END",
    ),
}


# Past Django's own cursor methods, whose session shows as that of "set_config" does.
PAST_DJANGO = ("copy", "stream", "raw", "raw_copy")
WAYS |= dict.fromkeys(PAST_DJANGO, WAYS["set_config"])


def change(way: str, tenant: str) -> None:
    if way not in PAST_DJANGO:
        value(WAYS[way][0], tenant)
        return
    setting = f"SELECT set_config('test.tenant', '{tenant}', false)"
    with connection.cursor() as cursor:
        match way:
            case "copy":
                with cursor.copy(f"COPY ({setting}) TO STDOUT") as copy:
                    list(copy)
            case "stream":
                list(cursor.stream(setting))
            case "raw":
                connection.connection.execute(setting)
            case "raw_copy":
                with connection.connection.cursor() as raw, raw.copy(f"COPY ({setting}) TO STDOUT") as copy:
                    list(copy)


def look(way: str, tenant: str) -> str:
    """The tenant whose session this is; '' for nobody's."""
    statement = WAYS[way][1]
    return str(value(statement, tenant) if "%s" in statement else value(statement))


@task
async def change_and_look(way: str, tenant: str, others: int) -> list[str]:
    """Before, after, and when all others have changed theirs, too."""
    before = await sync_to_async(look)(way, tenant)
    await sync_to_async(change)(way, tenant)
    after = await sync_to_async(look)(way, tenant)
    arrived.append(tenant)
    await until(lambda: len(arrived) >= others)
    return [before, after, await sync_to_async(look)(way, tenant)]


@task
async def look_until_told(way: str, tenant: str) -> list[str]:
    """What a task that changes nothing sees, again and again, while others do."""
    found = set()
    while True:
        found.add(await sync_to_async(look)(way, tenant))
        if go.is_set():
            return sorted(found)
        await asyncio.sleep(0.001)


@task
def change_sync(way: str, tenant: str) -> list[str]:
    before = look(way, tenant)
    change(way, tenant)
    return [before, look(way, tenant)]


@task
def change_and_close(way: str, tenant: str) -> list[str]:
    """As some do by close_old_connections()."""
    before = look(way, tenant)
    change(way, tenant)
    after = look(way, tenant)
    connection.close()
    return [before, after]


@task
def look_sync(way: str, tenant: str) -> str:
    return look(way, tenant)


@task
async def change_and_be_cancelled(way: str) -> None:
    """While the call that changes the session runs in its thread."""

    def change_late() -> None:
        value("SELECT pg_sleep(0.2)")
        change(way, "cancelled")
        arrived.append(way)

    with suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await sync_to_async(change_late)()


@task
async def change_and_outlast(way: str, tenant: str) -> list[str]:
    """Long enough for its thread's connection to be checked again."""
    await sync_to_async(change)(way, tenant)
    await asyncio.sleep(0.05)
    return [await sync_to_async(look)(way, tenant)]


@task
async def iterate(others: int) -> int:
    """Over a server-side cursor, from call to call."""
    count = 0
    async for _ in Task.objects.all().aiterator(chunk_size=2):
        count += 1
        if count == 1:
            arrived.append(count)
            await until(lambda: len(arrived) >= others)
    return count


# --- What a task may leave behind besides


def begin() -> None:
    connection.set_autocommit(False)


def open_block() -> None:
    transaction.atomic().__enter__()
    value("SELECT 1")


def raw_transaction() -> None:
    connection.ensure_connection()
    connection.connection.execute("SELECT 1")
    value("BEGIN")


def blocker() -> None:
    def block(*args: Any) -> Any:
        raise AssertionError("a stranger's execute wrapper")

    connection.execute_wrappers.append(block)


def closed_in_block() -> None:
    transaction.atomic().__enter__()
    value("SELECT 1")
    connection.close()


def leave_server_cursor() -> None:
    cursor = connection.chunked_cursor()
    cursor.execute("SELECT generate_series(1, 10000)")
    left_cursors.append(cursor)


LEFT: dict[str, Callable[[], None]] = {
    "autocommit": begin,
    "block": open_block,
    "raw": raw_transaction,
    "wrapper": blocker,
    "closed": closed_in_block,
    "cursor": leave_server_cursor,
}


def is_clean() -> bool:
    return (
        value("SELECT count(*) FROM pg_cursors WHERE is_holdable") == 0
        and connection.get_autocommit()
        and not connection.in_atomic_block
        and connection.connection.info.transaction_status == 0
    )


@task
def leave(what: str) -> int:
    found = pid()
    LEFT[what]()
    return found


@task
async def aleave(what: str) -> int:
    found = await sync_to_async(pid)()
    await sync_to_async(LEFT[what])()
    return int(found)


@task
def check_clean() -> bool:
    return is_clean()


@task
async def acheck_clean() -> bool:
    return bool(await sync_to_async(is_clean)())
