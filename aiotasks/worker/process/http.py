"""Responder: a small HTTP server for probes and scrapes: GET and HEAD, one request a connection, no bodies.

It is no library's, because three paths without bodies don't need one, and each worker would depend on it.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

from ...forks import keep_from_children

__all__ = ["Address", "Request", "Responder", "Response", "listen"]

logger = logging.getLogger("aiotasks.health")

# Bytes of a request's line and headers. Browsers and proxies send about 1 KiB.
MAX_HEAD = 8192

# Seconds for a request to come, and for its response to go.
TIMEOUT = 5.0

# Connections at a time. One more ends the oldest, so that slow clients don't keep a probe from its answer.
MAX_CONNECTIONS = 64

PLAIN_TEXT = "text/plain; charset=utf-8"


class Address(NamedTuple):
    """Where to listen; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Request(NamedTuple):
    """What a path's function gets of a request; ``accept`` is the header's value, "" without it."""

    query: str = ""
    accept: str = ""


class Response(NamedTuple):
    status: HTTPStatus
    body: bytes
    content_type: str = PLAIN_TEXT


type Answer = Callable[[Request], Awaitable[Response]]


def listen(address: Address) -> socket.socket:
    """Return a socket that listens at ``address``. Raises OSError where that isn't possible."""
    is_6 = ":" in address.host
    listening = socket.create_server(
        address,
        family=socket.AF_INET6 if is_6 else socket.AF_INET,
        dualstack_ipv6=address.host == "::" and socket.has_dualstack_ipv6(),
    )
    listening.setblocking(False)
    keep_from_children(listening)  # else the port would be taken for as long as a task's child lives
    return listening


class Responder:
    """Answers requests on a socket that listens; ``routes`` has a function for each path."""

    def __init__(self, listening: socket.socket, routes: Mapping[str, Answer]) -> None:
        self._listening = listening
        self._routes = routes
        self._connections: dict[asyncio.Task[None], None] = {}  # the oldest first

    async def run(self) -> None:
        """Answer until cancelled."""
        address = Address(*self._listening.getsockname()[:2])
        server = await asyncio.start_server(self._connected, sock=self._listening, limit=MAX_HEAD)
        logger.info("Health endpoints listen address=%s paths=%s", address, ", ".join(self._routes))
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            self._listening.close()
            for task in list(self._connections):
                task.cancel()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.cancel()
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._connections[task] = None
        task.add_done_callback(lambda task: self._connections.pop(task, None))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(0)  # drain() waits until all is sent
        try:
            try:
                async with asyncio.timeout(TIMEOUT):
                    head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError:
                status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                method, response = "GET", Response(status, b"The request is too long.\n")
            else:
                method, response = await self._answer(head.decode("latin-1"))
            async with asyncio.timeout(TIMEOUT):
                writer.write(_encode(response, with_body=method != "HEAD"))
                await writer.drain()
                writer.write_eof()
                # A connection that is closed with bytes unread is reset, and the response may be lost.
                while await reader.read(MAX_HEAD):
                    pass
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass  # the client is too slow, or has gone
        finally:
            writer.transport.abort()

    async def _answer(self, head: str) -> tuple[str, Response]:
        """Return the method and the response to a request."""
        line, *lines = head.split("\r\n")
        words = line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return "GET", Response(HTTPStatus.BAD_REQUEST, b"The request isn't one of HTTP/1.\n")
        method, target, _ = words
        path = query = ""
        with suppress(ValueError):
            _, _, path, query, _ = urlsplit(target)
        answer = self._routes.get(path)
        if answer is None:
            text = f"There is no such path here; there are {', '.join(self._routes)}.\n"
            return method, Response(HTTPStatus.NOT_FOUND, text.encode())
        if method not in ("GET", "HEAD"):
            return method, Response(HTTPStatus.METHOD_NOT_ALLOWED, b"Use GET or HEAD.\n")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)
        }
        try:
            return method, await answer(Request(query, headers.get("accept", "")))
        except Exception:  # the next request must be answered all the same
            logger.exception("A health endpoint failed path=%s", path)
            return method, Response(HTTPStatus.INTERNAL_SERVER_ERROR, b"The log says why this has failed.\n")


def _encode(response: Response, *, with_body: bool) -> bytes:
    status = response.status
    head = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        head.append("Allow: GET, HEAD")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + (response.body if with_body else b"")
