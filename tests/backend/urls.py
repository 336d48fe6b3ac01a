"""A small site: views that enqueue, sync and async, and a middleware that is sync alone."""

from collections.abc import Callable
from typing import Any

from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.utils.decorators import sync_only_middleware

import aiotasks
from aiotasks.models import Worker
from tests import tasks

from .support import make_host


class Abandon(Exception):
    pass


@sync_only_middleware
def sync_middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    def middleware(request: HttpRequest) -> Any:
        return get_response(request)

    return middleware


def _answer(result: Any) -> JsonResponse:
    return JsonResponse({"id": result.id, "status": result.status})


async def async_view(request: HttpRequest) -> JsonResponse:
    result = await tasks.echo.aenqueue("async")
    await result.arefresh()
    return _answer(result)


def sync_view(request: HttpRequest) -> JsonResponse:
    result = tasks.echo.enqueue("sync")
    result.refresh()
    return _answer(result)


def bridged_view(request: HttpRequest) -> JsonResponse:
    result = async_to_sync(tasks.echo.aenqueue)("bridged")
    async_to_sync(result.arefresh)()
    return _answer(result)


def atomic_view(request: HttpRequest) -> JsonResponse:
    """Both ways inside one transaction; ``?abandon`` rolls it back."""
    try:
        with transaction.atomic():
            tasks.echo.enqueue("atomic")
            result = async_to_sync(tasks.echo.aenqueue)("atomic")
            if "abandon" in request.GET:
                raise Abandon
    except Abandon:
        pass
    return JsonResponse({"id": result.id, "autocommit": connection.get_autocommit()})


def failing_view(request: HttpRequest) -> JsonResponse:
    """For ATOMIC_REQUESTS: what it enqueued goes with it."""
    tasks.echo.enqueue("failing")
    async_to_sync(tasks.echo.aenqueue)("failing")
    raise Abandon


async def sign_up_view(request: HttpRequest) -> JsonResponse:
    """A row by the async ORM and a task; ``?abandon`` rolls both back."""
    try:
        async with aiotasks.atomic():
            await make_host("signed up")
            result = await tasks.echo.aenqueue("sign_up")
            if "abandon" in request.GET:
                raise Abandon
    except Abandon:
        pass
    return JsonResponse({"id": result.id, "hosts": await Worker.objects.acount()})


urlpatterns = [
    path("sign_up", sign_up_view),
    path("async", async_view),
    path("sync", sync_view),
    path("bridged", bridged_view),
    path("atomic", atomic_view),
    path("failing", failing_view),
]
