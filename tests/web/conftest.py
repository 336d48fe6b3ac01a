"""Fixtures of the web's tests: a site, a server, and Server-Sent Events as a client sees them."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.backend.conftest import observer, opened, statements
from tests.worker.harness import Process, Start, configure, ledger, start, start_worker

from .browser import browser

__all__ = ["browser", "configure", "ledger", "observer", "opened", "start", "start_worker", "statements"]

SETTINGS = {"DJANGO_SETTINGS_MODULE": "tests.web.settings"}

type Serve = Callable[..., tuple[Process, httpx.Client]]


@pytest.fixture
def site(settings: Any, database: str) -> str:
    """Have the run's own Django serve tests.web.site; returns the path of the view."""
    from . import settings as site_settings

    for name in ("INSTALLED_APPS", "STATIC_URL", "ROOT_URLCONF", "MIDDLEWARE", "SECURE_CSP", "TEMPLATES"):
        setattr(settings, name, getattr(site_settings, name))
    settings.ALLOWED_HOSTS = ["*"]
    return "/tasks/events/"


@pytest.fixture
def serve(start: Start) -> Iterator[Serve]:
    """Run the site under uvicorn; returns the process and a client for it."""
    clients = []

    def serve(*arguments: str, **keywords: Any) -> tuple[Process, httpx.Client]:
        process = start(
            "-m", "uvicorn", "tests.web.site:application", "--port", "0", *arguments, env=SETTINGS, **keywords
        )
        url = re.search(r"running on (http://\S+)", process.wait_for("Uvicorn running on"))
        assert url is not None
        client = httpx.Client(base_url=url[1], trust_env=False, timeout=30)
        clients.append(client)
        return process, client

    yield serve
    for client in clients:
        client.close()
