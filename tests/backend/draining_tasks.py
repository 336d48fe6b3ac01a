"""Tasks that do to their test's transaction what they mustn't. Workers find them by their path."""

import asyncio
import time
from typing import Any

from asgiref.sync import sync_to_async
from django.db import IntegrityError, connection, transaction

from aiotasks.models import Worker
from tests.site import task
from tests.tasks import note

INSERT = """
    INSERT INTO aiotasks_worker (id, backend, host, pid, queues, concurrency, threads, version, started_at,
        lease_expires_at)
    VALUES (%s::uuid, 'site', 'twice', 0, '{}', 0, 0, '', now(), now())
"""
ID = "0190b2c4-0000-7000-8000-000000000001"


def _insert() -> None:
    with connection.cursor() as cursor:
        cursor.execute(INSERT, [ID])


def _count() -> int:
    return Worker.objects.filter(host="twice").count()


@task
def insert_twice() -> None:
    _insert()
    _insert()


@task
async def ainsert_twice() -> None:
    await sync_to_async(_insert)()
    await sync_to_async(_insert)()


@task
def insert_twice_and_go_on() -> str:
    _insert()
    try:
        _insert()
    except IntegrityError:
        return "survived"
    return "never"


@task
def mark_for_rollback() -> None:
    _insert()
    transaction.set_rollback(True)


@task
def leave_atomic_open() -> str:
    transaction.atomic().__enter__()
    _insert()
    transaction.atomic().__enter__()
    return "left"


@task
async def aleave_atomic_open() -> str:
    return str(await sync_to_async(leave_atomic_open.func)())


@task
def durably() -> int:
    with transaction.atomic(durable=True):
        _insert()
    return _count()


@task
def fail_after_insert() -> None:
    _insert()
    raise ValueError("no luck")


@task
def close_connection() -> None:
    connection.close()


@task
def sleep_in_database(seconds: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])


@task
def enqueue_itself(pause: float = 0.01) -> None:
    time.sleep(pause)
    enqueue_itself.enqueue(pause)


@task
async def astubborn() -> None:
    try:
        await asyncio.sleep(60)
    finally:
        note.func("cancelled")


@task
def refused() -> str:
    return "refused by the site"


@task
async def arefused() -> str:
    return "refused by the site"


def break_transaction(**kwargs: Any) -> None:
    """A receiver of signals."""
    insert_twice.func()
