"""What an enqueue refuses, in words that say what was wrong and what to do."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from asgiref.sync import sync_to_async
from django.db import ProgrammingError, transaction
from django.http import QueryDict
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy

from aiotasks.db.errors import sqlstate
from aiotasks.models import Task as TaskRow
from aiotasks.models import Worker
from tests import tasks
from tests.site import default_task_backend

from .support import Api

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # refusals don't know the loop


class Level(Enum):
    LOW = 1


@dataclass
class Point:
    x: int = 0


class Proxy:
    """As other libraries write them: it says that it is of another class."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return str


def _fails() -> None:
    raise AssertionError("evaluated")


# Value, and what the error advises. Lazy ones aren't evaluated for it.
ADVISED: dict[str, tuple[Any, str]] = {
    "UUID": (UUID(int=1), "Use str(value) instead"),
    "Decimal": (Decimal(1), "Use str(value) instead"),
    "datetime": (datetime(2030, 1, 1), "Use str(value) instead"),
    "date": (datetime(2030, 1, 1).date(), "Use str(value) instead"),
    "path": (PurePosixPath("/"), "Use str(value) instead"),
    "timedelta": (timedelta(1), "Use value.total_seconds() instead"),
    "enum": (Level.LOW, "Use value.value instead"),
    "dataclass": (Point(), "Use dataclasses.asdict(value) instead"),
    "model": (Worker(), "Use obj.pk instead"),
    "queryset": (TaskRow.objects.all(), 'Use list(value.values_list("pk", flat=True)) instead'),
    "set": ({1}, "Use list(value) instead"),
    "keys": ({}.keys(), "Use list(value) instead"),
    "generator": ((n for n in range(0)), "Use list(value) instead"),
    "bytes": (b"\xff", "Use base64.b64encode(value).decode() instead"),
    "bytearray": (bytearray(b"x"), "Use base64.b64encode(value).decode() instead"),
    "lazy text": (gettext_lazy("x"), "Use str(value) instead"),
    "lazy object": (SimpleLazyObject(_fails), "Use the object that it wraps"),
    "lazy str": (SimpleLazyObject(lambda: "s"), "Use the object that it wraps"),
    "lazy dict": (SimpleLazyObject(dict), "Use the object that it wraps"),
    "lazy list": (SimpleLazyObject(list), "Use the object that it wraps"),
    "lazy int": (SimpleLazyObject(int), "Use the object that it wraps"),
    "QueryDict": (QueryDict("a=1&a=2"), "Use value.dict()"),
    "proxy": (Proxy(), "Use text, numbers, lists or dicts"),
    "object": (object(), "Use text, numbers, lists or dicts"),
}


@pytest.mark.parametrize("name", ADVISED)
async def test_what_json_cannot_hold_is_refused_with_what_to_pass(database: str, name: str) -> None:
    value, advice = ADVISED[name]
    with pytest.raises(TypeError) as caught:
        await tasks.echo.aenqueue(value)
    message = str(caught.value)
    assert message.startswith("args[0]: ")
    assert f"Unsupported type: {type.__repr__(type(value))}" in message  # Django's own words
    assert advice in message
    with pytest.raises(TypeError, match=r"^kwargs\['k'\]\[1\]\['x'\]: "):
        await tasks.echo.aenqueue(k=[0, {"x": value}])


@pytest.mark.parametrize(
    "key", [gettext_lazy("x"), SimpleLazyObject(lambda: "s"), SimpleLazyObject(int), (1,)]
)
async def test_a_key_that_only_passes_for_text_is_refused(database: str, key: Any) -> None:
    with pytest.raises(TypeError, match=r"^a key of args\[0\]: Unsupported type: .*Use str\(key\) instead"):
        await tasks.echo.aenqueue({key: 1})


PAIR = r"a pair \(args, kwargs\) is wanted"


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ([1, 2], rf"^calls\[0\]: {PAIR}, such as \(\(1, 2\), {{'key': 3}}\), not 1\.$"),
        ([((1, 2), {}), (1, 2)], rf"^calls\[1\]: {PAIR}"),
        ([((1, 2), {}), ("ab", {})], rf"^calls\[1\]: {PAIR}"),
        ([({1, 2}, {})], rf"^calls\[0\]: {PAIR}"),
        ([((1,), [("b", 2)])], rf"^calls\[0\]: {PAIR}"),
        ([(1, 2, 3)], rf"^calls\[0\]: {PAIR}"),
        (["ab"], rf"^calls\[0\]: {PAIR}"),
        (5, r"^calls must be a list of pairs \(args, kwargs\), not 5\."),
        ([((1, 2), {}), ((1, {2}), {})], r"^calls\[1\]: args\[1\]: Unsupported type"),
        ([((1, 2), {}), ((1,), {})], r"^calls\[1\]: tests\.tasks\.add\(\) missing 1 required positional"),
        ([((1,), {2: 3})], r"^calls\[0\]: keywords must be strings"),
    ],
)
async def test_a_call_of_another_shape_is_named(
    database: str, api: Api, conn: asyncpg.Connection, calls: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        await api.call(default_task_backend, "enqueue_many", tasks.add, calls)
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task") == 0


async def test_what_is_no_task_is_named(database: str, api: Api) -> None:
    with pytest.raises(TypeError, match=r"made by @task, not <function plain_function"):
        await api.call(default_task_backend, "enqueue", tasks.plain_function, (), {})


# --- Signatures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "args", "kwargs", "words"),
    [
        (tasks.add, (1,), {}, "add() missing 1 required positional argument: 'b'"),
        (tasks.aadd, (), {}, "aadd() missing 2 required positional arguments: 'a' and 'b'"),
        (tasks.add, (1, 2, 3), {}, "add() takes 2 positional arguments but 3 were given"),
        (tasks.add, (1, 2), {"c": 3}, "add() got an unexpected keyword argument 'c'"),
        (tasks.add, (1,), {"a": 3}, "add() got multiple values for argument 'a'"),
        (tasks.keyword_only, (), {}, "keyword_only() missing 1 required keyword-only argument: 'key'"),
        (
            tasks.keyword_only,
            (1,),
            {"key": 1},
            "keyword_only() takes 0 positional arguments but 1 positional",
        ),
        (
            tasks.positional_only,
            (),
            {"a": 1},
            "positional_only() got some positional-only arguments passed as",
        ),
        (tasks.greet, ("x", "y"), {}, "greet() takes from 1 to 2 positional arguments but 3 were given"),
    ],
)
async def test_a_call_that_the_function_does_not_take_is_refused(
    database: str, api: Api, conn: asyncpg.Connection, task: Any, args: Any, kwargs: Any, words: str
) -> None:
    with pytest.raises(TypeError) as caught:
        await api.enqueue(task, *args, **kwargs)
    assert str(caught.value).startswith(f"tests.tasks.{words}")
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task") == 0


@pytest.mark.parametrize(
    ("task", "args", "kwargs"),
    [
        (tasks.add, (1,), {"b": 2}),
        (tasks.keyword_only, (), {"key": 1}),
        (tasks.keyword_only, (), {"key": 1, "other": 2}),
        (tasks.positional_only, (1,), {"b": 2}),
        (tasks.greet, (), {}),
        (tasks.greet, ("x",), {}),
        (tasks.injected, (1,), {}),  # by a wrapper that adds an argument
        (tasks.echo, (1, 2, 3), {"function": 2, "path": 3, "args": 4}),
    ],
)
async def test_a_call_that_it_takes_is_not(database: str, task: Any, args: Any, kwargs: Any) -> None:
    result = await task.aenqueue(*args, **kwargs)
    assert (result.args, result.kwargs) == (list(args), kwargs)


# --- A database without tables --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alter", "undo", "says"),
    [
        ("RENAME TO aside", "ALTER TABLE aside RENAME TO aiotasks_task", "are missing in"),
        (
            "RENAME COLUMN keep_result TO aside",
            "ALTER TABLE aiotasks_task RENAME aside TO keep_result",
            "are of another version",
        ),
    ],
)
async def test_without_tables_it_says_to_migrate(
    database: str, api: Api, conn: asyncpg.Connection, alter: str, undo: str, says: str
) -> None:
    result = await tasks.add.aenqueue(1, 2)
    calls: list[Callable[[], Any]] = [
        lambda: api.enqueue(tasks.add, 1, 2),
        lambda: api.call(default_task_backend, "enqueue_many", tasks.add, [((1, 2), {})] * 3),
        lambda: api.call(default_task_backend, "get_result", result.id),
        lambda: api.call(result, "refresh"),
        lambda: api.call(result, "cancel"),
    ]
    await conn.execute(f"ALTER TABLE aiotasks_task {alter}")
    try:
        for call in calls:
            with pytest.raises(
                ProgrammingError, match=f"{says} .*manage.py migrate --database default"
            ) as caught:
                await call()
            assert sqlstate(caught.value) in ("42P01", "42703")  # the driver's error is its cause
        with pytest.raises(ProgrammingError, match=r"manage\.py migrate"):
            await sync_to_async(_enqueue_in_atomic)()
    finally:
        await conn.execute(undo)


def _enqueue_in_atomic() -> None:
    with transaction.atomic():
        tasks.add.enqueue(1, 2)
