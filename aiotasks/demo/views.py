"""The views of the demo's site, all of them async."""

import asyncio
import tokenize
from pathlib import Path

from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from aiotasks.demo.stdlib import sources
from aiotasks.demo.tasks import fetch_page, measure_source


@require_safe
async def index(request: HttpRequest) -> HttpResponse:
    """List the modules."""
    return render(request, "demo/index.html", {"names": sources()})


@require_safe
async def module(request: HttpRequest, name: str) -> HttpResponse:
    """Show a module's source."""
    path = _path(name)
    source = await asyncio.to_thread(_read, path)
    return render(request, "demo/module.html", {"name": name, "path": path, "source": source})


@require_POST
async def examine(request: HttpRequest, name: str) -> JsonResponse:
    """Enqueue both tasks for a module, and answer with the ids of their results without waiting for them."""
    _path(name)
    page = request.build_absolute_uri(reverse("module", args=[name]))
    measured, fetched = await asyncio.gather(measure_source.aenqueue(name), fetch_page.aenqueue(page))
    return JsonResponse({"measure_source": measured.id, "fetch_page": fetched.id}, status=202)


def _path(name: str) -> Path:
    try:
        return sources()[name]
    except KeyError:
        raise Http404(f"The standard library has no module {name!r} in Python source.") from None


def _read(path: Path) -> str:
    # tokenize knows how a source file declares its encoding.
    with tokenize.open(path) as file:
        return file.read()
