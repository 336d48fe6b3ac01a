"""The responder of the health endpoints: slow clients, many of them, and requests that aren't any."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

import pytest

from aiotasks.worker.process import http
from aiotasks.worker.process.http import Address, Request, Responder, Response, listen

from .harness import until

BIG = b"x" * 3_000_000


async def echo(request: Request) -> Response:
    return Response(HTTPStatus.OK, f"{request.query} {request.accept}\n".encode())


async def big(request: Request) -> Response:
    return Response(HTTPStatus.OK, BIG)


async def broken(request: Request) -> Response:
    raise ValueError("broken")


@asynccontextmanager
async def serving(host: str = "127.0.0.1") -> AsyncIterator[Address]:
    listening = listen(Address(host, 0))
    address = Address(*listening.getsockname()[:2])
    task = asyncio.create_task(Responder(listening, {"/echo": echo, "/big": big, "/broken": broken}).run())
    try:
        yield address
    finally:
        task.cancel()
        await asyncio.wait([task])
        listening.close()


async def ask(address: Address, request: bytes) -> tuple[str, bytes]:
    """Return the status line and the body, read to the end of the connection."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request)
    response = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    head, _, body = response.partition(b"\r\n\r\n")
    return head.decode().split("\r\n")[0], body


async def get(address: Address, target: str, method: str = "GET", headers: str = "") -> tuple[str, bytes]:
    return await ask(address, f"{method} {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())


async def test_get_and_head() -> None:
    async with serving() as address:
        assert await get(address, "/echo?json", headers="ACCEPT: text/x; q=1\r\n") == (
            "HTTP/1.1 200 OK",
            b"json text/x; q=1\n",
        )
        assert await get(address, "/echo", "HEAD") == ("HTTP/1.1 200 OK", b"")
        assert await get(address, "http://somewhere/echo?a") == ("HTTP/1.1 200 OK", b"a \n")
        assert (await get(address, "/big"))[1] == BIG


async def test_over_ipv6() -> None:
    async with serving("::1") as address:
        assert (await get(address, "/echo"))[0] == "HTTP/1.1 200 OK"


BAD = {
    "no http": (b"hello\r\n\r\n", "400 Bad Request"),
    "tls": (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", "400 Bad Request"),
    "http 2": (b"PRI * HTTP/2.0\r\n\r\n", "400 Bad Request"),
    "bad target": (b"GET http://[/ HTTP/1.1\r\n\r\n", "404 Not Found"),
    "nowhere": (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
    "post": (b"POST /echo HTTP/1.1\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000, "405 Method Not Allowed"),
    "long": (
        b"GET /echo HTTP/1.1\r\nX: " + b"x" * 30_000 + b"\r\n\r\n",
        "431 Request Header Fields Too Large",
    ),
    "fails": (b"GET /broken HTTP/1.1\r\n\r\n", "500 Internal Server Error"),
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_request_gets_its_status(kind: str) -> None:
    request, status = BAD[kind]
    async with serving() as address:
        assert (await ask(address, request))[0] == f"HTTP/1.1 {status}"
        assert (await get(address, "/echo"))[0] == "HTTP/1.1 200 OK"


async def test_slow_clients_do_not_keep_others_waiting() -> None:
    """More of them than there are connections: the oldest ones are ended."""
    async with serving() as address:
        slow = [await asyncio.open_connection(*address) for _ in range(http.MAX_CONNECTIONS + 36)]
        for _, writer in slow:
            writer.write(b"GET /echo HT")
        assert (await get(address, "/echo"))[0] == "HTTP/1.1 200 OK"
        for reader, _ in slow[:36]:
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 30) == b""
        for _, writer in slow:
            writer.close()


async def test_a_client_has_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIMEOUT", 0.05)
    async with serving() as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /echo HTTP/1.1\r\n")
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
        # One that asks and reads nothing: the response stays in the way.
        reader, writer = await asyncio.open_connection(*address, limit=1)
        writer.write(b"GET /big HTTP/1.1\r\n\r\n")
        await until(lambda: len(asyncio.all_tasks()) <= 3)
        writer.close()


async def test_a_client_that_goes_is_nothing_to_report(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as address:
        for sent in (b"", b"GET /big HTTP/1.1\r\n\r\n"):
            _, writer = await asyncio.open_connection(*address)
            writer.write(sent)
            writer.transport.abort()
        assert (await get(address, "/echo"))[0] == "HTTP/1.1 200 OK"
    assert "rror" not in caplog.text


async def test_a_taken_port_is_refused() -> None:
    async with serving() as address:
        with pytest.raises(OSError, match="in use"):
            listen(address)
