"""A TCP proxy that stands between a client and PostgreSQL, and breaks the line on command."""

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Literal, Self

Mode = Literal["pass", "blackhole", "mute", "delay", "refuse"]


class Proxy:
    """``with Proxy(host, port) as proxy: connect(port=proxy.port); proxy.mode = "blackhole"``.

    It runs on a thread of its own, so sync and async tests use it alike, and ones that block their loop.
    A mode holds for connections that are open and for new ones:

    - pass: hands everything on;
    - blackhole: swallows everything, both ways, without a word;
    - mute: swallows the server's replies only, so what was asked is done;
    - delay: hands everything on after ``delay`` seconds;
    - refuse: cuts what is open, and refuses new connections (ECONNREFUSED).
    """

    def __init__(self, host: str, port: int, *, delay: float = 0.5) -> None:
        self.port = 0
        self.delay = delay
        self.connections = 0  # accepted so far
        self.hampered = 0  # chunks that it has swallowed or held up so far
        self.target = (host, port)
        self._mode: Mode = "pass"
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._call(self._change(mode))

    def cut(self) -> None:
        """Reset all connections that are open."""
        self._call(self._cut())

    def strand(self) -> None:
        """Leave all connections half-open: the server's side is closed, and the client isn't told.

        New ones go through as the mode says.
        """
        self._call(self._strand())

    def _call(self, coroutine: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _change(self, mode: Mode) -> None:
        self._mode = mode
        if mode == "refuse":
            await self._close()
        elif self._server is None:
            await self._listen()

    async def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        server_writer = link = None
        try:
            server_reader, server_writer = await asyncio.open_connection(*self.target)
            self._writers.add(server_writer)
            link = _Link(server_writer)
            self._links.add(link)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(link, reader, server_writer, replies=False))
                pumps.create_task(self._pump(link, server_reader, writer, replies=True))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            if link is not None:
                self._links.discard(link)
            for one in filter(None, (writer, server_writer)):
                self._writers.discard(one)
                one.transport.abort()
            self._tasks.discard(task)

    async def _strand(self) -> None:
        for link in self._links:
            link.is_stranded = True
            link.server.transport.abort()

    async def _pump(
        self, link: "_Link", reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        while chunk := await reader.read(65536):
            if self._mode == "delay":
                self.hampered += 1
                await asyncio.sleep(self.delay)
            if link.is_stranded or self._mode == "blackhole" or (self._mode == "mute" and replies):
                self.hampered += 1
                continue
            writer.write(chunk)
            await writer.drain()
        if link.is_stranded and replies:
            return  # what the client still says is swallowed
        if link.is_stranded or self._mode in ("pass", "delay"):
            raise ConnectionResetError  # one side has gone: the other goes, too


class _Link:
    """One connection on its way through."""

    def __init__(self, server: asyncio.StreamWriter) -> None:
        self.server = server
        self.is_stranded = False
