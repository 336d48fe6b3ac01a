"""Limits by key, as callers see them: async and sync, in transactions and in bulk."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from asgiref.sync import sync_to_async
from django.db import transaction
from django.utils import timezone

import aiotasks
from tests import limited_tasks as tasks
from tests.site import default_task_backend

from .support import Api

COUNT = "SELECT count(*) FROM aiotasks_task"
LATER = timedelta(hours=1)


async def stored(conn: asyncpg.Connection, id: str) -> tuple[Any, ...]:
    """The lane, key and order of a task."""
    row = await conn.fetchrow("SELECT lane, limit_key, ordered FROM aiotasks_task WHERE id = $1", id)
    return tuple(row)


async def test_the_row_has_the_key_of_the_call(api: Api, conn: asyncpg.Connection) -> None:
    for task, args, kwargs, expected in (
        (tasks.limited, [42], {}, ("loop+", "tests.limited:42", None)),
        (tasks.limited, [], {"tenant_id": "ü"}, ("loop+", "tests.limited:ü", None)),
        (tasks.limited, [None], {}, ("loop", None, None)),
        (tasks.limited.using(limit_key="eu"), [None], {}, ("loop+", "tests.limited:eu", None)),
        (tasks.limited_sync, ["x"], {"tenant_id": 1}, ("thread+", "tests.limited:1", None)),
        (tasks.one_key, [], {}, ("loop+", "tests.one-key", None)),
        (tasks.in_line, [7], {}, ("loop+", "tests.line:7", "continue")),
        (tasks.in_line, [None], {}, ("loop", None, None)),
        (tasks.or_stop, [7], {}, ("loop+", "tests.stopping:7", "stop")),
    ):
        result = await api.enqueue(task, *args, **kwargs)
        assert await stored(conn, result.id) == expected


async def test_what_is_no_key_stores_nothing(api: Api, conn: asyncpg.Connection) -> None:
    wrong: list[tuple[Any, type[Exception], str]] = [
        (1.5, TypeError, r"must be an integer or a string, of 1 to 200 characters, .*, or None .*, not 1\.5"),
        ("k" * 201, ValueError, "must be an integer or a string, of 1 to 200 characters"),
    ]
    for value, error, text in wrong:
        message = f"The key of limit 'tests.limited' of tests.limited_tasks.limited {text}"
        with pytest.raises(error, match=f"^{message}"):
            await api.enqueue(tasks.limited, value)
        calls: Any = [([1], {}), ([value], {})]
        with pytest.raises(error, match=rf"^calls\[1\]: {message}"):
            await api.call(default_task_backend, "enqueue_many", tasks.limited, calls)
    assert await conn.fetchval(COUNT) == 0


async def test_each_of_many_has_its_key(api: Api, conn: asyncpg.Connection) -> None:
    calls: Any = [([key], {}) for key in (1, 2, None, 1)]
    results = await api.call(default_task_backend, "enqueue_many", tasks.limited, calls)
    keys = [(await stored(conn, result.id))[:2] for result in results]
    one, two = ("loop+", "tests.limited:1"), ("loop+", "tests.limited:2")
    assert keys == [one, two, ("loop", None), one]
    same: Any = [([7], {})] * 3
    for result in await api.call(default_task_backend, "enqueue_many", tasks.in_line, same):
        assert await stored(conn, result.id) == ("loop+", "tests.line:7", "continue")


async def test_concurrent_calls_have_their_own(conn: asyncpg.Connection) -> None:
    """They share a statement."""
    results = await asyncio.gather(
        *(tasks.limited.aenqueue(number) for number in range(20)),
        *(tasks.in_line.aenqueue(number) for number in range(20)),
        *(tasks.limited.aenqueue(None) for _ in range(20)),
    )
    for number, result in enumerate(results[:20]):
        assert await stored(conn, result.id) == ("loop+", f"tests.limited:{number}", None)
    for number, result in enumerate(results[20:40]):
        assert await stored(conn, result.id) == ("loop+", f"tests.line:{number}", "continue")
    for result in results[40:]:
        assert await stored(conn, result.id) == ("loop", None, None)


async def test_the_place_is_when_it_is_due(api: Api, conn: asyncpg.Connection) -> None:
    now, later = timezone.now(), timezone.now() + LATER
    first = await api.enqueue(tasks.limited, 1)
    past = await api.enqueue(tasks.limited.using(run_after=now - LATER), 1)
    future = await api.enqueue(tasks.limited.using(run_after=later), 1)
    unlimited = await api.enqueue(tasks.limited.using(run_after=later), None)
    places = [
        await conn.fetchval("SELECT limit_place FROM aiotasks_task WHERE id = $1", result.id)
        for result in (first, past, future, unlimited)
    ]
    assert now <= places[0] <= places[1] < later
    assert places[2:] == [later, None]


async def test_a_rollback_takes_it_back(sync_api: Api, conn: asyncpg.Connection) -> None:
    def enqueue() -> None:
        with suppress(KeyError), transaction.atomic():
            sync_api.call_sync(tasks.limited, "enqueue", 1)
            raise KeyError
        with transaction.atomic():
            sync_api.call_sync(tasks.limited, "enqueue", 2)

    await sync_to_async(enqueue)()
    with suppress(KeyError):
        async with aiotasks.transaction():
            await tasks.limited.aenqueue(3)
            raise KeyError
    async with aiotasks.transaction():
        await tasks.limited.aenqueue(4)
    keys = await conn.fetch("SELECT limit_key FROM aiotasks_task ORDER BY 1")
    assert [each[0] for each in keys] == ["tests.limited:2", "tests.limited:4"]


async def test_a_unique_task_may_be_limited(api: Api, conn: asyncpg.Connection) -> None:
    first = await api.enqueue(tasks.both, 1, "a")
    assert await stored(conn, first.id) == ("loop+", "tests.limited:1", None)
    place = await conn.fetchval("SELECT limit_place FROM aiotasks_task")
    again = await api.enqueue(tasks.both, 1, "a", "later")
    assert (again.id, again.is_duplicate) == (first.id, True)
    assert await conn.fetchval("SELECT limit_place FROM aiotasks_task") == place
    for key, expected in ((2, ("loop+", "tests.limited:2", None)), (None, ("loop", None, None))):
        assert (await api.enqueue(tasks.both, key, "a")).id == first.id
        assert await stored(conn, first.id) == expected
    calls: Any = [([key, name], {}) for key, name in ((1, "b"), (None, "c"), (2, "d"), (3, "a"))]
    many = await api.call(default_task_backend, "enqueue_many", tasks.both, calls)
    keys = [(await stored(conn, each.id))[1] for each in many]
    assert keys == ["tests.limited:1", None, "tests.limited:2", "tests.limited:3"]
