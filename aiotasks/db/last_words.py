"""LastWords: why the server has ended a session, which asyncpg doesn't report if the session was idle."""

import asyncio
from typing import Any

import asyncpg
from django.db import utils

from ..compat import transport_and_protocol
from .cache import is_dead

__all__ = ["LastWords"]

# A field of an ErrorResponse: each is a letter and a text that ends with a zero. The message comes two fields
# later.
# https://www.postgresql.org/docs/current/protocol-error-fields.html
FATAL = b"\0VFATAL\0"


class LastWords(asyncio.Protocol):
    """Stands between a connection's transport and asyncpg, and keeps the last error that arrived.

    A server that ends an idle session (``idle_in_transaction_session_timeout``,
    ``pg_terminate_backend()``) sends an ErrorResponse and closes the connection. asyncpg doesn't read an
    error that answers no statement, so without this the next statement would fail with "connection is
    closed".
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._message: str | None = None
        self._is_lost = False
        # Where asyncpg has none, there are no last words.
        self._transport, self._inner = transport_and_protocol(connection)
        if self._transport is not None and self._inner is not None:
            self._transport.set_protocol(self)

    def close(self) -> None:
        """Let the transport and asyncpg be connected as before."""
        if self._transport is not None and self._inner is not None and not is_dead(self._connection):
            self._transport.set_protocol(self._inner)

    def error(self, cause: BaseException) -> utils.Error | None:
        """The error to raise in place of the connection's ``cause``; None if the connection is open."""
        if not is_dead(self._connection):
            return None
        if isinstance(cause.__cause__, asyncpg.PostgresError):  # read by asyncpg, during a statement
            reason = str(cause.__cause__)
        else:
            reason = self._message or str(cause)
        return utils.OperationalError(
            f"The session of this aiotasks.transaction() block has ended before the block did: {reason}"
        )

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)
        if (at := data.rfind(FATAL)) == -1:
            return
        for field in data[at + len(FATAL) :].split(b"\0"):
            if field[:1] == b"M":
                self._message = field[1:].decode(errors="replace")
                break
        if data[:1] == b"E" and int.from_bytes(data[1:5]) == len(data) - 1:
            # The error came alone. The connection is closed at once, because until the socket's end has been
            # read asyncpg takes it for an open one that is in the middle of something (InternalClientError).
            self.connection_lost(None)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._inner.connection_lost(exc)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()  # type: ignore[no-any-return]  # asyncpg ships no types for it

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
