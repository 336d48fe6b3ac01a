"""A server with SSL in front of one that has none, as PostgreSQL from a wheel: who gets through, and how."""

import asyncio
import ssl
import struct
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["TlsServer"]

SSL_REQUEST = 80877103
GSS_REQUEST = 80877104


class TlsServer:
    """``with TlsServer(host, port, folder) as server: connect(port=server.port)``.

    folder: has ``localhost.crt`` and ``localhost.key``, its own, and ``root.crt``, whose clients it knows.
    takes: whether connections without SSL are taken, and whether those with it are; others are refused as
        PostgreSQL refuses them for which pg_hba.conf has no line.
    demands_certificate: refuse clients that show none.
    sessions: of each that got through, whether it was encrypted.
    """

    def __init__(self, host: str, port: int, folder: Path) -> None:
        self.port = 0
        self.takes = {False, True}
        self.demands_certificate = False
        self.sessions: list[bool] = []
        self._target = (host, port)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "localhost.crt", folder / "localhost.key")
        self._context.load_verify_locations(folder / "root.crt")
        self._context.verify_mode = ssl.CERT_OPTIONAL
        self._context.maximum_version = ssl.TLSVersion.TLSv1_2
        self._context.set_alpn_protocols(["postgresql"])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tls", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1")
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._serve(reader, writer)
        writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        encrypted = False
        while True:
            start = await reader.readexactly(8)
            _, code = struct.unpack("!ii", start)
            if code == SSL_REQUEST and True in self.takes:
                writer.write(b"S")
                await writer.start_tls(self._context)
                encrypted = True
            elif code in (SSL_REQUEST, GSS_REQUEST):
                writer.write(b"N")
            else:
                break
        if encrypted not in self.takes or (
            self.demands_certificate and not writer.get_extra_info("peercert")
        ):
            fields = b"SFATAL\0VFATAL\0C28000\0Mno pg_hba.conf entry for this connection\0\0"
            writer.write(b"E" + struct.pack("!i", 4 + len(fields)) + fields)
            await writer.drain()
            return
        self.sessions.append(encrypted)
        server_reader, server_writer = await asyncio.open_connection(*self._target)
        server_writer.write(start)
        pumps = [
            asyncio.ensure_future(_pump(reader, server_writer)),
            asyncio.ensure_future(_pump(server_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            server_writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
