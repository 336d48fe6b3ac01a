"""Enqueueing from views: sync and async ones, under WSGI and ASGI, behind middleware."""

import asyncio
import io
from typing import Any

import asyncpg
import psycopg
import pytest
from asgiref.testing import ApplicationCommunicator
from django.core.asgi import get_asgi_application
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, connections
from django.test import Client
from django.test.client import AsyncClient

from tests.worker.harness import until

from .support import connections_left, value_of

COUNT = "SELECT count(*) FROM aiotasks_task"
MIDDLEWARE = pytest.mark.parametrize(
    "middleware", [[], ["tests.backend.urls.sync_middleware"]], ids=["no middleware", "sync-only middleware"]
)
VIEWS = ["async", "sync", "bridged", "atomic"]


@pytest.fixture(autouse=True)
def _site(settings: Any) -> None:
    settings.ROOT_URLCONF = "tests.backend.urls"
    settings.ALLOWED_HOSTS = ["*"]


def count(observer: psycopg.Connection) -> int:
    return int(value_of(observer, COUNT))


async def get(path: str, query: str = "") -> bytes:
    """A request to a real ASGI handler: each in a ThreadSensitiveContext of its own."""
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [(b"host", b"test")],
    }
    communicator: Any = ApplicationCommunicator(  # type: ignore[no-untyped-call]  # asgiref's
        get_asgi_application(), scope
    )
    await communicator.send_input({"type": "http.request", "body": b"", "more_body": False})
    start = await communicator.receive_output(timeout=30)
    assert start["status"] == 200, start
    body = await communicator.receive_output(timeout=30)
    await communicator.wait(timeout=30)
    return bytes(body["body"])


# --- WSGI ----------------------------------------------------------------------------------------


@MIDDLEWARE
@pytest.mark.parametrize("view", VIEWS)
def test_under_wsgi_all_goes_over_djangos_connection(
    database: str,
    observer: psycopg.Connection,
    opened: list[str],
    settings: Any,
    view: str,
    middleware: list[str],
) -> None:
    """An async view there runs on a loop of its own for each request: a pool would die with it."""
    settings.MIDDLEWARE = middleware
    client = Client()
    connection.ensure_connection()
    opened.clear()
    for _ in range(10):
        assert client.get(f"/{view}").status_code == 200
    assert count(observer) == (20 if view == "atomic" else 10)
    assert opened == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_real_wsgi_handler_opens_djangos_one_connection_a_request(
    database: str, observer: psycopg.Connection, opened: list[str], view: str
) -> None:
    connections.close_all()
    opened.clear()
    handler = WSGIHandler()
    for _ in range(5):
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": f"/{view}",
            "SERVER_NAME": "test",
            "SERVER_PORT": "80",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
            "wsgi.url_scheme": "http",
        }
        statuses: list[str] = []
        response = handler(environ, lambda status, headers, out=statuses: out.append(status))
        assert b"id" in b"".join(response)
        response.close()
        assert statuses == ["200 OK"]
    assert opened == ["django"] * 5  # CONN_MAX_AGE = 0
    assert connections_left(observer) == []


@pytest.mark.parametrize("view", ["atomic"])
def test_a_view_that_rolls_back_enqueues_nothing(
    database: str, observer: psycopg.Connection, view: str
) -> None:
    assert Client().get(f"/{view}?abandon").status_code == 200
    assert count(observer) == 0


@MIDDLEWARE
def test_atomic_requests(
    database: str, observer: psycopg.Connection, settings: Any, middleware: list[str]
) -> None:
    settings.MIDDLEWARE = middleware
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        client = Client(raise_request_exception=False)
        assert client.get("/failing").status_code == 500
        assert count(observer) == 0
        assert client.get("/bridged").status_code == 200
        assert count(observer) == 1
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False


@MIDDLEWARE
def test_an_async_atomic_block_under_wsgi_is_on_the_views_connection(
    database: str, observer: psycopg.Connection, opened: list[str], settings: Any, middleware: list[str]
) -> None:
    settings.MIDDLEWARE = middleware
    connection.ensure_connection()
    opened.clear()
    client = Client()
    assert client.get("/sign_up?abandon").json()["hosts"] == 0
    assert client.get("/sign_up").json()["hosts"] == 1
    assert count(observer) == 1
    assert opened == []


# --- ASGI ----------------------------------------------------------------------------------------


@MIDDLEWARE
@pytest.mark.parametrize("view", VIEWS)
async def test_under_asgi_every_view_enqueues(
    database: str, conn: asyncpg.Connection, settings: Any, view: str, middleware: list[str]
) -> None:
    settings.MIDDLEWARE = middleware
    client = AsyncClient()
    responses = await asyncio.gather(*(client.get(f"/{view}") for _ in range(10)))
    assert [response.status_code for response in responses] == [200] * 10
    assert await conn.fetchval(COUNT) == (20 if view == "atomic" else 10)


@pytest.mark.parametrize("view", VIEWS)
async def test_a_real_asgi_handler(
    database: str, conn: asyncpg.Connection, opened: list[str], view: str
) -> None:
    """Async views go over the loop's pool, which they share; sync ones over Django's connections."""
    opened.clear()
    for _ in range(5):
        assert b"id" in await get(f"/{view}")
    assert await conn.fetchval(COUNT) == (10 if view == "atomic" else 5)
    if view == "async":
        assert set(opened) == {"asyncpg"}
        assert len(opened) <= 2  # one for the statements, one for a NOTIFY at the same time
    else:
        assert opened == ["django"] * 5


async def test_behind_sync_only_middleware_it_goes_over_djangos_connection(
    database: str, conn: asyncpg.Connection, opened: list[str], settings: Any
) -> None:
    settings.MIDDLEWARE = ["tests.backend.urls.sync_middleware"]
    opened.clear()
    for _ in range(3):
        assert b"id" in await get("/async")
    assert opened == ["django"] * 3
    assert await conn.fetchval(COUNT) == 3


async def test_under_asgi_a_view_that_rolls_back_enqueues_nothing(
    database: str, conn: asyncpg.Connection
) -> None:
    assert b"id" in await get("/atomic", "abandon")
    assert await conn.fetchval(COUNT) == 0


async def test_requests_at_the_same_time_keep_their_transactions_apart(
    database: str, conn: asyncpg.Connection
) -> None:
    await asyncio.gather(*(get("/atomic", "abandon" if n % 2 else "") for n in range(12)))
    assert await conn.fetchval(COUNT) == 12


async def test_async_atomic_blocks_of_requests_at_the_same_time_are_apart(
    database: str, conn: asyncpg.Connection
) -> None:
    await asyncio.gather(*(get("/sign_up", "abandon" if n % 2 else "") for n in range(24)))
    assert await conn.fetchval(COUNT) == 12
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_worker") == 12
    # CONN_MAX_AGE = 0: neither the requests' own connections nor their blocks' are kept.
    django = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = ''"
    )
    await until(lambda: _is_zero(conn, django))


async def _is_zero(conn: asyncpg.Connection, query: str) -> bool:
    return bool(await conn.fetchval(f"{query} AND pid <> pg_backend_pid()") == 0)
