"""Metadata from the outside: at the enqueue, of results, and saved by anybody in any state of a task."""

import asyncio
import pickle
from typing import Any
from uuid import uuid4

import asyncpg
import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import connections, utils
from django.db import transaction as django_transaction
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist

import aiotasks
from aiotasks.metadata.values import MAX_SIZE
from tests import tasks, unique_tasks
from tests.site import default_task_backend, postgres_result

from .support import Api, run_all, value_of


def stored(observer: psycopg.Connection) -> Any:
    return value_of(observer, "SELECT metadata::text FROM aiotasks_task")


# --- At the enqueue


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ("a", "metadata must be a dict"),
        ([], "metadata must be a dict"),
        ({1: 2}, "a key of metadata must be a string"),
        ({"_mine": 1}, "metadata has the key '_mine'"),
        ({"a": {"b": object()}}, r"metadata\['a'\]\['b'\]"),
        ({"a": "x" * MAX_SIZE}, "the limit is 65536"),
    ],
)
def test_what_using_refuses(metadata: Any, words: str) -> None:
    with pytest.raises(InvalidTask, match=words):
        tasks.add.using(metadata=metadata)


def test_a_task_has_a_copy_of_its_own() -> None:
    given: dict[str, Any] = {"a": (1, 2)}
    task: Any = tasks.add.using(metadata=given)
    given["a"] = 3
    assert task.metadata == {"a": [1, 2]}
    assert task.using(priority=5).metadata == task.using(metadata=None).metadata == {"a": [1, 2]}
    assert task.using(metadata={}).metadata == tasks.add.metadata == {}
    assert hash(task) == hash(tasks.add)
    assert task != tasks.add


def test_the_decorator_takes_none() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'metadata'"):
        aiotasks.task(metadata={"a": 1})(tasks.add.func)  # type: ignore[call-overload]  # the keyword


@pytest.mark.parametrize("metadata", [{}, {"a": 1}])
def test_a_task_is_pickled_with_it(metadata: dict[str, Any]) -> None:
    task: Any = tasks.add.using(metadata=metadata)
    assert pickle.loads(pickle.dumps(task)) == task
    (kwargs,) = task.__reduce__()[1]
    assert ("metadata" in kwargs) is bool(metadata)  # the release before knows no such field


async def test_a_result_has_it_from_the_beginning(
    api: Api, observer: psycopg.Connection, database: str
) -> None:
    result = await api.enqueue(tasks.add.using(metadata={"b": {"c": [1]}, "a": -0.0}), 1, 2)
    assert result.metadata == result.raw_metadata == {"b": {"c": [1]}, "a": 0}
    assert stored(observer) == '{"b":{"c":[1]},"a":-0.0}'
    result.metadata["b"]["c"].append(2)  # of a copy
    assert result.metadata["b"] == {"c": [1]}
    found = await api.call(default_task_backend, "get_result", result.id)
    assert found.metadata == result.metadata


async def test_a_change_of_the_tasks_own_dict_counts_from_the_next_enqueue(database: str) -> None:
    task: Any = tasks.add.using(priority=7)
    assert postgres_result(await task.aenqueue(1, 2)).metadata == {}
    task.metadata["a"] = 1
    assert postgres_result(await task.aenqueue(1, 2)).metadata == {"a": 1}
    task.metadata["_a"] = 1
    with pytest.raises(InvalidTask, match="'_a'"):
        await task.aenqueue(1, 2)


async def test_a_result_without_any_has_an_empty_one(api: Api, database: str) -> None:
    result = await api.enqueue(tasks.add, 1, 2)
    assert (result.metadata, result.raw_metadata, result.stored_metadata) == ({}, {}, None)


async def test_many_calls_have_it_each(api: Api, database: str) -> None:
    task = tasks.add.using(metadata={"a": 1})
    results = await api.call(default_task_backend, "enqueue_many", task, [((n, n), {}) for n in range(3)])
    for result in results:
        await result.arefresh()
        assert result.metadata == {"a": 1}


async def test_a_duplicate_shows_the_holders_and_a_replacement_has_its_own(
    database: str,
) -> None:
    first = await unique_tasks.once.using(metadata={"call": 1}).aenqueue(1)
    second = await unique_tasks.once.using(metadata={"call": 2}).aenqueue(1)
    assert (second.id, postgres_result(second).metadata) == (first.id, {"call": 1})
    waiting = await unique_tasks.debounced.using(metadata={"call": 1, "only": 1}).aenqueue(1)
    replaced = await unique_tasks.debounced.using(metadata={"call": 2}).aenqueue(1)
    assert (replaced.id, postgres_result(replaced).metadata) == (waiting.id, {"call": 2})


def test_one_transaction(database: str, observer: psycopg.Connection) -> None:
    with django_transaction.atomic():
        result = postgres_result(tasks.add.using(metadata={"a": 1}).enqueue(1, 2))
        default_task_backend.save_metadata(result, {"b": 2})
        result.refresh()
        assert result.metadata == {"a": 1, "b": 2}
        assert value_of(observer, "SELECT count(*) FROM aiotasks_task") == 0
        with django_transaction.atomic():
            default_task_backend.save_metadata(result, {"c": 3})
            django_transaction.set_rollback(True)
    assert stored(observer) == '{"a":1,"b":2}'


async def test_one_transaction_over_asyncpg(database: str, observer: psycopg.Connection) -> None:
    async with aiotasks.transaction():
        result = postgres_result(await tasks.add.using(metadata={"a": 1}).aenqueue(1, 2))
        await default_task_backend.asave_metadata(result.id, {"b": 2})
        await result.arefresh()
        assert result.metadata == {"a": 1, "b": 2}
        assert value_of(observer, "SELECT count(*) FROM aiotasks_task") == 0
    assert stored(observer) == '{"a":1,"b":2}'


# --- Saved by anybody


async def save(api: Api, result: Any, metadata: Any) -> None:
    await api.call(default_task_backend, "save_metadata", result, metadata)


async def test_it_is_merged_by_key(api: Api, database: str, observer: psycopg.Connection) -> None:
    assert default_task_backend.supports_metadata is True
    result = await api.enqueue(tasks.add.using(metadata={"a": 1, "b": [1]}), 1, 2)
    observer.execute("""UPDATE aiotasks_task SET metadata = '{"_t": 0, "a": 1, "b": [1]}'""")
    await save(api, result, {"b": {"x": 2}, "c": None})
    assert stored(observer) == '{"_t":0,"a":1,"b":{"x":2},"c":null}'
    assert result.metadata == {"a": 1, "b": [1]}  # until it is refreshed
    await save(api, result.id, {})
    await api.call(result, "refresh")
    assert result.metadata == {"a": 1, "b": {"x": 2}, "c": None}
    assert result.raw_metadata["_t"] == 0


async def test_it_is_saved_also_when_the_task_does_not_run(either: Api, database: str) -> None:
    result = await either.enqueue(tasks.add, 1, 2)
    await save(either, result, {"before": 1})
    await run_all()
    await save(either, result, {"after": 2})
    await either.call(result, "refresh")
    assert (result.return_value, result.metadata) == (3, {"before": 1, "after": 2})


async def test_what_a_save_refuses(api: Api, database: str, observer: psycopg.Connection) -> None:
    result = await api.enqueue(tasks.add.using(metadata={"a": "x" * 40_000}), 1, 2)
    for bad, kind, words in [
        ({"_a": 1}, ValueError, "'_a'"),
        ([], TypeError, "must be a dict"),
        ({"a": object()}, TypeError, r"metadata\['a'\]"),
        ({"b": "x" * 30_000}, ValueError, f"of task {result.id} would take 70015 bytes"),
    ]:
        with pytest.raises(kind, match=words):
            await save(api, result, bad)
    await save(api, result, {"a": "y" * 60_000})
    for unknown in (str(uuid4()), "no id"):
        with pytest.raises(TaskResultDoesNotExist, match=unknown):
            await save(api, unknown, {"a": 1})
    observer.execute("UPDATE aiotasks_task SET metadata = '[1]'")
    with pytest.raises(aiotasks.InvalidRow, match="its metadata isn't a JSON object"):
        await save(api, result, {"a": 1})
    await api.call(result, "refresh")
    with pytest.raises(aiotasks.InvalidRow, match="isn't a JSON object"):
        _ = result.metadata


async def test_many_at_once_lose_nothing(database: str) -> None:
    result = postgres_result(await tasks.add.aenqueue(1, 2))

    def over_django(number: int) -> None:
        default_task_backend.save_metadata(result.id, {f"d{number}": number})
        connections.close_all()

    await asyncio.gather(
        *(default_task_backend.asave_metadata(result, {f"a{n}": n}) for n in range(30)),
        *(sync_to_async(over_django, thread_sensitive=False)(n) for n in range(4)),
    )
    await result.arefresh()
    assert result.metadata == {f"a{n}": n for n in range(30)} | {f"d{n}": n for n in range(4)}


async def test_a_row_that_others_change_all_the_time_is_an_error_in_the_end(
    database: str, settings: Any, monkeypatch: pytest.MonkeyPatch, conn: asyncpg.Connection
) -> None:
    from aiotasks.store.metadata import MetadataStatements

    result = await tasks.add.aenqueue(1, 2)
    replace = MetadataStatements.replace_metadata
    tries = 0

    async def beaten(self: Any, *args: Any) -> Any:
        nonlocal tries
        tries += 1
        await conn.execute("UPDATE aiotasks_task SET metadata = $1", f'{{"n":{tries}}}')
        return await replace(self, *args)

    monkeypatch.setattr(MetadataStatements, "replace_metadata", beaten)
    settings.TASKS = {
        "default": {"BACKEND": "aiotasks.backend.PostgresBackend", "OPTIONS": {"COMMAND_TIMEOUT": 1.5}}
    }
    with pytest.raises(utils.OperationalError, match=r"changed by others at each try for 1\.5 s"):
        await default_task_backend.asave_metadata(result.id, {"a": 1})
    assert tries > 2


async def test_watchers_are_told(api: Api, database: str, observer: psycopg.Connection) -> None:
    """Of each save, after its commit, where the row says that somebody awaits each change."""
    results = [await api.enqueue(tasks.add, 1, 2) for _ in range(3)]
    for result, awaited in zip(results, (None, 1, 2), strict=True):
        observer.execute("UPDATE aiotasks_task SET awaited = %s WHERE id = %s", [awaited, result.id])
    observer.execute("LISTEN aiotasks_changed")
    for result in results:
        await save(api, result, {"a": 1})
    told = await asyncio.to_thread(_next_notify, observer)
    assert told == f'["{results[2].id}"]'


def _next_notify(observer: psycopg.Connection) -> str:
    (notify,) = observer.notifies(timeout=30, stop_after=1)
    return notify.payload
