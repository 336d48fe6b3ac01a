"""A small ASGI site with an embedded worker: `uvicorn tests.worker.site:application` and its variations."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.db import connection
from django.http import HttpRequest, JsonResponse
from django.urls import path

import aiotasks
from aiotasks.asgi import with_worker

from . import tasks


async def compute(request: HttpRequest) -> JsonResponse:
    """Enqueue one task of either kind, await both, answer."""
    results = [await task.aenqueue(int(request.GET["a"]), 2) for task in (tasks.add, tasks.add_sync)]
    while not all(result.is_finished for result in results):
        await asyncio.sleep(0.005)
        for result in results:
            await result.arefresh()
    return JsonResponse({"sums": [result.return_value for result in results], "pid": os.getpid()})


async def write(request: HttpRequest) -> JsonResponse:
    """Write a row and a task in one transaction, or with ``?abandon`` neither."""
    ids: list[str] = []
    with suppress(KeyError):
        async with aiotasks.atomic():
            await sync_to_async(_note)("view")
            ids.append((await tasks.add.aenqueue(1, 2)).id)
            if "abandon" in request.GET:
                raise KeyError
    return JsonResponse({"ids": ids})


def _note(event: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO ledger (event) VALUES (%s)", [event])


async def start(request: HttpRequest) -> JsonResponse:
    """Enqueue a task and answer at once."""
    result = await getattr(tasks, request.GET["task"]).aenqueue(float(request.GET["seconds"]))
    return JsonResponse({"id": result.id})


async def handlers(request: HttpRequest) -> JsonResponse:
    """Whose signal handlers this process has."""
    return JsonResponse({str(int(n)): repr(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGINT)})


urlpatterns = [
    path("compute/", compute),
    path("write/", write),
    path("start/", start),
    path("handlers/", handlers),
]

application = with_worker(get_asgi_application(), grace=2)
without_worker = get_asgi_application()
wrong_queue = with_worker(get_asgi_application(), queues=["nowhere"])
wrong_alias = with_worker(get_asgi_application(), backend="nowhere")

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]


async def _with_lifespan(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """An app that answers the lifespan itself, and keeps state for its requests."""
    if scope["type"] != "lifespan":
        scope["path"] = "/handlers/" if scope["state"]["opened"] else "/nowhere/"
        return await _django(scope, receive, send)
    while True:
        message = await receive()
        print(f"the app's own {message['type']}", flush=True)  # noqa: T201
        if message["type"] == "lifespan.startup" and os.environ.get("TEST_FAIL_STARTUP"):
            await send({"type": "lifespan.startup.failed", "message": "the app's own mistake"})
            return None
        if message["type"] == "lifespan.startup":
            scope["state"]["opened"] = True
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return None


_django = get_asgi_application()
with_lifespan = with_worker(_with_lifespan)
