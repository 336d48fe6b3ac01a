"""Streams of a real server, and a real worker: to their end, to a disconnect, and to the server's stop."""

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psycopg
import pytest
from django.db import connection

from aiotasks.rows import AnyResult
from aiotasks.views import sign
from tests.backend.support import value_of
from tests.site import default_task_backend
from tests.worker.harness import Process, Start, wait_until

from . import tasks
from .conftest import SETTINGS, Serve
from .sse import Event, read

# Fewer than the file descriptors that a process may have.
MANY = 200

# aiotasks' own have a name.
OF_DJANGO = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = '' AND pid <> pg_backend_pid()
"""


def follow(client: httpx.Client, result: AnyResult, stack: ExitStack) -> Iterator[Event]:
    response = stack.enter_context(
        client.stream(
            "GET", "/tasks/events/", params={"token": sign(result)}, headers={"Accept": "text/event-stream"}
        )
    )
    assert response.status_code == 200
    assert response.headers["Content-Encoding"] == "identity"
    assert response.headers["Content-Security-Policy"] == "default-src 'self'"
    return read(response.iter_raw())


def number_watched(client: httpx.Client) -> int:
    return int(client.get("/watched/").json()["number"])


def threads_of(process: Process) -> int:
    return len(list(Path(f"/proc/{process.pid}/task").iterdir()))


def test_a_task_is_followed_to_its_end(serve: Serve, start_worker: Start, database: str) -> None:
    """Through GZipMiddleware, for a client that accepts gzip, and sync-only middleware."""
    _, client = serve()
    result = tasks.climb.enqueue(20, 2.0)
    with ExitStack() as stack:
        events = follow(client, result, stack)
        next(events)
        (state,) = next(events).tasks
        assert state["status"] == "READY"
        start_worker(env=SETTINGS)
        *states, end = list(events)
    shown = [event.tasks[0] for event in states if event.data]
    assert {state["status"] for state in shown} == {"RUNNING", "SUCCESSFUL"}
    done = [state["progress"]["done"] for state in shown if state["progress"]]
    assert done == sorted(done)
    assert len(done) > 5
    assert (done[-1], shown[-1]["status"], shown[-1]["attempts"]) == (20, "SUCCESSFUL", 1)
    assert end.kind == "end"
    wait_until(lambda: number_watched(client) == 0)


def test_streams_hold_no_connection_and_end_with_their_clients(
    serve: Serve, observer: psycopg.Connection, database: str
) -> None:
    process, client = serve()
    client.get("/style/")
    threads = threads_of(process)
    results = default_task_backend.enqueue_many(tasks.climb, [((3,), {})] * 20)
    connection.close()
    with ExitStack() as stack:
        streams = [follow(client, result, stack) for result in results]
        for events in streams:
            next(events)
            assert next(events).tasks
        assert number_watched(client) == 20
        wait_until(lambda: value_of(observer, OF_DJANGO) == 0, 15)  # the streams last longer
        wait_until(lambda: threads_of(process) < threads + 10, 15)
        assert number_watched(client) == 20
    wait_until(lambda: number_watched(client) == 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_stops_with_many_streams(serve: Serve, database: str, number: int) -> None:
    """Long before the streams end by themselves."""
    process, client = serve("--timeout-graceful-shutdown", "60")
    result = tasks.climb.enqueue(3)
    request = (
        f"GET /tasks/events/?token={sign(result)} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"
    )
    with ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection((client.base_url.host, client.base_url.port)))
            for _ in range(MANY)
        ]
        for each in connections:
            each.sendall(request.encode())
        for each in connections:
            each.settimeout(30)
            received = b""
            while b"data: " not in received:
                received += each.recv(65536)
        process.send(number)
        process.wait(15)
        for each in connections:
            received = b""
            while chunk := each.recv(65536):
                received += chunk
            assert b"retry: 250" not in received  # nobody would answer
            assert received.endswith(b"0\r\n\r\n")  # it ended in order
    assert "Traceback" not in process.log
    assert "Cancel" not in process.log
