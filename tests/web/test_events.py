"""The view ``events`` in the test's own process: who may see what, snapshots, and streams."""

import asyncio
import gc
import logging
import uuid
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core import signing
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, utils
from django.test import Client
from django.test.client import AsyncClient

from aiotasks.codec import dump_error
from aiotasks.exceptions import TaskCancelled
from aiotasks.store import joins
from aiotasks.store.loop import resources
from aiotasks.views import sign
from aiotasks.web import closing, states, stream, tokens
from tests.site import default_task_backend
from tests.worker.harness import until

from . import tasks
from .sse import Event, aread

STREAM = {"Accept": "text/event-stream"}


async def get(url: str, tokens: list[str] | str = (), **headers: str) -> Any:  # type: ignore[assignment]
    named = {"token": tokens} if tokens else {}
    return await AsyncClient().get(
        url, named, headers={**STREAM, **{key.replace("_", "-"): value for key, value in headers.items()}}
    )


def events_of(response: Any) -> AsyncGenerator[Event]:
    assert response["Content-Type"] == "text/event-stream", response.content
    return aread(response.streaming_content)


async def following(events: AsyncIterator[Event], number: int = 1) -> list[dict[str, Any]]:
    """The states of the next events."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(30):
        async for event in events:
            if event.data and event.kind == "message":
                found += event.tasks
                number -= 1
                if number == 0:
                    break
    return found


async def rest(events: AsyncIterator[Event]) -> list[Event]:
    async with asyncio.timeout(30):
        return [event async for event in events]


# --- Snapshots


async def test_under_wsgi_a_snapshot_answers(site: str) -> None:
    result = await tasks.climb.aenqueue(3)
    await default_task_backend.asave_metadata(
        result, {"progress": {"done": 1, "total": 3}, "colour": "<red>"}
    )

    def ask() -> Any:
        return Client().get(site, {"token": sign(result)}, headers=STREAM)

    response = await sync_to_async(ask)()
    assert response.status_code == 200
    assert response["Content-Type"] == "application/json"
    assert response["Cache-Control"] == "no-store, no-transform"
    assert response["Retry-After"] == "2"
    assert b"<" not in response.content
    (state,) = response.json()["tasks"]
    assert state.pop("enqueued_at").startswith("20")
    assert state == {
        "id": result.id,
        "status": "READY",
        "is_finished": False,
        "is_cancelled": False,
        "progress": {"done": 1, "total": 3},
        "metadata": {"colour": "<red>"},
        "attempts": 0,
        "started_at": None,
        "finished_at": None,
    }
    await default_task_backend.acancel(result)
    response = await sync_to_async(ask)()
    assert "Retry-After" not in response
    (state,) = response.json()["tasks"]
    assert (state["status"], state["is_finished"], state["is_cancelled"]) == ("FAILED", True, True)
    assert "Traceback" not in response.text


@pytest.mark.parametrize(
    ("status", "errors", "is_cancelled"),
    [
        ("FAILED", [ValueError("\0"), TaskCancelled("\0")], True),
        ("FAILED", [TaskCancelled("once"), ValueError("after a retry")], False),
        ("FAILED", [], False),
        ("READY", [TaskCancelled("before a retry")], False),
        ("SUCCESSFUL", [TaskCancelled("before a retry")], False),
    ],
)
async def test_who_was_cancelled(
    site: str, conn: asyncpg.Connection, status: str, errors: list[Exception], is_cancelled: bool
) -> None:
    """By the last error of a task that has failed, for the stream and for its result."""
    result = await tasks.climb.aenqueue(3)
    texts = [dump_error(error, limit=4096, redact=None) for error in errors]
    await conn.execute(
        "UPDATE aiotasks_task SET status = $1, errors = $2::json[], finished_at = now()", status, texts
    )
    response = await get(site, sign(result), Accept="application/json")
    assert response.json()["tasks"][0]["is_cancelled"] is is_cancelled
    await result.arefresh()
    assert result.is_cancelled is is_cancelled
    if errors:  # as only other code writes them
        await conn.execute("UPDATE aiotasks_task SET errors = ARRAY[errors, errors]")
        response = await get(site, sign(result), Accept="application/json")
        assert response.json()["tasks"][0]["is_cancelled"] is False


async def test_a_client_may_ask_for_json(site: str) -> None:
    result = await tasks.climb.aenqueue(3)
    response = await get(site, sign(result), Accept="application/json")
    assert response.json()["tasks"][0]["status"] == "READY"
    response = await AsyncClient().head(site, {"token": sign(result)})
    assert (response.status_code, response["Content-Type"]) == (200, "application/json")
    response = await AsyncClient().post(site, {"token": sign(result)})
    assert (response.status_code, response["Allow"]) == (405, "GET, HEAD")


async def test_keys_that_are_aiotasks_own_are_not_shown(site: str, conn: asyncpg.Connection) -> None:
    result, other = await tasks.climb.aenqueue(3), await tasks.climb.aenqueue(3)
    await conn.execute(
        """UPDATE aiotasks_task SET metadata = '{"_trace": "secret", "shown": 1}' WHERE id = $1""", result.id
    )
    await conn.execute("UPDATE aiotasks_task SET metadata = '[1]' WHERE id = $1", other.id)
    response = await get(site, sign([result, other]), Accept="application/json")
    assert [state["metadata"] for state in response.json()["tasks"]] == [{"shown": 1}, {}]
    assert "secret" not in response.text


async def test_infinite_numbers_of_other_code_are_not_shown(site: str, conn: asyncpg.Connection) -> None:
    result = await tasks.climb.aenqueue(3)
    for metadata in ('{"x": 1e400}', '{"progress": {"done": -1e400}}'):
        await conn.execute("UPDATE aiotasks_task SET metadata = $2 WHERE id = $1", result.id, metadata)
        response = await get(site, sign(result), Accept="application/json")
        assert "Infinity" not in response.text
        (state,) = response.json()["tasks"]
        assert (state["status"], state["metadata"], state["progress"]) == ("READY", {}, None)


# --- Access


async def test_tokens(site: str, settings: Any) -> None:
    result = await tasks.climb.aenqueue(3)
    for refused in (
        "nonsense",
        sign(result)[:-1] + "?",
        sign(result, max_age=-1),
        sign(result, max_age=timedelta(seconds=-1)),
        signing.dumps(["default", [result.id], None, 9e12]),  # with another salt
        signing.dumps("shorter", salt=tokens.SALT),
        sign(result, user=SimpleNamespace(pk=7)),
    ):
        assert (await get(site, refused)).status_code == 403, refused
    assert (await get(site)).status_code == 400
    mine = sign(result, user=SimpleNamespace(pk=7))
    assert (await get(site, mine, X_User="7", Accept="application/json")).status_code == 200
    assert (await get(site, mine, X_User="8")).status_code == 403
    anonymous = sign(result, user=SimpleNamespace(pk=None, is_anonymous=True))
    assert (await get(site, anonymous, Accept="application/json")).status_code == 200
    settings.MIDDLEWARE = []
    with pytest.raises(ImproperlyConfigured, match="AuthenticationMiddleware"):
        await get(site, mine)


@pytest.mark.parametrize(
    "user", [7, "7", "", uuid.uuid4(), SimpleNamespace(pk=None), SimpleNamespace(pk=""), False]
)
async def test_what_is_no_user_opens_a_task_to_nobody(site: str, user: Any) -> None:
    result = await tasks.climb.aenqueue(3)
    with pytest.raises(TypeError, match="needs a saved user, an anonymous one or None"):
        sign(result, user=user)


async def test_a_token_outlives_a_change_of_the_key(site: str, settings: Any) -> None:
    result = await tasks.climb.aenqueue(3)
    token = sign(result)
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another", [settings.SECRET_KEY]
    assert (await get(site, token, Accept="application/json")).status_code == 200
    settings.SECRET_KEY_FALLBACKS = []
    assert (await get(site, token)).status_code == 403


def test_results_of_one_token_are_of_one_backend() -> None:
    with pytest.raises(ValueError, match="results of one backend, not of none"):
        sign([])


async def test_what_is_not_there(site: str, settings: Any) -> None:
    result, other = await tasks.climb.aenqueue(3), await tasks.climb.aenqueue(3)
    await default_task_backend.adelete_many([result])
    assert (await get(site, sign(result))).status_code == 404
    response = await get(site, sign([other, result]), Accept="application/json")
    assert [state["status"] for state in response.json()["tasks"]] == ["READY", None]
    settings.TASKS = {"other": settings.TASKS["default"]}
    assert (await get(site, sign(other))).status_code == 404


async def test_a_request_names_so_many_tasks(site: str) -> None:
    results = await default_task_backend.aenqueue_many(tasks.climb, [((3,), {})] * 201)
    assert (await get(site, sign(results))).status_code == 400
    assert (await get(site, [sign(result) for result in results])).status_code == 400
    response = await get(site, sign(results[:200]), Accept="application/json")
    assert [state["id"] for state in response.json()["tasks"]] == [result.id for result in results[:200]]


@pytest.mark.parametrize("path", ["/asked/", "/aasked/"])
async def test_a_permission_function(site: str, path: str, conn: asyncpg.Connection) -> None:
    result, unreadable = await tasks.climb.aenqueue(3), await tasks.climb.aenqueue(3)

    async def status(id: str, **more: str) -> int:
        url = f"{path}?id={id}&backend={more.pop('backend', 'default')}"
        code: int = (await get(url, Accept="application/json", **more)).status_code
        return code

    assert await status(result.id, X_User="climb") == 200
    assert await status(result.id) == 403
    assert await status(result.id, X_User="climber") == 403
    assert await status(str(uuid.uuid4()), X_User="climb") == 404
    assert await status("malformed", X_User="climb") == 404
    await conn.execute("UPDATE aiotasks_task SET args = '{}' WHERE id = $1", unreadable.id)
    assert await status(unreadable.id, X_User="climb") == 404
    assert await status(result.id, X_User="climb", backend="nowhere") == 404
    assert (await get(path)).status_code == 400
    assert (await get(path, sign(result), Accept="application/json")).status_code == 200
    assert (await get(f"{site}?id={result.id}")).status_code == 403


# --- Streams


async def test_a_stream_begins_with_the_state_and_tells_each_change(site: str) -> None:
    result = await tasks.climb.aenqueue(3)
    response = await get(site, sign(result))
    assert response["Cache-Control"] == "no-store, no-transform"
    assert response["X-Accel-Buffering"] == "no"
    async with aclosing(events_of(response)) as events:
        first = await anext(events)
        assert first.retry is not None
        (state,) = await following(events)
        assert (state["id"], state["status"], state["progress"]) == (result.id, "READY", None)
        for done in (1, 2):
            await default_task_backend.asave_metadata(result, {"progress": {"done": done}})
            (state,) = await following(events)
            assert state["progress"] == {"done": done}
        await default_task_backend.acancel(result)
        (state,) = await following(events)
        assert (state["status"], state["is_finished"]) == ("FAILED", True)
        (end,) = await rest(events)
        assert end.kind == "end"
    assert resources(default_task_backend.config).changes.number == 0


async def test_a_client_that_comes_back_gets_what_it_has_not(site: str) -> None:
    one, other = await tasks.climb.aenqueue(3), await tasks.climb.aenqueue(3)
    both = [sign(one), sign(other)]
    async with aclosing(events_of(await get(site, both))) as events:
        await anext(events)
        event = await anext(events)
        assert [state["id"] for state in event.tasks] == [one.id, other.id]
    await default_task_backend.asave_metadata(other, {"n": 1})
    async with aclosing(events_of(await get(site, both, Last_Event_ID=str(event.id)))) as events:
        (state,) = await following(events)
        assert (state["id"], state["metadata"]) == (other.id, {"n": 1})
        await default_task_backend.acancel(one)
        await default_task_backend.acancel(other)
        last = await rest(events)
    assert last[-1].kind == "end"
    # It has all, and needn't come again.
    assert (await get(site, both, Last_Event_ID=str(last[-1].id))).status_code == 204
    assert (await get(site, both[:1], Last_Event_ID=str(last[-1].id)[:8])).status_code == 204
    for made_up in ("", "x", str(event.id), str(last[-1].id) + "x"):
        response = await get(site, both, Last_Event_ID=made_up)
        assert sorted(state["id"] for state in await following(events_of(response))) == sorted(
            [one.id, other.id]
        )


async def test_a_task_that_is_deleted_ends_the_stream(site: str, conn: asyncpg.Connection) -> None:
    result = await tasks.climb.aenqueue(3)
    async with aclosing(events_of(await get(site, sign(result)))) as events:
        await following(events)
        await default_task_backend.adelete_many([result])
        assert await following(events) == [{"id": result.id, "status": None, "is_finished": True}]
        assert [event.kind for event in await rest(events)] == ["end"]


async def test_a_slow_client_gets_the_newest_state_only(site: str) -> None:
    result = await tasks.climb.aenqueue(3)
    async with aclosing(events_of(await get(site, sign(result)))) as events:
        await following(events)
        for n in range(20):
            await default_task_backend.asave_metadata(result, {"n": n})
        changes = resources(default_task_backend.config).changes
        await until(lambda: changes.number == 1)
        (state,) = await following(events)
        (later,) = [state] if state["metadata"] == {"n": 19} else await following(events)
        assert later["metadata"] == {"n": 19}


async def test_a_stream_ends_after_its_time_and_says_when_to_come_back(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SHORTEST", 0.5)
    monkeypatch.setattr(stream, "LONGEST", 0.6)
    monkeypatch.setattr(stream, "KEEP_ALIVE", 0.1)
    result = await tasks.climb.aenqueue(3)
    first, state, *between, last = await rest(events_of(await get(site, sign(result))))
    assert (first.retry or 0) >= 2000
    assert state.tasks[0]["id"] == result.id
    assert between
    assert {event.data for event in between} == {""}
    assert {tuple(event.comments) for event in between} == {("keep-alive",)}
    assert last.retry == 250
    assert resources(default_task_backend.config).changes.number == 0


async def test_streams_end_when_the_server_stops(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = False
    monkeypatch.setattr(closing, "server_is_stopping", lambda: stopping)
    # Nothing else wakes the streams.
    monkeypatch.setattr(joins.Watch, "changed", lambda self, timeout: asyncio.Event().wait())
    results = [await tasks.climb.aenqueue(3) for _ in range(5)]
    open_streams = [events_of(await get(site, sign(result))) for result in results]
    for events in open_streams:
        await following(events)
    waiting = [asyncio.create_task(rest(events)) for events in open_streams]
    await until(lambda: len(closing.closing_of_loop()._waits) == 5)
    stopping = True
    async with asyncio.timeout(10):
        for ended in await asyncio.gather(*waiting):
            assert ended == []
    # Nor does another begin to wait.
    ended = await rest(events_of(await get(site, sign(results[0]))))
    assert [event.retry for event in ended if event.retry] == [ended[0].retry]
    assert (ended[0].retry or 0) >= 2000  # not at once: the server is gone then


async def test_a_stream_holds_no_connection_of_django(site: str, conn: asyncpg.Connection) -> None:
    """The site's middleware has opened one in the request's thread."""
    result = await tasks.climb.aenqueue(3)
    async with aclosing(events_of(await get(site, sign(result)))) as events:
        await following(events)
        assert await sync_to_async(lambda: connection.connection is None)()


async def test_many_streams_share_look_ups(site: str, statements: list[str]) -> None:
    results = await default_task_backend.aenqueue_many(tasks.climb, [((3,), {})] * 100)
    open_streams = [events_of(await get(site, sign(result))) for result in results]
    for events in open_streams:
        await following(events)
    statements.clear()
    reading = asyncio.gather(*map(rest, open_streams))
    await asyncio.sleep(0)
    await default_task_backend.acancel_many(results)
    for *_, state, end in await reading:
        assert (state.tasks[0]["status"], end.kind) == ("FAILED", "end")
    assert statements.count("select_states") <= 20


async def test_many_streams_share_what_is_shown_and_keep_none_of_it(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    make = states._shown_of_ours

    def counted(state: Any) -> states.Shown:
        made.append(state.status)
        return make(state)

    monkeypatch.setattr(states, "_shown_of_ours", counted)
    result = await tasks.climb.aenqueue(3)
    open_streams = [events_of(await get(site, sign(result))) for _ in range(20)]
    for events in open_streams:
        await following(events)
    asleep: set[joins.Watch] = set()
    woken: set[joins.Watch] = set()
    wait = joins.Watch.changed

    async def observed(watch: joins.Watch, timeout: float | None = None) -> set[uuid.UUID]:
        asleep.add(watch)
        try:
            return await wait(watch, timeout)
        finally:
            asleep.remove(watch)
            woken.add(watch)

    monkeypatch.setattr(joins.Watch, "changed", observed)
    waiting = [asyncio.create_task(following(events)) for events in open_streams]
    await until(lambda: len(asleep & woken) == len(waiting))  # each looks once when it begins to watch
    made.clear()
    await default_task_backend.asave_metadata(result, {"note": "a note"})
    assert [state["metadata"] for (state,) in await asyncio.gather(*waiting)] == [{"note": "a note"}] * 20
    assert 1 <= len(made) < 10
    shown = [one for one in gc.get_objects() if type(one) is states.Shown]  # isinstance() asks lazy objects
    texts = [one.text for one in shown if result.id in one.text]
    assert texts == []
    for events in open_streams:
        await events.aclose()


def test_a_loop_that_is_gone_is_freed() -> None:
    async def wait() -> weakref.ref[asyncio.AbstractEventLoop]:
        with suppress(TimeoutError):
            async with closing.closing_of_loop().until(0):
                await asyncio.Event().wait()
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(wait())
    gc.collect()
    assert loop() is None


async def test_a_wait_that_expires_as_the_server_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, loop = closing.closing_of_loop(), asyncio.get_running_loop()

    async def wait() -> None:
        async with mine.until(loop.time() + 60):
            await asyncio.Event().wait()

    waits = [asyncio.create_task(wait()) for _ in range(5)]
    await until(lambda: len(mine._waits) == 5)
    timeouts: list[Any] = list(mine._waits)
    for timeout in timeouts[:3]:
        timeout._on_timeout()  # its task has not run yet
    monkeypatch.setattr(closing, "server_is_stopping", lambda: True)
    mine._look()
    async with asyncio.timeout(10):
        ended = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(one) for one in ended] == [TimeoutError] * 5


async def test_a_database_that_is_away(
    site: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    result = await tasks.climb.aenqueue(3)
    token = sign(result)
    events = events_of(await get(site, token))
    await following(events)

    async def fail(*args: Any) -> Any:
        raise utils.OperationalError("connection refused")

    monkeypatch.setattr("aiotasks.web.states._select", fail)
    await default_task_backend.acancel(result)
    assert await rest(events) == []
    assert "A stream of events has ended, because the database failed" in caplog.text
    response = await get(site, token)
    assert (response.status_code, response["Retry-After"]) == (503, "2")


def test_in_sync_code_a_stream_has_the_state_alone(site: str) -> None:
    """In a TestCase, where the row isn't committed, nothing can change while the stream is read."""
    result = tasks.climb.enqueue(3)

    async def ask() -> list[Event]:
        return await rest(events_of(await get(site, sign(result))))

    _, state = async_to_sync(ask)()
    assert state.tasks[0]["status"] == "READY"


async def test_backends_of_others(site: str, settings: Any) -> None:
    """As in a site's tests."""
    settings.TASKS = {"default": {"BACKEND": "aiotasks.testing.DummyBackend"}}
    result = await tasks.climb.aenqueue(3)
    _, state = await rest(events_of(await get(site, sign(result))))
    assert state.tasks[0].pop("enqueued_at").endswith("Z")
    assert (state.tasks[0]["status"], state.tasks[0]["is_finished"]) == ("READY", False)
    settings.TASKS = {"default": {"BACKEND": "aiotasks.testing.ImmediateBackend"}}
    result = await tasks.climb.aenqueue(3)
    assert (await get(site, sign(result))).status_code == 404  # it keeps no results
