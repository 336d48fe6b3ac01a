"""The views of the demo's site, all of them async."""

import asyncio
import tokenize
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any
from uuid import UUID

from django.db import Error as DatabaseError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.tasks import default_task_backend
from django.tasks.exceptions import TaskResultDoesNotExist
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from aiotasks import PostgresTaskResult
from aiotasks.demo.dashboard import dashboard
from aiotasks.demo.stdlib import sources
from aiotasks.demo.tasks import start

type View = Callable[..., Coroutine[Any, Any, HttpResponse]]

_backend: Any = default_task_backend  # Django's types don't know aiotasks' methods


def _needs_database(view: View) -> View:
    """Answer 503 while the database is away."""

    @wraps(view)
    async def answer(request: HttpRequest, **arguments: Any) -> HttpResponse:
        try:
            return await view(request, **arguments)
        except DatabaseError:
            return render(request, "demo/away.html", status=503)

    return answer


@require_safe
@_needs_database
async def index(request: HttpRequest) -> HttpResponse:
    """Show the latest surveys. The page's script asks for this every second, and takes what has changed."""
    return render(request, "demo/index.html", await dashboard())


@require_POST
@_needs_database
async def examine(request: HttpRequest) -> HttpResponse:
    """Enqueue both surveys, and don't wait for them."""
    await start(request.build_absolute_uri("/").rstrip("/"))
    return redirect("index")


@require_POST
@_needs_database
async def cancel(request: HttpRequest, id: UUID) -> HttpResponse:
    """Cancel a survey, if it hasn't ended."""
    result = await _survey(id)
    await _backend.acancel(result)
    return _to_panel(result)


@require_POST
@_needs_database
async def retry(request: HttpRequest, id: UUID) -> HttpResponse:
    """Have a survey go on that has failed, or was cancelled."""
    result = await _survey(id)
    await _backend.aretry_many([result])
    return _to_panel(result)


@require_safe
async def modules(request: HttpRequest) -> HttpResponse:
    """List the modules."""
    return render(request, "demo/modules.html", {"names": sources()})


@require_safe
async def module(request: HttpRequest, name: str) -> HttpResponse:
    """Show a module's source."""
    try:
        path = sources()[name]
    except KeyError:
        raise Http404(f"The standard library has no module {name!r} in Python source.") from None
    source = await asyncio.to_thread(_read, path)
    return render(request, "demo/module.html", {"name": name, "path": path, "source": source})


async def _survey(id: UUID) -> PostgresTaskResult:
    try:
        result: PostgresTaskResult = await _backend.aget_result(str(id))
    except TaskResultDoesNotExist:
        raise Http404(f"There is no task {id}.") from None
    return result


def _to_panel(result: PostgresTaskResult) -> HttpResponse:
    return redirect(f"{reverse('index')}#{result.task.name}")


def _read(path: Path) -> str:
    # tokenize knows how a source file declares its encoding.
    with tokenize.open(path) as file:
        return file.read()
