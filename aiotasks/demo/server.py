"""The demo's site under uvicorn, on the running event loop."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import uvicorn

from aiotasks.demo.errors import DemoError

_HOST = "127.0.0.1"


@asynccontextmanager
async def serve(application: str, port: int) -> AsyncIterator[str]:
    """Serve an ASGI application on a loopback port (0: any free one), and yield the URL of its root."""
    with _listener(port) as listener:
        config = uvicorn.Config(application, lifespan="on", log_config=None, access_log=False)
        server = _Server(config)
        serving = asyncio.create_task(server.run_until_stopped(listener))
        try:
            await server.wait_until_started(serving)
            yield f"http://{_HOST}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


def _listener(port: int) -> socket.socket:
    # Not made by uvicorn, because it calls sys.exit() when the port is taken.
    try:
        return socket.create_server((_HOST, port))
    except OSError as error:
        raise DemoError(f"The site can't use port {port}: {os.strerror(error.errno or 0)}.") from error


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the demo handles signals itself

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn would wait for the streams of events, which go on as long as their tasks.
        for connection in self.server_state.connections:
            connection.transport.abort()  # close() would wait until a client that reads nothing has read
        await super().shutdown(sockets)

    async def run_until_stopped(self, listener: socket.socket) -> None:
        with suppress(SystemExit):  # because it would stop the whole loop
            await self.serve(sockets=[listener])
        if not self.started:
            raise DemoError("The site did not start: the message above says why.")

    async def wait_until_started(self, serving: asyncio.Task[None]) -> None:
        while not (self.started or serving.done()):  # noqa: ASYNC110 (uvicorn has a flag, not an event)
            await asyncio.sleep(0.01)
        if serving.done():
            await serving
