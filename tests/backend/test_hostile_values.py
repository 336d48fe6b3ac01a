"""Values and exceptions that spite a queue (docs/faults.md, 40, 41): kept exactly, or refused by name."""

import asyncio
import json
import math
from collections import OrderedDict, UserDict, UserList, deque
from datetime import datetime
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from django.tasks import TaskResultStatus

from aiotasks.codec import dump_error
from tests import tasks
from tests.site import default_task_backend
from tests.worker.harness import Configure

from .support import Api, run_all, worker

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the values don't know the loop


class Colour(IntEnum):
    RED = 1


class Shape(StrEnum):
    ROUND = "round"


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "another text"


class Number(int):
    def __int__(self) -> int:
        return 99

    def __repr__(self) -> str:
        return "not a number"


def deep(levels: int, leaf: Any = None) -> Any:
    value = leaf
    for n in range(levels):
        value = {"k": value} if n % 2 else [value]
    return value


# What goes through unchanged, as `json.loads(json.dumps(value))` has it.
KEPT: dict[str, Any] = {
    "NUL": "a\x00b",
    "all controls": "".join(map(chr, range(32))),
    "lone surrogates": "\ud800 \udfff \ud83d",
    "a surrogate pair as two": "\ud83d\ude00",
    "astral": "😀𝔘",
    "line separators": "\u2028\u2029\u0085\ufeff",
    "escapes": "\\u0000 \\\" ' {} %s %(p1)s $1 \\",
    "SQL": "'; DROP TABLE aiotasks_task; --",
    "array": '{"a",NULL,\\}',
    "HTML": "<script>alert(1)</script>",
    "empty": ["", {}, [], {"": ""}],
    "keys": {"\x00": 1, "\ud800": 2, "a.b": 3, "$1": 4, "%": 5, "__proto__": 6},
    "zeros": [0, 0.0, -0.0],
    "integers": [2**63, -(2**63) - 1, 2**64, 10**300, -(10**4000)],
    "the longest integer": 10**4299,
    "floats": [5e-324, 1.7976931348623157e308, 0.1, 1e22, 1e-7, 1 / 3, 1e308],
    "booleans": [True, False, None, {"true": False}],
    "order of keys": {"b": 1, "a": 2, "c": {"z": 1, "y": 2}},
    "deep": deep(190),
    "wide": list(range(20_000)),
    "long": "ä" * 50_000,
    "many keys": {str(n): n for n in range(5_000)},
}

# What is normalised on the way, to what.
NORMALISED: dict[str, tuple[Any, Any]] = {
    "tuples": ((1, (2,)), [1, [2]]),
    "bytes": (b"\xc3\xa4\x00", "ä\x00"),
    "int keys": ({1: "a", 2: "b"}, {"1": "a", "2": "b"}),
    "other keys": ({None: 1, True: 2, 1.5: 3}, {"null": 1, "true": 2, "1.5": 3}),
    "enums": ([Colour.RED, Shape.ROUND], [1, "round"]),
    "subclasses": ([Text("text"), Number(5)], ["text", 5]),
    "mappings": ([OrderedDict(a=1), UserDict({"b": 2})], [{"a": 1}, {"b": 2}]),
    "sequences": ([UserList([1]), deque([2]), range(2)], [[1], [2], [0, 1]]),
}

# What is refused, and the place that the error names.
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "object": (object(), TypeError, "args[1]['a'][2]"),
    "set": ({1}, TypeError, "args[1]['a'][2]"),
    "bytes": (b"\xff", TypeError, "args[1]['a'][2]"),
    "bytearray": (bytearray(b"x"), TypeError, "args[1]['a'][2]"),
    "memoryview": (memoryview(b"x"), TypeError, "args[1]['a'][2]"),
    "datetime": (datetime(2030, 1, 1), TypeError, "args[1]['a'][2]"),
    "Decimal": (Decimal("1.5"), TypeError, "args[1]['a'][2]"),
    "UUID": (uuid4(), TypeError, "args[1]['a'][2]"),
    "complex": (1j, TypeError, "args[1]['a'][2]"),
    "function": (len, TypeError, "args[1]['a'][2]"),
    "class": (int, TypeError, "args[1]['a'][2]"),
    "exception": (ValueError("x"), TypeError, "args[1]['a'][2]"),
    "generator": ((n for n in range(0)), TypeError, "args[1]['a'][2]"),
    "NaN": (math.nan, ValueError, "args[1]['a'][2]"),
    "infinity": (math.inf, ValueError, "args[1]['a'][2]"),
    "-infinity": (-math.inf, ValueError, "args[1]['a'][2]"),
    "5,000 digits": (10**5000, ValueError, "args[1]['a'][2]"),
    "-5,000 digits": (-(10**5000), ValueError, "args[1]['a'][2]"),
    "colliding keys": ({1: 1, "1": 2}, ValueError, "args[1]['a'][2]"),
    "colliding bytes": ({b"k": 1, "k": 2}, ValueError, "args[1]['a'][2]"),
    "colliding null": ({None: 1, "null": 2}, ValueError, "args[1]['a'][2]"),
    "colliding floats": ({1.0: 1, "1.0": 2}, ValueError, "args[1]['a'][2]"),
    "tuple key": ({(1,): 1}, TypeError, "a key of args[1]['a'][2]"),
    "NaN key": ({math.nan: 1}, ValueError, "a key of args[1]['a'][2]"),
    "huge key": ({10**5000: 1}, ValueError, "a key of args[1]['a'][2]"),
    "bytes key": ({b"\xff": 1}, TypeError, "a key of args[1]['a'][2]"),
    "too deep": (deep(250), ValueError, "args[1]['a'][2]"),
    "beyond the recursion limit": (deep(100_000), ValueError, "args[1]['a'][2]"),
    "a cycle": (tasks._cycle(), ValueError, "args[1]['a'][2]"),
}


def exactly(value: Any) -> str:
    """Equal only for values that are the same, types, order of keys and signs of zeros included."""
    return json.dumps(value, sort_keys=False)


@pytest.mark.parametrize("echo", [tasks.echo, tasks.aecho], ids=["sync task", "coroutine task"])
async def test_what_json_keeps_comes_back_exactly(database: str, either: Api, echo: Any) -> None:
    results = {}
    for name, value in KEPT.items():
        results[name] = await either.enqueue(echo, value, key=value)
    await run_all()
    for name, result in results.items():
        value = KEPT[name]
        await either.call(result, "refresh")
        assert result.status is TaskResultStatus.SUCCESSFUL, (name, result.errors)
        found = await either.call(default_task_backend, "get_result", result.id)
        expected = [[value], {"key": value}]
        assert exactly([found.args, found.kwargs]) == exactly(expected), name
        assert exactly(found.return_value) == exactly(expected), name
        assert exactly(result.return_value) == exactly(expected), name


@pytest.mark.parametrize("echo", [tasks.echo, tasks.aecho], ids=["sync task", "coroutine task"])
async def test_what_is_normalised_is_so_everywhere(database: str, either: Api, echo: Any) -> None:
    results = {}
    for name, (value, _) in NORMALISED.items():
        results[name] = await either.enqueue(echo, value)
    await run_all()
    for name, result in results.items():
        expected = NORMALISED[name][1]
        assert exactly(result.args) == exactly([expected]), name  # before any look-up
        await either.call(result, "refresh")
        assert exactly(result.return_value) == exactly([[expected], {}]), name


@pytest.mark.parametrize("name", REFUSED)
async def test_what_json_cannot_keep_is_refused_with_its_place(
    database: str, api: Api, conn: asyncpg.Connection, name: str
) -> None:
    value, kind, place = REFUSED[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        await api.enqueue(tasks.echo, 0, {"a": [0, 1, value]})
    assert type(caught.value) is kind
    assert str(caught.value).startswith(place)
    assert len(str(caught.value)) < 500
    with pytest.raises(kind) as caught:
        await api.enqueue(tasks.echo, key=value)
    assert place.partition("args")[0] + "kwargs['key']" in str(caught.value)
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task") == 0


async def test_what_is_too_big_is_refused_with_its_size(
    database: str, api: Api, configure: Configure
) -> None:
    configure(MAX_ARGUMENT_SIZE=100)
    await api.enqueue(tasks.echo, "x" * 96)
    with pytest.raises(ValueError, match=r"^args takes 101 bytes as JSON; the limit is 100\.$"):
        await api.enqueue(tasks.echo, "x" * 97)
    with pytest.raises(ValueError, match=r"^kwargs takes"):
        await api.enqueue(tasks.echo, key="ä" * 97)


@pytest.mark.parametrize("bad", [tasks.return_bad, tasks.areturn_bad], ids=["sync task", "coroutine task"])
async def test_a_bad_return_value_fails_its_own_task_alone(database: str, bad: Any) -> None:
    results = {name: await bad.aenqueue(name) for name in tasks.BAD_VALUES}
    neighbours = [await tasks.aadd.aenqueue(n, 1) for n in range(20)]
    await run_all()
    for name, result in results.items():
        await result.arefresh()
        assert result.status is TaskResultStatus.FAILED, name
        (error,) = result.errors
        assert error.exception_class is tasks.BAD_VALUES[name][1], name
        assert "the return value" in error.traceback, name
    for n, neighbour in enumerate(neighbours):
        await neighbour.arefresh()
        assert neighbour.return_value == n + 1


@pytest.mark.parametrize("raising", [tasks.raise_bad, tasks.araise_bad], ids=["sync task", "coroutine task"])
async def test_a_bad_exception_fails_its_own_task_alone(database: str, raising: Any, heard: Any) -> None:
    results = {name: await raising.aenqueue(name) for name in tasks.BAD_EXCEPTIONS}
    neighbours = [await tasks.aadd.aenqueue(n, 1) for n in range(20)]
    async with worker() as running:
        await running.wait_until_empty()
        after = await tasks.aadd.aenqueue(1, 1)
        await running.wait_until_empty()
    for name, result in results.items():
        await result.arefresh()
        assert result.status is TaskResultStatus.FAILED, name
        (error,) = result.errors
        kind = type(tasks.BAD_EXCEPTIONS[name]())
        assert error.exception_class_path == f"{kind.__module__}.{kind.__qualname__}", name
        assert 0 < len(json.dumps(error.traceback)) <= 64 * 1024, name
    for n, neighbour in enumerate(neighbours):
        await neighbour.arefresh()
        assert neighbour.return_value == n + 1
    await after.arefresh()
    assert after.return_value == 2
    told = {one.fields["id"]: one for one in heard if one.signal == "task_finished"}
    assert set(told) >= {result.id for result in results.values()}
    for name, result in results.items():
        assert type(told[result.id].error).__qualname__ == type(tasks.BAD_EXCEPTIONS[name]()).__qualname__


async def test_what_is_shown_of_exceptions(database: str) -> None:
    names = ["10 MB", "NUL and surrogate", "broken str", "group", "notes"]
    results = {name: await tasks.raise_bad.aenqueue(name) for name in names}
    await run_all()
    text = {}
    for name, result in results.items():
        await result.arefresh()
        text[name] = result.errors[0].traceback
    assert "tests/tasks.py" in text["10 MB"]  # the beginning is kept,
    assert text["10 MB"].endswith("ä\n")  # and the end
    assert "characters left out" in text["10 MB"]
    assert "\x00 \ud800 \udfff" in text["NUL and surrogate"]
    assert "BrokenStr" in text["broken str"]
    assert all(part in text["group"] for part in ("several", "ValueError: one", "TypeError: two"))
    assert "a note with \x00 and \ud800" in text["notes"]


async def test_names_that_spite_sql_are_only_names(database: str, api: Api) -> None:
    name = "x'; DROP TABLE aiotasks_task; -- %s $1 {} \\ \" 😀"
    result = await api.enqueue(tasks.echo.using(queue_name=name), 1)
    await run_all(queues=[name])
    await api.call(result, "refresh")
    assert result.status is TaskResultStatus.SUCCESSFUL
    assert (await api.call(tasks.echo, "get_result", result.id)).task.queue_name == name


async def test_a_call_that_does_not_fit_the_function_fails_as_it_would_here(
    database: str, conn: asyncpg.Connection
) -> None:
    """The signature may have changed since the enqueue."""
    results = []
    for task, args, kwargs in (
        (tasks.add, "[1]", "{}"),
        (tasks.aadd, "[1, 2, 3]", "{}"),
        (tasks.add, "[]", '{"c": 1}'),
    ):
        results.append(result := await task.aenqueue(1, 2))
        await conn.execute(
            "UPDATE aiotasks_task SET args = $2::json, kwargs = $3::json WHERE id = $1::uuid",
            result.id,
            args,
            kwargs,
        )
    await run_all()
    await asyncio.gather(*(result.arefresh() for result in results))
    assert {result.errors[0].exception_class for result in results} == {TypeError}


async def test_stop_iteration_is_an_exception_like_any_other(database: str, heard: Any) -> None:
    """Futures and generators treat it in a way of their own. (Coroutines turn it into RuntimeError.)"""
    result = await tasks.raise_stop_iteration.aenqueue()
    after = await tasks.add.aenqueue(1, 2)
    await run_all()
    await result.arefresh()
    await after.arefresh()
    assert result.errors[0].exception_class is StopIteration
    assert after.return_value == 3
    assert [type(one.error) for one in heard if one.fields["status"] is TaskResultStatus.FAILED] == [
        StopIteration
    ]


class BrokenGroup(ExceptionGroup[Exception]):
    """Python can't format it; nor can logging, so it is written here without a worker."""

    @property
    def exceptions(self) -> Any:
        raise KeyboardInterrupt("from user code")


async def test_an_exception_that_cannot_be_formatted_is_stored_by_its_name() -> None:
    stored = json.loads(dump_error(BrokenGroup("x", [ValueError()]), limit=1024, redact=None))
    assert stored["class"] == "tests.backend.test_hostile_values.BrokenGroup"
    assert "couldn't be formatted" in stored["traceback"]
