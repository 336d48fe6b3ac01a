"""``with_worker``: an ASGI application whose lifespan runs a worker."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from .worker import Worker

__all__ = ["with_worker"]

logger = logging.getLogger("aiotasks.asgi")

# As loose as the servers' and frameworks' own types, which agree in nothing else.
Scope = dict[str, Any]
Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def with_worker(
    app: Application,
    *,
    backend: str = "default",
    queues: Sequence[str] | Mapping[str, int | None] | None = None,
    concurrency: int = 20,
    threads: int = 4,
    grace: float = 25.0,
    metrics: bool = False,
) -> Application:
    """Return ``app`` with a worker that lives as long as the server's lifespan.

    The parameters are those of ``aiotasks.Worker``. A mistake in them or in the settings fails
    the server's start; a database that is away doesn't: the worker goes on trying. No signal
    handlers are installed. An app that answers the lifespan itself still gets it.

    The server must speak the lifespan protocol (uvicorn, hypercorn, granian do; daphne doesn't).
    https://asgi.readthedocs.io/en/latest/specs/lifespan.html
    """
    lifespan_seen = False

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal lifespan_seen
        if scope["type"] == "lifespan":
            lifespan_seen = True
            await _Lifespan(app, scope, receive, send).run(
                lambda: Worker(
                    backend=backend,
                    queues=queues,
                    concurrency=concurrency,
                    threads=threads,
                    grace=grace,
                    metrics=metrics,
                )
            )
            return
        if not lifespan_seen:
            lifespan_seen = True  # logged once
            logger.error(
                "No worker runs here, because the server has not started the ASGI lifespan. Switch it on "
                "(uvicorn: --lifespan on), or run python -m aiotasks.worker beside the site."
            )
        await app(scope, receive, send)

    return application


class _Lifespan:
    """One lifespan: the app's own, if it has one, around the worker's."""

    def __init__(self, app: Application, scope: Scope, receive: Receive, send: Send) -> None:
        self._app = app
        self._scope = scope
        self._receive = receive
        self._send = send
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message | None] = asyncio.Queue()

    async def run(self, make_worker: Callable[[], Worker]) -> None:
        startup = await self._receive()
        inner = asyncio.ensure_future(self._run_app())
        try:
            answer = await self._ask_app(startup)
            if answer is not None and answer["type"] == "lifespan.startup.failed":
                await self._send(answer)
                return
            try:
                worker = make_worker()
                await worker.__aenter__()
            except Exception as error:  # the server's to log and to exit with  # noqa: BLE001
                await self._ask_app({"type": "lifespan.shutdown"})  # what has started is to end in order
                await self._send({"type": "lifespan.startup.failed", "message": f"aiotasks: {error}"})
                return
            try:
                await self._send({"type": "lifespan.startup.complete"})
                shutdown = await self._receive()
            finally:
                await worker.stop()
            answer = await self._ask_app(shutdown)
            await self._send(answer or {"type": "lifespan.shutdown.complete"})
        finally:
            inner.cancel()
            with suppress(asyncio.CancelledError):
                await inner

    async def _run_app(self) -> None:
        try:
            await self._app(self._scope, self._to_app.get, self._from_app.put)
        except Exception as error:  # noqa: BLE001
            # By the protocol any exception says that an app has no lifespan; Django's raises ValueError.
            logger.debug("The application has no lifespan of its own error=%r", error)
        finally:
            self._from_app.put_nowait(None)

    async def _ask_app(self, message: Message) -> Message | None:
        """Pass ``message`` on and return the app's answer; None where it has no lifespan."""
        self._to_app.put_nowait(message)
        answer = await self._from_app.get()
        if answer is None:
            self._from_app.put_nowait(None)  # nor will it answer anything later
        return answer
