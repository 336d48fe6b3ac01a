"""A site that shows progress: `uvicorn tests.web.site:application`."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template import engines
from django.urls import include, path
from django.utils.decorators import sync_and_async_middleware, sync_only_middleware

from aiotasks import views
from aiotasks.rows import AnyResult
from aiotasks.store.loop import resources
from tests.site import default_task_backend

from . import tasks

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Progress</title>
<link rel="icon" href="/icon/">
<link rel="stylesheet" href="/style/">
</head>
<body>
{% load aiotasks %}
<h1>Climbing</h1>
{% for result in results %}{% aiotasks_progress result label=label %}{% endfor %}
</body>
</html>
"""

# The site's own; a browser's page is white in dark mode unless its site says otherwise.
STYLE = """
:root { color-scheme: light dark }
body { font-family: sans-serif; margin: 0 auto; max-width: 40rem; padding: 1rem }
"""


@sync_only_middleware
def queries_before_each_view(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Stands for a session or a user: a query over Django's connection, in the request's thread."""

    def middleware(request: HttpRequest) -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 'before the view'")
        return get_response(request)

    return middleware


@sync_and_async_middleware
def user_of_header(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Stands for AuthenticationMiddleware."""

    async def user(request: HttpRequest) -> Any:
        name = request.headers.get("X-User")
        return SimpleNamespace(pk=name, is_authenticated=name is not None, is_anonymous=name is None)

    def prepare(request: HttpRequest) -> None:
        request.auser = lambda: user(request)

    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> Any:
            prepare(request)
            return await get_response(request)

        return middleware

    def sync_middleware(request: HttpRequest) -> Any:
        prepare(request)
        return get_response(request)

    return sync_middleware


def permission(request: HttpRequest, result: AnyResult) -> bool:
    """Who names the task may see it."""
    return request.headers.get("X-User") == result.task.name


async def apermission(request: HttpRequest, result: AnyResult) -> bool:
    return permission(request, result)


async def page(request: HttpRequest) -> HttpResponse:
    """The bars of the tasks that ``?id=`` names."""
    results = [await default_task_backend.aget_result(id) for id in request.GET.getlist("id")]
    template = engines["django"].from_string(PAGE)
    return HttpResponse(template.render({"results": results, "label": request.GET.get("label")}, request))


async def start(request: HttpRequest) -> JsonResponse:
    """Enqueue a task, and answer with a token for it."""
    result = await tasks.climb.aenqueue(int(request.GET["steps"]), float(request.GET["seconds"]))
    return JsonResponse({"id": result.id, "token": views.sign(result)})


async def style(request: HttpRequest) -> HttpResponse:
    return HttpResponse(STYLE, content_type="text/css")


async def icon(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=204)


async def watched(request: HttpRequest) -> JsonResponse:
    """How many tasks the streams of this process follow."""
    return JsonResponse({"number": resources(default_task_backend.config).changes.number})


urlpatterns = [
    path("tasks/", include("aiotasks.urls")),
    path("asked/", views.events, {"permission": permission}),
    path("aasked/", views.events, {"permission": apermission}),
    path("page/", page),
    path("start/", start),
    path("style/", style),
    path("icon/", icon),
    path("watched/", watched),
]

application = ASGIStaticFilesHandler(get_asgi_application())
